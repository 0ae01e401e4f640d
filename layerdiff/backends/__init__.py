"""Runtimes that run a candidate: a model in, named arrays out."""

from layerdiff.backends.base import Backend, Optimisation, Session, Sparing
from layerdiff.backends.isolated import Isolated, Isolation
from layerdiff.backends.ort import OnnxRuntime
from layerdiff.backends.room import Room
from layerdiff.external import with_weights

__all__ = [
    "Backend",
    "Isolated",
    "Isolation",
    "OnnxRuntime",
    "Optimisation",
    "Room",
    "Session",
    "Sparing",
    "with_weights",
]
