"""Pair the values of the reference with the tensors of the candidate."""

from layerdiff.align.solver import Alignment, align, only_by_values

__all__ = ["Alignment", "align", "only_by_values"]
