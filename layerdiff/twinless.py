"""What can be told of a layer without the float64 twin: that it is right from right inputs, or far from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerdiff.align.values import largest_gap_in, same_in
from layerdiff.graph import RANDOM
from layerdiff.limits import Limit, rounding_limit
from layerdiff.localise import reference_region
from layerdiff.noise import floor_of_step
from layerdiff.shelf import outline, size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.model import Noise

    Array = np.ndarray[Any, Any]

# How many times what one layer may add all of them together may have added.
COLLECTED = 1024.0


def collected(added: Mapping[int, Limit]) -> dict[int, Limit]:
    """What all layers together may have added, of what one may add."""
    return {index: Limit(limit.rtol, COLLECTED * limit.atol) for index, limit in added.items()}


def draws(candidate: Candidate) -> bool:
    """Whether a node that counts draws at random."""
    graph = candidate.graph
    return any(graph.nodes[index].op in RANDOM for index in graph.live_nodes)


def holds(found: Alignment, run: Mapping[str, Array], tensor: str, value: int, limit: Limit) -> bool:
    """Whether a tensor of a run is there, and holds as many numbers as a value and the same ones."""
    expected, actual = found.reference.values[value].array, outline(run, tensor)
    if expected is None or actual is None or size_of(actual) != expected.size:
        return False
    return same_in(run, tensor, value, expected, limit)


def floor_alone(found: Alignment, value: int) -> Noise | None:
    """The rounding of the operators that lead to a value from the values that have a counterpart."""
    sites, _ = reference_region(found, value)
    return floor_of_step(found.reference, sorted(sites), value)


def alone(found: Alignment, tensor: str) -> Mapping[str, Array]:
    """The run in which a tensor is computed from right inputs; an input of the graph holds what is fed."""
    return found.isolated if tensor in found.isolated else found.candidate.tapped


def adds_its_rounding(found: Alignment, tensor: str, value: int) -> bool:
    """Whether a tensor comes out right from right inputs, to the rounding of the operators in between."""
    own = floor_alone(found, value)
    return own is not None and is_within(found, tensor, value, own)


def is_within(found: Alignment, tensor: str, value: int, own: Noise) -> bool:
    """The same, where that rounding is known."""
    known = found.reference.values[value]
    return known.array is not None and holds(
        found, alone(found, tensor), tensor, value, rounding_limit(known.array, known.dtype, own)
    )


def gap_in(found: Alignment, run: Mapping[str, Array], tensor: str, value: int) -> float | None:
    """How far a tensor of a run is from a value; None where it is not there, of another size, or no number."""
    expected, actual = found.reference.values[value].array, outline(run, tensor)
    if expected is None or actual is None or size_of(actual) != expected.size or expected.dtype.kind not in "fc":
        return None
    return largest_gap_in(run, tensor, value, expected)
