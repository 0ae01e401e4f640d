"""What the report tells of the reference alone: how its own runs differ, by chance or by settings of torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.limits import limits_for
from layerdiff.stability import (
    may_move,
    reference_narrowed,
    reference_not_deterministic,
    reference_random,
    steady,
    swallowed,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.judging import Judged
    from layerdiff.model import Diagnosis, Divergence
    from layerdiff.runner import Runner


@dataclass(frozen=True, slots=True)
class OwnRuns:
    """The causes that come before all others, those that come behind, and what to warn of."""

    first: tuple[Diagnosis, ...] = ()
    last: tuple[Diagnosis, ...] = ()
    warnings: tuple[str, ...] = ()


def own_runs(run: Runner, shown: Judged, found: Sequence[Divergence], causes: Sequence[Diagnosis]) -> OwnRuns:
    """What is told of the reference alone, beside what was found and named of the candidate."""
    side, reference, first = run.reference, shown.reference, found[0] if found else None
    limits = limits_for(reference, shown.floor, run.tolerance, shown.outputs.tensors)
    narrowed = reference_narrowed(reference, side.as_set(shown.sample, reference), limits)
    agrees = first is None and all(result.agrees for result in shown.results)
    # What moves from run to run is taken for rounding, and may hide a difference; what is proven it cannot explain.
    if (agrees and run.tolerance is not None) or ((agrees or steady(causes)) and not may_move(reference, side.device)):
        return OwnRuns(last=narrowed)
    unstable = side.unstable(shown.sample, reference)
    bare = limits_for(reference, {}, run.tolerance, shown.outputs.tensors)
    moving = reference_not_deterministic(reference, unstable, first, bare, side.device)
    if agrees:
        return OwnRuns((), narrowed, () if moving is None else (swallowed(moving, limits.values()),))
    drawn = reference_random(reference, unstable, first)
    leading = tuple(cause for cause in (drawn, moving) if cause is not None and (cause is drawn or cause.verified))
    return OwnRuns(leading, (*(() if moving is None or moving in leading else (moving,)), *narrowed))
