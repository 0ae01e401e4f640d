"""From an origin to its cause: hypotheses from one diagnoser a family, and a run that proves one of them."""

from layerdiff.diagnose import batchnorm, inserted, relowered, semantics, weights
from layerdiff.diagnose.hypothesis import Diagnoser, Hypothesis
from layerdiff.diagnose.prove import Explained, explain
from layerdiff.diagnose.stretch import Stretch

# In the order in which they are heard; of two that are proven with changes of one size the first wins.
DIAGNOSERS: tuple[Diagnoser, ...] = (
    inserted.hypotheses,
    batchnorm.hypotheses,
    weights.hypotheses,
    semantics.hypotheses,
    relowered.hypotheses,
)

__all__ = ["DIAGNOSERS", "Diagnoser", "Explained", "Hypothesis", "Stretch", "explain"]
