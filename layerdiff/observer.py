"""The observer check: whether what was examined is what ships.

Making every tensor visible blocks a runtime's fusions. So the untouched model always runs too, with all optimisations.
Where its outputs disagree and the examined graph's do not, the graph is right and the runtime computes it wrong: the
graph that the runtime really runs is examined instead, and its passes are turned off until one is found guilty.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.backends import Optimisation
from layerdiff.errors import BackendError
from layerdiff.halving import smallest
from layerdiff.model import Diagnosis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.model import OutputResult
    from layerdiff.outputs import OutputPairs


@dataclass(frozen=True, slots=True)
class Observed:
    """What to examine, and what the reader must know about it first."""

    candidate: Candidate
    warnings: tuple[str, ...] = ()
    level: Optimisation | None = None
    guilty: tuple[str, ...] = ()


def observe(candidate: Candidate, outputs: OutputPairs, results: Sequence[OutputResult]) -> Observed:
    """The candidate to examine: as it is, or as the runtime optimises it when only that is wrong."""
    shipped_agrees = all(result.agrees for result in results)
    tapped_agrees = all(result.tapped is not None and result.tapped.agrees for result in results)
    if shipped_agrees and not tapped_agrees:
        text = (
            "the model agrees as it ships; without the runtime's optimisations, as its tensors were examined, it does "
            "not: what is said of layers holds for that run only"
        )
        return Observed(candidate, (text,))
    if shipped_agrees or not tapped_agrees:
        return Observed(candidate)
    text = (
        "making all tensors visible made the outputs agree: an optimisation of the runtime is at fault, not the graph"
    )
    for level in (Optimisation.BASIC, Optimisation.EXTENDED, Optimisation.AS_SHIPPED):
        try:
            optimised = candidate.as_optimised(level)
            wrong = not outputs.all_agree(optimised.tapped)
        except BackendError:  # some optimised graphs cannot be saved or run again
            continue
        if wrong:
            guilty = _guilty_passes(candidate, outputs)
            return Observed(optimised, (f"{text}; the graph examined is the runtime's own",), level, guilty)
    return Observed(candidate, (text,), None, _guilty_passes(candidate, outputs))


def _guilty_passes(candidate: Candidate, outputs: OutputPairs) -> tuple[str, ...]:
    """The smallest set of passes, found by halving, without which the outputs agree; empty when none is."""

    def cured(passes: Sequence[str]) -> bool:
        try:
            return outputs.all_agree(candidate.shipped_without(passes))
        except BackendError:
            return False

    return tuple(smallest(candidate.passes, cured))


def fusion_diagnosis(observed: Observed, layer: str) -> Diagnosis | None:
    """The cause, where a pass of the runtime was found guilty by turning it off."""
    if not observed.guilty:
        return None
    names = ", ".join(observed.guilty)
    return Diagnosis(
        cause="runtime-fusion",
        layer=layer,
        summary=f"The graph is right; the runtime's optimisation {names} changes what it computes.",
        evidence={"passes": list(observed.guilty), "level": str(observed.level.value if observed.level else "unknown")},
        remedy=observed.candidate.without(observed.guilty),
        verified=True,
    )
