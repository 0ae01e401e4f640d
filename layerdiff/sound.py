"""A graph that is sound: fed what it should read, every layer gives what it should give. No noise floor is needed then.

The float64 twin tells how much rounding a value has collected on its way. It costs more than all else together. Where
one run of the graph, cut open at every tensor with a counterpart, shows that no layer adds more than a few units in the
last place, what has been collected *is* rounding, and the twin has nothing to say. Anything else, however small, is
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
from layerdiff.graph import RANDOM
from layerdiff.localise import reference_region
from layerdiff.measure import Limit, limits_for, rounding_limit, with_noise
from layerdiff.model import Noise
from layerdiff.noise import floor_of_step

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

# How many times what one layer may add all of them together may have added, to be looked at here at all.
COLLECTED = 1024.0
# Up to this share of the tensors, it is less work to run what leads to each than to run the whole graph again.
FEW = 0.25
# A step that adds less than this share of what its tensor is off by is not where the error comes from.
MINOR = 0.5
# How much farther off than the examined run the model that ships may be: its fused kernels round in another order.
SHIPPED = 3.0


@dataclass(frozen=True, slots=True)
class Sound:
    """The alignment of a sound graph, and the rounding that stands in for the noise floor."""

    alignment: Alignment
    floor: Mapping[int, Noise]


def sound(reference: Reference, candidate: Candidate, outputs: OutputPairs) -> Sound | None:
    """The alignment of a graph of which every layer is right from right inputs; None where that cannot be said.

    `outputs` are judged without a noise floor.
    """
    added = limits_for(reference, {}, None)
    collected = {index: Limit(limit.rtol, COLLECTED * limit.atol) for index, limit in added.items()}
    if outputs.masks or _draws(candidate) or not _near(outputs, candidate.tapped, collected):
        return None
    found = only_by_values(reference, candidate, outputs, collected)
    if found is None:
        return None
    off = {tensor: value for tensor, value in found.forced().items() if not _as_read(found, tensor, value, added)}
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


def _draws(candidate: Candidate) -> bool:
    graph = candidate.graph
    return any(graph.nodes[index].op in RANDOM for index in graph.live_nodes)


def _near(outputs: OutputPairs, arrays: Mapping[str, Array], limits: Mapping[int, Limit]) -> bool:
    """Whether every output has a partner of its shape with about its numbers."""
    for value, name in outputs.tensors.items():
        expected = outputs.reference.values[value].array
        if expected is None or name not in arrays or arrays[name].shape != expected.shape:
            return False
        if not same_numbers(expected, arrays[name], limits[value]):
            return False
    return not outputs.unpaired


def _as_read(found: Alignment, tensor: str, value: int, limits: Mapping[int, Limit]) -> bool:
    """Whether a tensor is right in the normal run already: then nothing has to be put in to see what a layer adds."""
    expected, actual = found.reference.values[value].array, found.candidate.tapped.get(tensor)
    if expected is None or actual is None or actual.size != expected.size:
        return False
    return same_numbers(expected, actual, limits[value])


def _isolate(found: Alignment, off: Sequence[str]) -> None:
    """Run what leads to the tensors that are off once more, from what should be there; all where they are many."""
    off = [name for name in off if name in found.candidate.graph.producer]
    if len(off) > FEW * len(found.candidate.tapped):
        found.isolated = found.candidate.isolated(found.expected())
    elif off:
        found.isolated = found.candidate.isolated_in(off, found.expected())


def _right(found: Alignment, tensor: str, value: int, limits: Mapping[int, Limit]) -> bool:
    """Whether a tensor comes out right from right inputs; an input of the graph holds what is fed.

    Where a long sum rounds more than the limit that needs no noise floor, the floor of this one step is enough, or that
    the step adds less than half of what its tensor is off by in the normal run: a fault would be most of that.
    """
    held = found.isolated if tensor in found.isolated else found.candidate.tapped
    expected = found.reference.values[value].array
    if expected is None or tensor not in held or held[tensor].size != expected.size:
        return False
    if same_numbers(expected, held[tensor], limits[value]):
        return True
    if tensor in found.isolated and tensor in found.candidate.tapped and expected.dtype.kind in "fc":
        added, collected = (
            largest_gap(expected, arrays[tensor]) for arrays in (found.isolated, found.candidate.tapped)
        )
        if added <= MINOR * collected:
            return True
    sites, _ = reference_region(found, value)
    own = floor_of_step(found.reference, sorted(sites), value)
    dtype = found.reference.values[value].dtype
    return own is not None and same_numbers(expected, held[tensor], rounding_limit(expected, dtype, own))


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
    reference, tapped = found.reference, found.candidate.tapped
    floor = {}
    for value in reference.values:
        pair = None if value.held is None or value.constant else found.pair(value.index)
        array = value.array if pair is not None and pair.tensor in tapped else None
        if pair is None or array is None or array.dtype.kind not in "fc":
            continue
        off = largest_gap(array, tapped[pair.tensor])
        if value.index in outputs.tensors:
            shipped = found.candidate.shipped[outputs.tensors[value.index]]
            off = max(off, largest_gap(array, shipped)) if shipped is not None else off
        floor[value.index] = Noise(off, off, assumed=True)
    return floor
