"""The two sides of a comparison, behind one seam: whatever was handed in, the story of trace() is the same.

A reference gives the dataflow graph of one forward pass and its noise floor; a candidate gives a graph of nodes and a
runtime that can run any part of it.
"""

from layerdiff.sides.base import CandidateSide, ReferenceSide, Unstable
from layerdiff.sides.onnx_candidate import OnnxCandidate
from layerdiff.sides.open import isolation_of, open_candidate, open_reference

__all__ = [
    "CandidateSide",
    "OnnxCandidate",
    "ReferenceSide",
    "Unstable",
    "isolation_of",
    "open_candidate",
    "open_reference",
]
