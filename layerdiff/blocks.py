"""Sums and extremes of large arrays, block by block: each block stays in the processor's cache for all that is asked.

Whole-array arithmetic in float64 moves every number through memory a dozen times. Here float32 numbers are widened one
block at a time, so what comes out is what float64 gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

BLOCK = 32_768
"""Elements: a few float64 buffers of this size fit into a second-level cache."""
# A difference of float32 numbers, rounded to float32, is at most this share off.
_ROUNDED = 2.0**-23


@dataclass(frozen=True, slots=True)
class Overall:
    """What one pass over two arrays shows; `within` counts elements, `worst` is the place of `max_abs`."""

    max_abs: float
    worst: int
    sum_gap: float
    squares_gap: float
    squares_e: float
    squares_a: float
    products: float
    max_ulp: float
    within: int


def largest(array: Array) -> float:
    """The largest magnitude; NaN where there is one."""
    if array.size == 0:
        return 0.0
    if array.dtype.kind != "f":
        return float(np.abs(array).max())
    with np.errstate(invalid="ignore"):
        return float(np.maximum(array.max(), -array.min()))


def ordinary(e: Array, a: Array, most: float) -> bool:
    """Whether both arrays are plain float32 memory of one size without NaN, Inf or magnitudes above a bound."""
    if e.size == 0 or e.size != a.size or e.dtype != np.float32 or a.dtype != np.float32:
        return False
    return bool(e.flags.c_contiguous and a.flags.c_contiguous and largest(e) <= most and largest(a) <= most)


def _blocks(e: Array, a: Array) -> Iterator[tuple[int, Array, Array]]:
    flat_e, flat_a = e.reshape(-1), a.reshape(-1)
    for begin in range(0, flat_e.size, BLOCK):
        yield begin, flat_e[begin : begin + BLOCK], flat_a[begin : begin + BLOCK]


def all_within(e: Array, a: Array, limit: float) -> bool | None:
    """Whether no element of two float32 arrays is farther apart than a limit; None where only float64 can tell.

    Also None where a difference is not finite. The arrays must be contiguous and of one size.
    """
    buffer = np.empty(min(BLOCK, e.size), np.float32)
    worst = np.float32(0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        for _, one, other in _blocks(e, a):
            gap = np.subtract(other, one, out=buffer[: one.size])
            worst = np.maximum(worst, np.maximum(gap.max(), -gap.min()))
            if not worst <= 2 * limit:  # far beyond it, or NaN: no need to look at the rest
                break
    apart = float(worst)
    if not np.isfinite(apart):
        return None
    if apart * (1 + _ROUNDED) <= limit:
        return True
    return False if apart * (1 - _ROUNDED) > limit else None


def largest_gap(e: Array, a: Array) -> float:
    """The largest distance of two arrays of one size, in memory order; equal infinities are not apart."""
    one, other = np.ascontiguousarray(e), np.ascontiguousarray(a).reshape(e.shape)
    worst = 0.0
    wide = np.complex128 if "c" in (e.dtype.kind, a.dtype.kind) else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        for _, left, right in _blocks(one, other):
            gap = np.abs(right.astype(wide) - left)
            top = float(gap.max())
            if not np.isfinite(top):
                same = (left == right) | (np.isnan(left) & np.isnan(right))
                top = float(np.where(same, 0.0, gap).max())
            worst = max(worst, top)
    return worst


def overall(e: Array, a: Array, limit: float) -> Overall:
    """Sums and extremes of two contiguous float32 arrays of ordinary, finite numbers, as float64 gives them."""
    size = min(BLOCK, e.size)
    wide_e, wide_a, gaps, units = (np.empty(size) for _ in range(4))
    bits = np.empty(size, np.int32)
    sums = np.zeros(5)
    worst, at, ulps, within = -1.0, 0, 0.0, 0
    for begin, one, other in _blocks(e, a):
        n = one.size
        we, wa, gap, unit, exponent = wide_e[:n], wide_a[:n], gaps[:n], units[:n], bits[:n]
        np.copyto(we, one)
        np.copyto(wa, other)
        np.subtract(wa, we, out=gap)
        np.abs(gap, out=gap)
        sums += (gap.sum(), gap @ gap, we @ we, wa @ wa, we @ wa)
        place = int(gap.argmax())
        if gap[place] > worst:
            worst, at = float(gap[place]), begin + place
        if worst > 0:
            # The exponent alone is the size of the number's unit times 2^23; of subnormal numbers it is that of the
            # smallest normal one.
            np.bitwise_and(one.view(np.int32), 0x7F800000, out=exponent)
            np.maximum(exponent, 0x00800000, out=exponent)
            np.copyto(unit, exponent.view(np.float32))
            np.divide(gap, unit, out=unit)
            ulps = max(ulps, float(unit.max()))
        within += n if gap[place] <= limit else int(np.count_nonzero(gap <= limit))
    apart, squares_gap, squares_e, squares_a, products = (float(x) for x in sums)
    return Overall(worst, at, apart, squares_gap, squares_e, squares_a, products, ulps * 2.0**23, within)
