"""What a layer's weight and bias become when the affine operators behind it are folded in, in double precision.

A BatchNorm in eval mode, a multiplication or an addition of constants per channel: each gives ``a y + c`` for a layer's
result ``y = W x + b``, so ``a W`` and ``a b + c`` are the weight and bias of the layer that does both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from layerdiff.blocks import BLOCK
from layerdiff.operators import base_name, is_batch_norm, is_reshaping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

HEAVY = frozenset({"convolution", "onnx.ConvTranspose", "addmm", "mm", "bmm", "linear"})
# A fold rounds the factor, the product and the sum once each.
EQUAL = 2e-6


@dataclass(frozen=True, slots=True)
class Fold:
    """A layer with some of the affine operators behind it: factor and shift per channel, and what they are from."""

    weight: int
    factor: Array
    shift: Array
    room: Array
    scaling: tuple[int, ...]
    shifting: tuple[int, ...]


def folds(reference: Reference, heavy: Site, readers: Mapping[int, Sequence[Site]]) -> Iterator[Fold]:
    """Every fold that starts at a layer, the longest last."""
    weight, bias = _own(reference, heavy)
    if weight is None:
        return
    array = _array(reference, weight)
    channels = _channels(reference, heavy, array)
    if channels is None:
        return
    zero = np.zeros(channels)
    first = (
        zero if bias is None else np.broadcast_to(_array(reference, bias).astype(np.float64).reshape(-1), (channels,))
    )
    found = Fold(weight, np.ones(channels), first, np.abs(first), (), () if bias is None else (bias,))
    value = heavy.outputs[0]
    while (after := _only_reader(readers, value)) is not None:
        if not is_reshaping(after.op):
            step = _affine(reference, after, value, channels)
            if step is None:
                return
            scale, shift, terms, scaling, shifting = step
            found = Fold(
                found.weight,
                found.factor * scale,
                found.shift * scale + shift,
                found.room * np.abs(scale) + terms,
                (*found.scaling, *scaling),
                (*found.shifting, *shifting),
            )
            yield found
        value = after.outputs[0]


def _own(reference: Reference, heavy: Site) -> tuple[int | None, int | None]:
    constants = [v for v in heavy.inputs if reference.values[v].constant]
    weight = next((v for v in constants if len(reference.values[v].shape) >= 2), None)
    bias = next((v for v in constants if len(reference.values[v].shape) == 1), None)
    return weight, bias


def _array(reference: Reference, value: int) -> Array:
    known = reference.values[value]
    found = known.array if known.parameter is None else reference.parameters[known.parameter]
    assert found is not None
    return found


def output_axis(heavy: Site) -> int:
    """Where a layer's weight keeps its output channels, as the operator reads it."""
    if base_name(heavy.op) in ("convolution", "onnx.ConvTranspose"):
        return 1 if heavy.arguments.get("transposed") or heavy.op.endswith("ConvTranspose") else 0
    return 0 if base_name(heavy.op) == "linear" or heavy.arguments.get("transB") else -1


def _channels(reference: Reference, heavy: Site, weight: Array) -> int | None:
    """How many output channels a layer has; None where its weight does not hold one slice for each."""
    shape = reference.values[heavy.outputs[0]].shape
    if len(shape) < 2 or weight.ndim < 2:
        return None
    count = shape[1] if "conv" in base_name(heavy.op).lower() else shape[-1]
    return count if weight.shape[output_axis(heavy)] == count else None


def _only_reader(readers: Mapping[int, Sequence[Site]], value: int) -> Site | None:
    found = readers.get(value, ())
    return found[0] if len(found) == 1 else None


class _Step(NamedTuple):
    """Scale and shift per channel of one operator, and the values that make up each."""

    scale: Array
    shift: Array
    terms: Array  # the size of what the shift is summed from
    scaling: tuple[int, ...]
    shifting: tuple[int, ...]


def _affine(reference: Reference, site: Site, value: int, channels: int) -> _Step | None:
    """Scale and shift per channel of an operator, with the values that make up each; None for any other operator."""
    if is_batch_norm(site.op):
        return _norm(reference, site, value, channels)
    kind = base_name(site.op).removeprefix("onnx.").lower()
    others = [v for v in site.inputs if v != value]
    one, none = np.ones(channels), np.zeros(channels)
    forward = kind in ("div", "sub") and site.inputs[0] == value
    if (kind not in ("mul", "add") and not forward) or len(site.inputs) - len(others) != 1:
        return None
    number = _per_channel(reference, site, others, value, channels)
    if number is None:
        return None
    number = number * float(site.arguments.get("alpha", 1) if kind in ("add", "sub") else 1)
    if kind in ("mul", "div"):
        return _Step(number if kind == "mul" else one / number, none, none, tuple(others), tuple(others))
    return _Step(one, number if kind == "add" else -number, np.abs(number), (), tuple(others))


def _per_channel(reference: Reference, site: Site, others: Sequence[int], value: int, channels: int) -> Array | None:
    """The other operand as one number for each channel; None where it varies otherwise, or is no constant."""
    if not others:
        other = site.arguments.get("other")
        return None if not isinstance(other, (int, float)) else np.full(channels, float(other))
    if len(others) > 1 or not reference.values[others[0]].constant:
        return None
    array, shape = _array(reference, others[0]).astype(np.float64), reference.values[value].shape
    if array.size == 1:
        return np.full(channels, float(array.reshape(-1)[0]))
    if array.size != channels or array.ndim > len(shape):
        return None
    padded = (1,) * (len(shape) - array.ndim) + array.shape
    axis = next(i for i, size in enumerate(padded) if size == channels)
    return array.reshape(-1) if shape[axis] == channels and axis in (1, len(shape) - 1) else None


def _norm(reference: Reference, site: Site, value: int, channels: int) -> _Step | None:
    values = [v for v in site.inputs if v != value]
    if len(values) not in (2, 4) or site.arguments.get("training") or site.arguments.get("training_mode"):
        return None
    if any(not reference.values[v].constant for v in values):
        return None
    arrays = [_array(reference, v).astype(np.float64) for v in values]
    if any(a.shape != (channels,) for a in arrays):
        return None
    gamma, beta = arrays[:2] if len(arrays) == 4 else (np.ones(channels), np.zeros(channels))
    mean, var = arrays[-2:]
    epsilon = float(site.arguments.get("eps", site.arguments.get("epsilon", 1e-5)))
    factor = gamma / np.sqrt(var + epsilon)
    scaling = (values[0], values[-1]) if len(values) == 4 else (values[-1],)
    shifting = (values[1], values[-2]) if len(values) == 4 else (values[-2],)
    return _Step(factor, beta - factor * mean, np.abs(beta) + np.abs(factor * mean), scaling, shifting)


class FoldGaps(NamedTuple):
    """How far a constant is from a folded weight."""

    wrong: Array
    """Per channel: whether it differs by more than a fold rounds."""
    max_abs: float
    rel_l2: float


def fold_gaps(weight: Array, factor: Array, got: Array, room: Array | float = 0.0) -> FoldGaps:
    """A constant against a weight times a factor per channel; channels come first in all of them."""
    rows, sides = weight.reshape(weight.shape[0], -1), got.reshape(weight.shape[0], -1)
    gaps, sizes, squares = np.zeros(len(rows)), np.zeros(len(rows)), np.zeros(2)
    step = max(1, BLOCK // max(1, rows.shape[1]))
    # Single precision rounds a tenth of what is allowed for.
    factor = factor.astype(np.float32) if weight.dtype == got.dtype == np.float32 else factor
    for begin in range(0, len(rows) if rows.shape[1] else 0, step):
        part = slice(begin, begin + step)
        wanted = rows[part] * factor[part, None]
        gap = sides[part] - wanted
        squares += np.vdot(gap, gap), np.vdot(wanted, wanted)
        gaps[part], sizes[part] = _extremes(gap), _extremes(wanted)
    wrong = ~(gaps <= EQUAL * sizes + room)
    apart, size = np.sqrt(squares)
    return FoldGaps(wrong, float(gaps.max(initial=0.0)), float(apart) / max(float(size), 1e-300))


def _extremes(rows: Array) -> Array:
    """The largest magnitude in each row."""
    return np.asarray(np.maximum(rows.max(axis=1), -rows.min(axis=1)))


def views_of(weight: Array, constants: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """The constants that may be a weight whose output channels come first, in its own layout."""
    for name, array in constants.items():
        if array.size != weight.size or array.dtype.kind != "f":
            continue
        turned = [array] if array.ndim < 2 else [array, np.swapaxes(array, 0, 1), np.swapaxes(array, 0, -1)]
        for view in turned:
            if np.squeeze(view).shape == np.squeeze(weight).shape:
                yield name, view.reshape(weight.shape)
                if weight.shape[0] != weight.shape[-1]:
                    break


def bias_room(fold: Fold) -> Array:
    """How much a folded bias may be off: its terms cancel."""
    return 4 * EQUAL * fold.room
