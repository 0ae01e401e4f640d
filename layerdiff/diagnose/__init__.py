"""From an origin to its cause: hypotheses from one diagnoser a family, and a run that proves one of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from layerdiff.diagnose import batchnorm, folded, formats, inserted, numerics, relowered, semantics, weights
from layerdiff.diagnose.branches import other_branch
from layerdiff.diagnose.hypothesis import Diagnoser, Hypothesis
from layerdiff.diagnose.inputs import inputs_exchanged
from layerdiff.diagnose.moved import joined
from layerdiff.diagnose.outputs import fixed_output, outputs_exchanged
from layerdiff.diagnose.prove import REPAIR, Explained, explain
from layerdiff.diagnose.stretch import Stretch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.model import Diagnosis

# In the order in which they are heard; of two that are proven with changes of one size the first wins.
DIAGNOSERS: tuple[Diagnoser, ...] = (
    inserted.hypotheses,
    formats.hypotheses,
    batchnorm.hypotheses,
    folded.hypotheses,
    weights.hypotheses,
    semantics.hypotheses,
    numerics.hypotheses,
    relowered.hypotheses,
)

THOROUGH = 6
"""How many origins are looked into with every means; behind the first few the rest are usually of their kind."""


def explain_all(stretches: Sequence[Stretch]) -> list[Explained]:
    """The cause of every origin, in their order."""
    with np.errstate(all="ignore"):  # what is wrong may be infinite
        found = [
            fixed_output(stretch) or explain(stretch, DIAGNOSERS, thorough=i < THOROUGH)
            for i, stretch in enumerate(stretches)
        ]
        return joined(stretches, found)


def ranked(
    around: Sequence[Diagnosis], sizes: Diagnosis | None, explained: Sequence[Diagnosis]
) -> tuple[Diagnosis, ...]:
    """All diagnoses, that of the first origin before those of the others, which may follow from it.

    `around` were found by other runs of the whole model (a pass turned off, two runs that differ); `sizes` says that
    samples of another size agree: then what was found in the nodes is what was frozen.
    """
    rest = list(explained)
    frozen = []
    if sizes is not None and rest:
        first = rest.pop(0)
        evidence = {**sizes.evidence, "found": first.cause, **first.evidence}
        text = f"{sizes.summary} {first.summary}"
        frozen = [replace(sizes, summary=text, evidence=evidence, verified=first.verified)]
    elif sizes is not None:
        frozen = [sizes]
    return (*around, *frozen, *rest)


__all__ = [
    "DIAGNOSERS",
    "REPAIR",
    "Diagnoser",
    "Explained",
    "Hypothesis",
    "Stretch",
    "explain",
    "explain_all",
    "inputs_exchanged",
    "other_branch",
    "outputs_exchanged",
    "ranked",
]
