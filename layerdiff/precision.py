"""Errors that a number format explains: rounding to half precision or to eight bits, all over a graph.

Such a graph has no single culprit. What each layer introduces is held against what its format predicts: rounding to
nearest is off by at most half a unit, so relative errors stay within a few units of the format; a quantised layer must
not be asked for values outside the range that its scale and zero point can represent. What exceeds that is an origin
like any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import parameters_of_sites
from layerdiff.formats import ALLOWED, INTEGERS, SPARED, USUAL, coarseness, format_of, relative
from layerdiff.operators import base_name

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerdiff.align import Alignment
    from layerdiff.graph import Node

    Array = np.ndarray[Any, Any]

# Percentile calibration leaves out one number in a thousand on purpose, entropy more, and of one input it may be a few.
SATURATED_SHARE = 1e-2
SATURATED_STEPS = 2.0
SATURATED_RANGE = 5e-3
CLIPS = frozenset({"relu", "relu6", "hardtanh", "clamp", "clamp_min", "clamp_max"})


@dataclass(frozen=True, slots=True)
class Rounded:
    """A wrong tensor whose error its number format explains."""

    value: int
    tensor: str
    format: str
    rel_l2: float


def explained(
    alignment: Alignment, tensor: str, value: int, stop: Iterable[str], wrong: frozenset[str] = frozenset()
) -> Rounded | None:
    """The format that explains what a tensor introduces; None when none is in play or the error exceeds it.

    Nothing is explained by rounding where one of the constants that are `wrong` is read.
    """
    graph = alignment.candidate.graph
    nodes, _ = graph.region(tensor, stop)
    if wrong and any(name in wrong for index in nodes for name in graph.nodes[index].inputs):
        return None
    found = format_of(alignment.candidate, nodes)
    if found is None:
        return None
    in_integers, coarse = found in INTEGERS, coarseness(alignment.candidate, nodes)
    for meant in (value, *(clipped(alignment, value) if in_integers else ())):
        error = relative_error(alignment, tensor, meant)
        beyond = relative_error(alignment, tensor, meant, spared=SPARED.get(found, 0.0))
        if error is None or beyond is None or beyond > max(ALLOWED[found], coarse):
            continue
        if (
            in_integers
            and error > max(USUAL[found], coarse)
            and any(_saturates(alignment, graph.nodes[n], tensor, meant) for n in nodes)
        ):
            continue
        return Rounded(value, tensor, found, error)
    return None


def clipped(alignment: Alignment, value: int) -> tuple[int, ...]:
    """What the model's only reader makes of a value, where that clips it: a quantiser lets the range do its work."""
    members = set(alignment.families.members(value))
    readers = [site for site in alignment.reference.sites if members.intersection(site.inputs)]
    readers = [site for site in readers if not members.issuperset(site.outputs)]
    return readers[0].outputs[:1] if len(readers) == 1 and base_name(readers[0].op) in CLIPS else ()


def is_diffuse(alignment: Alignment, rounded: Iterable[Rounded]) -> bool:
    """Whether rounding is everywhere: at least four layers, and a fifth of all values or layers that were compared.

    Dynamic quantisation touches a few operators of each block, and every block. In a small network two layers are
    enough, if they are half of those with parameters.
    """
    roots = {alignment.root(r.value) for r in rounded}
    compared = set(alignment.forced().values())
    layers, all_layers = _layers(alignment, roots), _layers(alignment, compared)
    if len(layers) >= 4 and (len(roots) >= len(compared) / 5 or len(layers) >= len(all_layers) / 5):
        return True
    weighty = {
        alignment.reference.layer_of(alignment.reference.sites[site])
        for site, names in parameters_of_sites(alignment.reference).items()
        if names
    } & all_layers
    return len(layers & weighty) >= max(2, len(weighty) / 2)


def _layers(alignment: Alignment, values: Iterable[int]) -> set[str]:
    makers = (alignment.reference.producer(alignment.root(value)) for value in values)
    return {alignment.reference.layer_of(site) for site in makers if site is not None}


def relative_error(alignment: Alignment, tensor: str, value: int, *, spared: float = 0.0) -> float | None:
    """What a tensor introduces, as relative L2; None where it is not finite wherever the expected value is.

    So much of each element's absolute error is left out as `spared` says.
    """
    expected, actual = alignment.reference.values[value].array, alignment.isolated.get(tensor)
    return None if expected is None or actual is None else relative(expected, actual, spared)


def _saturates(alignment: Alignment, node: Node, tensor: str, value: int) -> bool:
    """Whether a QuantizeLinear is asked for values that its scale and zero point cannot represent.

    A quantiser removes a Relu or Clip and lets the range do its work. So where the tensor is what comes out of that
    very pair of nodes, its own expected value is what must fit the range; elsewhere what goes in must.
    """
    if node.op != "QuantizeLinear" or node.inputs[0] not in alignment.candidate.tapped:
        return False
    constants = alignment.candidate.constants
    scale = constants.get(node.inputs[1])
    zero = constants.get(node.inputs[2]) if len(node.inputs) > 2 else np.zeros((), np.uint8)
    if scale is None or zero is None or scale.size != 1:
        return False
    graph = alignment.candidate.graph
    maker = graph.nodes[graph.producer[tensor]] if tensor in graph.producer else None
    own = maker is not None and maker.op == "DequantizeLinear" and maker.inputs[0] in node.outputs
    known = value if own else alignment.forced().get(node.inputs[0])
    known = known if own or known is None else next(iter(clipped(alignment, known)), known)
    expected = None if known is None else alignment.reference.values[known].array
    given = alignment.isolated.get(node.inputs[0], alignment.candidate.tapped[node.inputs[0]])
    values = (given if expected is None else expected).astype(np.float64)
    limits = np.iinfo(zero.dtype)
    step, offset = float(scale.reshape(-1)[0]), float(zero.reshape(-1)[0])
    low, high = (limits.min - offset) * step, (limits.max - offset) * step
    if low == 0:  # a Relu went into the range: clipping below zero is meant
        low = -np.inf
    room = max(SATURATED_STEPS * step, SATURATED_RANGE * (limits.max - limits.min) * step)
    beyond = np.maximum(low - values, values - high) > room
    return bool(np.mean(beyond) > SATURATED_SHARE)
