"""A graph that is sound: no layer adds more than rounding to what it reads. No noise floor is needed then.

The float64 twin tells how much rounding a value has collected on its way. It costs more than all else together. Where
every tensor is right to a few units in the last place, off by little more than what it is computed from, or right from
right inputs, what has been collected *is* rounding, and the twin has nothing to say. Anything else, however small, is
left to the twin: this module never accuses, and what it cannot vouch for it leaves alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align import only_by_values
from layerdiff.align.values import same_numbers
from layerdiff.blocks import largest_gap
from layerdiff.errors import BackendError
from layerdiff.limits import Limit, own_size_limit, with_noise
from layerdiff.model import Noise
from layerdiff.operators import base_name
from layerdiff.twinless import adds_its_rounding, alone, collected, draws, gap_in, holds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference, Site
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

# What rounds each number by itself, and reads a constant besides.
_WITH_A_CONSTANT = frozenset({"add", "sub", "rsub", "clamp", "clamp_min", "clamp_max", "maximum", "minimum"})
# A step that adds less than this share of what its tensor is off by is not where the error comes from.
MINOR = 0.5
# What is off by no more than so many times what it is computed from is not where the error comes from either.
GROWN = 2.0
# How much farther off than the examined run the model that ships may be: its fused kernels round in another order.
SHIPPED = 3.0


@dataclass(frozen=True, slots=True)
class Sound:
    """The alignment of a sound graph, and the rounding that stands in for the noise floor."""

    alignment: Alignment
    floor: Mapping[int, Noise]


def sound(reference: Reference, candidate: Candidate, outputs: OutputPairs, added: Mapping[int, Limit]) -> Sound | None:
    """The alignment of a graph of which every layer is right from right inputs; None where that cannot be said.

    `outputs` are judged without a noise floor; `added` is what one layer may add to each value.
    """
    if outputs.masks or draws(candidate) or not near(outputs, candidate.tapped, collected(added)):
        return None
    found = only_by_values(reference, candidate, outputs, collected(added))
    if found is None or not all(_exact(found, site) for site in reference.sites):
        return None
    forced = found.forced()
    off = {tensor: value for tensor, value in forced.items() if not _as_read(found, tensor, value, added)}
    off = {tensor: value for tensor, value in off.items() if not _brought(found, forced, tensor, added)}
    try:
        _isolate(found, list(off))
    except BackendError:  # what takes no values from outside is looked into the other way
        return None
    if not all(_right(found, tensor, value, added) for tensor, value in off.items()):
        return None
    if not _ships(outputs, candidate, added):
        return None
    floor = _collected(found, outputs)
    found.limits = with_noise(added, floor)
    return Sound(found, floor)


def near(
    outputs: OutputPairs, arrays: Mapping[str, Array] | Mapping[str, Array | None], limits: Mapping[int, Limit]
) -> bool:
    """Whether every output has a partner of its shape with about its numbers."""
    for value, name in outputs.tensors.items():
        expected, actual = outputs.reference.values[value].array, arrays.get(name)
        if expected is None or actual is None or actual.shape != expected.shape:
            return False
        if not same_numbers(expected, actual, limits[value]):
            return False
    return not outputs.unpaired


def _exact(found: Alignment, site: Site) -> bool:
    """Whether what adds a constant, or cuts off at one, gives out what went in to the last digits of each number.

    Beside large numbers an epsilon is less than rounding; a logarithm or a quotient of the small ones is not.
    """
    reference, tapped = found.reference, found.candidate.tapped
    ends = rounds_each(reference, site)
    if ends is None:
        return True
    pairs = [(index, found.pair(index)) for index in ends]
    sides = [(reference.values[i].array, tapped.get(pair.tensor)) for i, pair in pairs if pair is not None]
    known = [(e.reshape(-1), a.reshape(-1)) for e, a in sides if e is not None and a is not None and e.size == a.size]
    if len(known) != len(pairs) or known[0][0].size != known[1][0].size or known[1][0].dtype.kind != "f":
        return True
    (e, a), (expected, actual) = known
    allowed = np.abs(a - e) + own_size_limit(reference.values[site.outputs[0]].dtype).rtol * np.abs(expected)
    with np.errstate(invalid="ignore"):
        return bool(np.all((np.abs(actual - expected) <= allowed) | (actual == expected)))


def rounds_each(reference: Reference, site: Site) -> tuple[int, int] | None:
    """What goes into and comes out of a site that rounds each number by itself and reads a constant besides."""
    read = [index for index in site.inputs if not reference.values[index].constant]
    return (read[0], site.outputs[0]) if base_name(site.op) in _WITH_A_CONSTANT and len(read) == 1 else None


def _as_read(found: Alignment, tensor: str, value: int, limits: Mapping[int, Limit]) -> bool:
    """Whether a tensor is right in the normal run already: then nothing has to be put in to see what a layer adds."""
    return holds(found, found.candidate.tapped, tensor, value, limits[value])


def _brought(found: Alignment, forced: Mapping[str, int], tensor: str, limits: Mapping[int, Limit]) -> bool:
    """Whether a tensor is off by little more than what it is computed from is, each as a multiple of its limit."""
    _, start = found.candidate.graph.region(tensor, forced)
    sources = [_times_off(found, name, forced[name], limits) for name in start if name in forced]
    own = _times_off(found, tensor, forced[tensor], limits)
    return own is not None and own <= GROWN * max((times for times in sources if times is not None), default=0.0)


def _times_off(found: Alignment, tensor: str, value: int, limits: Mapping[int, Limit]) -> float | None:
    gap, limit = gap_in(found, found.candidate.tapped, tensor, value), float(np.max(limits[value].atol))
    return None if gap is None or limit == 0 else gap / limit


def _isolate(found: Alignment, off: Sequence[str]) -> None:
    """Run what leads to the tensors that are off once more, from what should be there."""
    off = [name for name in off if name in found.candidate.graph.producer]
    if off:
        found.isolated = found.candidate.isolated(found.expected(), off)


def _right(found: Alignment, tensor: str, value: int, limits: Mapping[int, Limit]) -> bool:
    """Whether a tensor comes out right from right inputs.

    Where a long sum rounds more than the limit that needs no noise floor, it is enough that the step adds little of
    what its tensor is off by in the normal run, or no more than its own noise floor.
    """
    if holds(found, alone(found, tensor), tensor, value, limits[value]) or _adds_little(found, tensor, value):
        return True
    return adds_its_rounding(found, tensor, value)


def _adds_little(found: Alignment, tensor: str, value: int) -> bool:
    """Whether a step adds less than half of what its tensor is off by in the normal run: a fault would be most."""
    own, normal = (gap_in(found, run, tensor, value) for run in (found.isolated, found.candidate.tapped))
    return own is not None and normal is not None and own <= MINOR * normal


def _ships(outputs: OutputPairs, candidate: Candidate, limits: Mapping[int, Limit]) -> bool:
    """Whether the model that ships is about as near as the run that was examined."""
    for value, name in outputs.tensors.items():
        expected, shipped = outputs.reference.values[value].array, candidate.shipped.get(name)
        assert expected is not None
        if shipped is None or shipped.shape != expected.shape:
            return False
        examined = SHIPPED * largest_gap(expected, candidate.tapped[name])
        limit = limits[value]
        if not same_numbers(expected, shipped, Limit(limit.rtol, np.maximum(limit.atol, examined))):
            return False
    return True


def _collected(found: Alignment, outputs: OutputPairs) -> dict[int, Noise]:
    """For each value what its tensor is off by in the normal run: at most that is the rounding on the way to it."""
    reference, candidate = found.reference, found.candidate
    floor = {}
    for value in reference.values:
        pair = None if value.held is None or value.constant else found.pair(value.index)
        off = None if pair is None else gap_in(found, candidate.tapped, pair.tensor, value.index)
        if off is None:
            continue
        array, shipped = value.array, candidate.shipped.get(outputs.tensors.get(value.index, ""))
        off = max(off, largest_gap(array, shipped)) if array is not None and shipped is not None else off
        floor[value.index] = Noise(off, off, assumed=True)
    return floor
