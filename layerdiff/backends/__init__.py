"""Runtimes that run a candidate: a model in, named arrays out."""

from layerdiff.backends.base import Backend, Optimisation, Session
from layerdiff.backends.ort import OnnxRuntime

__all__ = ["Backend", "OnnxRuntime", "Optimisation", "Session"]
