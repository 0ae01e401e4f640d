"""Random small networks, faults in them, and nothing else: see grow.py for how they come about."""

from tests.zoo.random_nets.grow import random_net

__all__ = ["random_net"]
