"""What rounding explains: the limit of a value, and which of its elements are mask constants.

See docs/how-it-works.md for the calibration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import largest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from layerdiff.model import Noise, Reference, Tolerance

    Array = NDArray[Any]

# How much farther than its own float64 twin a healthy export may be. Two kernels that round differently are each one
# floor away from the exact result, so at most two apart; the worst of many elements, fused multiply-adds and the
# approximate exp, tanh and erf of runtimes take the rest. Calibrated on the zoo: see docs/how-it-works.md.
NOISE_FACTOR = 12.0
# A few units in the last place of the largest value: the floor of a value that happened to round exactly is not zero.
EPSILON_FACTOR = 16.0

EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
# Of eight-bit floats every element may be one step off: a value beside the border of two steps may fall either way.
_STEP = {"float8_e4m3fn": 2.0**-3, "float8_e4m3fnuz": 2.0**-3, "float8_e5m2": 2.0**-2, "float8_e5m2fnuz": 2.0**-2}


# Attention masks are written as -1e4, -65504, -1e9 or the smallest float, among scores of ordinary size. Their rounding
# says nothing about the scores, so elements this much larger than the small ones are judged relative to themselves.
MASK_RATIO = 1e5
MASK_SMALLEST = 1e3
MASK_TOLERANCE = 1e-3
MASK_KINDS = 4


def mask_like(array: Array) -> NDArray[np.bool_]:
    """Which elements of a float array are mask constants rather than numbers of the ordinary size of the rest."""
    bound = mask_bound(array)
    if bound == np.inf:
        return np.zeros(array.shape, bool)
    with np.errstate(over="ignore"):
        return np.asarray(np.abs(array).astype(np.float64) > bound)


def mask_bound(array: Array) -> float:
    """The magnitude above which an element is a mask constant; infinity where there are none."""
    if largest(array) <= MASK_SMALLEST:  # NaN is not: the rest is looked at more closely
        return np.inf
    with np.errstate(over="ignore"):
        if array.size < 2 or not (top := float(np.nanmax(np.abs(array), initial=0.0))) > MASK_SMALLEST:
            return np.inf
        picks = np.abs(array.reshape(-1)[:: max(1, array.size // 4096)]).astype(np.float64)
    picks = picks[np.isfinite(picks)]
    if picks.size and top <= MASK_RATIO * _at_most_a_tenth(picks):  # quickly told, unlike the quantile itself
        return np.inf
    if (
        np.unique(picks[picks > MASK_SMALLEST]).size > MASK_KINDS
    ):  # numbers of every size are no mask; zeros are not few
        picks = picks[picks > 0]
    return max(MASK_SMALLEST, MASK_RATIO * _a_tenth(picks)) if picks.size else np.inf


def _at_most_a_tenth(picks: Array) -> float:
    """A number that is not above the lower decile of some."""
    place = (picks.size - 1) // 10
    return float(np.partition(picks, place)[place])


def _a_tenth(picks: Array) -> float:
    """The lower decile of some numbers, as `numpy.quantile` has it, which takes ten times as long for a few."""
    before = int(place := (picks.size - 1) * 0.1)
    behind = min(before + 1, picks.size - 1)
    low, high = np.partition(picks, (before, behind))[[before, behind]]
    share = place - before
    return float(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))


@dataclass(frozen=True, slots=True)
class Limit:
    """What is allowed for a value: ``atol + rtol * |expected|``, where `atol` may differ from row to row."""

    rtol: float
    atol: float | Array


def limit_for(expected: Array, dtype: str, noise: Noise | None) -> float | Array:
    """The largest absolute error that rounding explains, in the units of the values; for each row where rows differ."""
    if expected.dtype.kind not in "fc":
        return 0.0
    scale = scale_of(expected)
    floor = 0.0 if noise is None else (noise.max_abs if noise.rows is None else noise.rows)
    return NOISE_FACTOR * floor + EPSILON_FACTOR * EPSILON.get(dtype, 2.0**-23) * scale


def scale_of(expected: Array) -> float:
    """The largest magnitude without what is not finite and without mask constants."""
    scale = largest(expected)
    if scale <= MASK_SMALLEST:
        return scale
    finite = np.abs(expected[np.isfinite(expected) & ~mask_like(expected)])
    return float(finite.max()) if finite.size else 0.0


def rounding_limit(expected: Array, dtype: str, noise: Noise | None) -> Limit:
    """What rounding explains in every element."""
    return Limit(_STEP.get(dtype, 0.0), limit_for(expected, dtype, noise))


def own_size_limit(dtype: str) -> Limit:
    """A few units in the last place of each number, however small it is beside the others."""
    return Limit(EPSILON_FACTOR * EPSILON.get(dtype, 2.0**-23), 0.0)


def allowances(expected: Array, tolerance: Tolerance | Limit) -> Array:
    """The error that each element may have: ``atol + rtol * |expected|``, and more for mask constants."""
    allowed = np.broadcast_to(tolerance.atol + tolerance.rtol * np.abs(expected), expected.shape)
    if expected.dtype.kind not in "fc":
        return np.asarray(allowed)
    return np.where(mask_like(expected), np.maximum(allowed, MASK_TOLERANCE * np.abs(expected)), allowed)


def with_noise(limits: Mapping[int, Limit], floor: Mapping[int, Noise]) -> dict[int, Limit]:
    """The limits of values without a noise floor, with one that is the same for all rows."""
    noise = {index: NOISE_FACTOR * known.max_abs for index, known in floor.items()}
    return {index: Limit(limit.rtol, limit.atol + noise.get(index, 0.0)) for index, limit in limits.items()}


def limits_for(
    reference: Reference, floor: Mapping[int, Noise], tolerance: Tolerance | None, only: Iterable[int] | None = None
) -> dict[int, Limit]:
    """What is allowed for every value that has numbers, by value index: the fixed tolerance, or the noise floor's.

    For some values only, where these are given.
    """
    values = reference.values if only is None else [reference.values[index] for index in only]
    known = {v.index: v for v in values if v.held is not None}
    if tolerance is not None:
        return dict.fromkeys(known, Limit(tolerance.rtol, tolerance.atol))
    return {
        index: rounding_limit(value.array, value.dtype, floor.get(index))
        for index, value in known.items()
        if value.array is not None
    }
