"""Pair the values of the reference with the tensors of the candidate."""

from layerdiff.align.solver import Alignment, align

__all__ = ["Alignment", "align"]
