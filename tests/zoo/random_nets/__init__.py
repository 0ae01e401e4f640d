"""Random small networks, and faults in them."""

from tests.zoo.random_nets.faults import Planted, owners, with_fault
from tests.zoo.random_nets.grow import random_net
from tests.zoo.random_nets.program import Program, faithful

__all__ = ["Planted", "Program", "faithful", "owners", "random_net", "with_fault"]
