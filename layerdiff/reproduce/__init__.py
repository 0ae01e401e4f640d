"""Hand over the smallest runnable case of a divergence."""

from layerdiff.reproduce.folder import reproduce

__all__ = ["reproduce"]
