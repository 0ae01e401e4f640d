"""From an origin to its cause: hypotheses from one diagnoser a family, and a run that proves one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.diagnose import batchnorm, formats, inserted, numerics, relowered, semantics, weights
from layerdiff.diagnose.hypothesis import Diagnoser, Hypothesis
from layerdiff.diagnose.prove import Explained, explain
from layerdiff.diagnose.stretch import Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

# In the order in which they are heard; of two that are proven with changes of one size the first wins.
DIAGNOSERS: tuple[Diagnoser, ...] = (
    inserted.hypotheses,
    formats.hypotheses,
    batchnorm.hypotheses,
    weights.hypotheses,
    semantics.hypotheses,
    numerics.hypotheses,
    relowered.hypotheses,
)

THOROUGH = 6
"""How many origins are looked into with every means; behind the first few the rest are usually of their kind."""


def explain_all(stretches: Sequence[Stretch]) -> list[Explained]:
    """The cause of every origin, in their order."""
    return [explain(stretch, DIAGNOSERS, thorough=i < THOROUGH) for i, stretch in enumerate(stretches)]


__all__ = ["DIAGNOSERS", "Diagnoser", "Explained", "Hypothesis", "Stretch", "explain", "explain_all"]
