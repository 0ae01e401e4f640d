"""Runtimes that run a candidate: a model in, named arrays out."""

from layerdiff.backends.base import Backend, Optimisation, Session
from layerdiff.backends.isolated import Isolated, Isolation
from layerdiff.backends.ort import OnnxRuntime
from layerdiff.external import with_weights

__all__ = ["Backend", "Isolated", "Isolation", "OnnxRuntime", "Optimisation", "Session", "with_weights"]
