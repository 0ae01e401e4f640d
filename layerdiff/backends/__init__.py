"""Runtimes that run a candidate: a model in, named arrays out."""

from layerdiff.backends.base import Backend, Optimisation, Session
from layerdiff.backends.isolated import Isolated, Isolation
from layerdiff.backends.ort import OnnxRuntime

__all__ = ["Backend", "Isolated", "Isolation", "OnnxRuntime", "Optimisation", "Session"]
