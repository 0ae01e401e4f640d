"""Which of two to blame: a layer, or the BatchNorm that was folded into it. The weights in the file tell, else values.

A fold leaves one weight ``f W`` and one bias ``f (b - mean) + beta`` for both, with ``f = gamma / sqrt(var + eps)``.
What no factor per channel makes of the layer's weight is the layer's own fault, whatever else was folded into it, and a
fold that is right acquits the norm. Another factor or another bias can be either's: then the one that is not accused
is named as equally possible.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import (
    by_output_channel,
    carried_as,
    channel_factors,
    constants_read,
    parameters_of_sites,
)
from layerdiff.operators import base_name

if TYPE_CHECKING:
    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

# What a BatchNorm is folded into.
HEAVY = frozenset({"convolution", "addmm", "mm"})
# Folding multiplies in float32 and stores the product: a few units in the last place of the weight.
_TOLERANCE = 1e-5


class Verdict(Enum):
    """What the weights of a fold say."""

    RIGHT = "right"  # what is wrong is not in them
    LAYER = "layer"  # the layer's own weight is not in it
    NORM = "norm"  # it is in it, with another factor, or beside another bias: either of the two could do that


def unfolded(alignment: Alignment, origin: Origin, sites: list[Site]) -> tuple[list[Site], list[Site]]:
    """The sites to blame, without the innocent one of a fold, and those that could be to blame as well."""
    norms = [s for s in sites if "batch_norm" in base_name(s.op)]
    heavy = [s for s in sites if base_name(s.op) in HEAVY]
    damaged = [s for s in heavy if _is_damaged(alignment, origin, s)]
    if len(damaged) == 1:
        return damaged, []
    if len(norms) != 1 or len(heavy) != 1 or heavy[0].outputs[0] not in norms[0].inputs:
        return sites, []
    names = parameters_of_sites(alignment.reference)
    rest = [s for s in sites if s not in (norms[0], heavy[0])]
    shapes = {alignment.reference.parameters[n].shape for n in names.get(heavy[0].index, ())}
    if rest and not any(array.shape in shapes for array in constants_of(alignment, origin)):
        return sites, []  # the whole branch is absent: no weight of it is in the region
    verdict = _verdict(alignment, origin, heavy[0], norms[0], shared=bool(rest))
    if verdict is Verdict.RIGHT:
        return rest or heavy, []
    return (norms, heavy) if verdict is Verdict.NORM else (heavy, [])


def _is_damaged(alignment: Alignment, origin: Origin, site: Site) -> bool:
    """Whether the weight of a layer is in the file, and is not the model's whatever was folded into it."""
    weight = _weight(alignment.reference, site)
    carried = [] if weight is None else carried_as(weight, constants_of(alignment, origin))
    if weight is None or not carried:
        return False
    residuals = [channel_factors(weight, array)[1] for array in carried]
    residuals += [channel_factors(weight.swapaxes(0, 1), array.swapaxes(0, 1))[1] for array in carried]
    return min(residuals) > 3 * _TOLERANCE


def _weight(reference: Reference, site: Site) -> Array | None:
    """A layer's weight with its output channels first; None where it has none."""
    own = constants_read(reference, site)
    return next((by_output_channel(reference, site, array) for array in own if array.ndim >= 2), None)


def holds_folded(alignment: Alignment, origin: Origin, sites: list[Site]) -> bool:
    """Whether a layer's weight is in the file with a factor per channel, as a BatchNorm behind it leaves it."""
    if not any("batch_norm" in base_name(s.op) for s in sites):
        return False
    heavy = [s for s in sites if base_name(s.op) in HEAVY]
    weights = [w for s in heavy if (w := _weight(alignment.reference, s)) is not None]
    constants = constants_of(alignment, origin)
    return any(channel_factors(w, a)[1] <= 3 * _TOLERANCE for w in weights for a in carried_as(w, constants))


def constants_of(alignment: Alignment, origin: Origin) -> list[Array]:
    """Every constant operand of an origin's nodes."""
    graph, constants = alignment.candidate.graph, alignment.candidate.constants
    return [constants[i] for n in origin.nodes for i in graph.nodes[n].inputs if i in constants]


def _verdict(alignment: Alignment, origin: Origin, heavy: Site, norm: Site, *, shared: bool) -> Verdict:
    """What the folded weights say, or the values where no weight is there.

    Where the region is shared with other operators, one factor for all channels is not held against the weights: a
    simplifier may have moved it there from a neighbour.
    """
    reference = alignment.reference
    names = parameters_of_sites(reference)
    weight = _weight(reference, heavy)
    carried = [] if weight is None else carried_as(weight, constants_of(alignment, origin))
    if weight is None or not carried:
        return _affine_verdict(alignment, origin, heavy)
    factors, residual = min((channel_factors(weight, array) for array in carried), key=lambda found: found[1])
    if residual > 3 * _TOLERANCE:
        return Verdict.LAYER
    statistics = {n.rpartition(".")[2]: reference.parameters[n] for n in names.get(norm.index, ())}
    if "running_var" not in statistics:
        return Verdict.NORM
    gamma = statistics.get("weight", np.ones_like(statistics["running_var"]))
    epsilon = float(norm.arguments.get("eps", norm.arguments.get("epsilon", 1e-5)))
    wanted_factors = gamma / np.sqrt(statistics["running_var"].astype(np.float64) + epsilon)
    moved = float(np.median(factors / wanted_factors)) if shared else 1.0
    right_factors = np.abs(factors - moved * wanted_factors).max() <= _TOLERANCE * float(np.abs(factors).max())
    bias = _carried_bias(alignment, origin, weight.shape[0])
    wanted = _folded_bias(reference, heavy, statistics, wanted_factors)
    scale = max(1.0, float(np.abs(wanted).max()))
    right_bias = bias is not None and np.abs(bias - wanted).max() <= _TOLERANCE * scale
    if right_bias and np.abs(wanted).max() > 0:
        # The bias of the fold is made with the norm's own factors: wrong ones would show in it.
        return Verdict.RIGHT if right_factors else Verdict.LAYER
    return Verdict.NORM


def _folded_bias(reference: Reference, heavy: Site, statistics: dict[str, Array], factors: Array) -> Array:
    biases = (a for a in constants_read(reference, heavy) if a.ndim == 1)
    own = heavy.arguments.get("beta", 1) * next(biases, np.zeros(1))
    shift = statistics.get("bias", np.zeros_like(factors))
    return np.asarray((own - statistics["running_mean"]) * factors + shift)


def _carried_bias(alignment: Alignment, origin: Origin, channels: int) -> Array | None:
    """The bias of the fold: whole numbers of its size are the amounts of a padding, or axes."""
    found = (a for a in constants_of(alignment, origin) if a.shape == (channels,) and a.dtype.kind == "f")
    return next((a.astype(np.float64) for a in found), None)


def _affine_verdict(alignment: Alignment, origin: Origin, heavy: Site) -> Verdict:
    """By values: what the candidate made is, per channel, an affine map of the convolution's result, or it is not."""
    expected = alignment.reference.values[heavy.outputs[0]].array
    actual = alignment.isolated.get(origin.slot.tensor)
    if expected is None or actual is None or expected.shape != actual.shape or expected.ndim < 3:
        return Verdict.LAYER
    x = np.moveaxis(expected.astype(np.float64), 1, 0).reshape(expected.shape[1], -1)
    y = np.moveaxis(actual.astype(np.float64), 1, 0).reshape(expected.shape[1], -1)
    x, y = x - x.mean(axis=1, keepdims=True), y - y.mean(axis=1, keepdims=True)
    slope = np.sum(x * y, axis=1, keepdims=True) / np.maximum(np.sum(x * x, axis=1, keepdims=True), 1e-300)
    affine = np.linalg.norm(y - slope * x) <= 1e-3 * np.linalg.norm(y)
    return Verdict.NORM if affine else Verdict.LAYER
