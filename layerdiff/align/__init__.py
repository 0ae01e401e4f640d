"""Pair the values of the reference with the tensors of the candidate."""

from layerdiff.align.alignment import Alignment
from layerdiff.align.solver import align, only_by_values, varying

__all__ = ["Alignment", "align", "only_by_values", "varying"]
