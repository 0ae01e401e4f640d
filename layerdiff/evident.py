"""A fault beyond doubt: far outside of rounding where it is, and from right inputs no layer but it is wrong.

The float64 twin is there to tell rounding from small faults. Where the outputs are far off, and one run of the graph,
cut open at every tensor with a counterpart, shows that each layer is either right to a few units in the last place or
far from it, there is nothing in between that a noise floor would have to decide. What rounding collects on its way is
then read off two runs: the normal one ahead of the fault, the healed one behind it. Anything else is left to the twin.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align import align
from layerdiff.align.values import same_numbers
from layerdiff.errors import BackendError
from layerdiff.heal import injection_at
from layerdiff.limits import NOISE_FACTOR, limits_for, with_noise
from layerdiff.model import Noise
from layerdiff.reconsider import Located, located
from layerdiff.twinless import alone, collected, draws, floor_alone, gap_in, holds, is_within

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.graph import Injection
    from layerdiff.limits import Limit
    from layerdiff.model import Reference
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

# More layers than this that are wrong from right inputs are no single fault, or no fault at all: half precision, say.
MOST_WRONG = 8


@dataclass(frozen=True, slots=True)
class Evident:
    """Where a graph goes wrong beyond doubt, and the rounding that stands in for the noise floor."""

    place: Located
    floor: Mapping[int, Noise]


def far_off(reference: Reference, candidate: Candidate, outputs: OutputPairs) -> bool:
    """Whether an output is wrong in every run by more than all rounding, so that no noise floor has to tell it."""
    if outputs.masks or outputs.unpaired or draws(candidate):
        return False
    wide = collected(limits_for(reference, {}, None, outputs.tensors))
    far = False
    for value, name in outputs.tensors.items():
        expected, runs = reference.values[value].array, (candidate.shipped.get(name), candidate.tapped.get(name))
        if expected is None or any(actual is None or actual.shape != expected.shape for actual in runs):
            return False
        far |= expected.dtype.kind == "f" and not any(
            same_numbers(expected, run, wide[value]) for run in runs if run is not None
        )
    return far


def evident(reference: Reference, candidate: Candidate, outputs: OutputPairs) -> Evident | None:
    """Where a graph whose outputs are far off goes wrong; None where that is not beyond doubt.

    `outputs` are judged without a noise floor.
    """
    try:
        return _evident(reference, candidate, outputs)
    except BackendError:  # what takes no values from outside is looked into the other way
        return None


def _evident(reference: Reference, candidate: Candidate, outputs: OutputPairs) -> Evident | None:
    bare = limits_for(reference, {}, None)
    wide = collected(bare)
    found = align(reference, candidate, outputs, wide, added=bare)
    steps = _wrong_steps(found, bare)
    if steps is None:
        return None
    found.limits = with_noise(bare, dict(steps.values()))
    place = located(found, replace(outputs, floor=_as_floor(wide)))
    if place.rounded or not all(origin.provable for origin in place.origins):
        return None
    found = place.alignment
    runs = _Runs(found, steps, [injection_at(found, origin) for origin in place.origins])
    if not all(holds(found, runs.healed, name, value, wide[value]) for value, name in outputs.tensors.items()):
        return None
    floor = runs.floor(wide)
    found.limits = with_noise(bare, floor)
    return Evident(place, floor)


def _as_floor(limits: Mapping[int, Limit]) -> dict[int, Noise]:
    """The noise floor that would allow for as much."""
    most = {value: float(np.max(limit.atol)) / NOISE_FACTOR for value, limit in limits.items()}
    return {value: Noise(floor, floor, assumed=True) for value, floor in most.items()}


def _wrong_steps(found: Alignment, bare: Mapping[int, Limit]) -> dict[str, tuple[int, Noise]] | None:
    """The tensors that are far off from right inputs, each with its value and the rounding of what leads there.

    None where one of them may be right after all, or its rounding cannot be told; where there are none, or many.
    """
    if found.misshapen or not found.isolated:
        return None
    steps: dict[str, tuple[int, Noise]] = {}
    for tensor, value in found.forced().items():
        run = alone(found, tensor)
        if holds(found, run, tensor, value, bare[value]):
            continue
        floor = floor_alone(found, value)
        if floor is not None and is_within(found, tensor, value, floor):
            continue
        if floor is None or len(steps) == MOST_WRONG or holds(found, run, tensor, value, found.limits[value]):
            return None
        steps[tensor] = value, floor
    return steps or None


class _Runs:
    """The normal run, and the one in which the right values were put in where the graph goes wrong."""

    def __init__(
        self, found: Alignment, steps: Mapping[str, tuple[int, Noise]], injections: Sequence[Injection]
    ) -> None:
        self._found, self._steps = found, steps
        self.healed = found.candidate.healed(injections)
        self._behind = found.candidate.graph.behind(steps)
        self._brought = max((self._brought_to(tensor) for tensor in steps), default=0.0)

    def _brought_to(self, tensor: str) -> float:
        """How much rounding what is read by a wrong step brings with it, as a share of what one layer may add there."""
        forced = self._found.forced()
        _, start = self._found.candidate.graph.region(tensor, forced)
        ahead = [(name, forced[name]) for name in start if name in forced and name not in self._behind]
        run, added = self._found.candidate.tapped, self._added
        return max((self._gap(run, name, value) / added(value) for name, value in ahead if added(value)), default=0.0)

    def _gap(self, run: Mapping[str, Array], tensor: str, value: int) -> float:
        return gap_in(self._found, run, tensor, value) or 0.0

    def _added(self, value: int) -> float:
        """What one layer may add to a value, which goes with the largest number there."""
        return float(np.max(self._found.added[value].atol))

    def floor(self, wide: Mapping[int, Limit]) -> dict[int, Noise]:
        """For each value the rounding that has been collected on the way to it.

        Ahead of the fault it is what the normal run is off by. Behind it, it is what the healed run is off by, and what
        the fault would have passed on.
        """
        found, floor = self._found, {}
        at_fault = {value: noise.max_abs for value, noise in self._steps.values()}
        for value in found.reference.values:
            pair = None if value.held is None or value.constant else found.pair(value.index)
            if pair is None or pair.tensor not in found.candidate.tapped or value.dtype.startswith(("int", "bool")):
                continue
            if pair.tensor not in self._behind:
                off = self._gap(found.candidate.tapped, pair.tensor, value.index)
            elif value.index in at_fault or pair.tensor in self._steps:
                off = at_fault.get(value.index, 0.0) + self._brought * self._added(value.index)
            else:
                off = self._gap(self.healed, pair.tensor, value.index) + self._brought * self._added(value.index)
            if off <= float(np.max(wide[value.index].atol)):
                floor[value.index] = Noise(off, off, assumed=True)
        return floor
