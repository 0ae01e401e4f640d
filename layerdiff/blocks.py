"""Sums and extremes of large arrays, block by block: each block stays in the processor's cache for all that is asked.

Whole-array arithmetic in float64 moves every number through memory a dozen times.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

BLOCK = 65_536
"""Elements: four float32 buffers of this size fit into a second-level cache."""
TILE = 64
# Elements of whole rows: so many that of a matrix on its side, too, a few lie one behind the other.
AT_ONCE = 1 << 18
# A difference of float32 numbers, rounded to float32, is at most this share off.
_ROUNDED = 2.0**-23
_SMALLEST = np.float32(2.0**-126)


@dataclass(frozen=True, slots=True)
class Overall:
    """What one pass over two arrays shows; `within` counts elements, `worst` is the place of `max_abs`.

    `products` is the sum of an expected number times what the actual one is off by.
    """

    max_abs: float
    worst: int
    sum_gap: float
    squares_gap: float
    squares_e: float
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


def plain(e: Array, a: Array) -> bool:
    """Whether both arrays are plain float32 memory of one size."""
    if e.size == 0 or e.size != a.size or e.dtype != np.float32 or a.dtype != np.float32:
        return False
    return bool(e.flags.c_contiguous and a.flags.c_contiguous)


def blocks(array: Array, *, first: int = BLOCK) -> Iterator[Array]:
    """The numbers of an array, in memory order, a block at a time; the first may be smaller."""
    flat = array.reshape(-1)
    yield flat[:first]
    yield from (flat[begin : begin + BLOCK] for begin in range(first, flat.size, BLOCK))


def pairs_of_blocks(e: Array, a: Array) -> Iterator[tuple[int, Array, Array]]:
    """Where each block of two arrays of one size begins, and the numbers of both, in memory order."""
    flat_e, flat_a = e.reshape(-1), a.reshape(-1)
    for begin in range(0, flat_e.size, BLOCK):
        yield begin, flat_e[begin : begin + BLOCK], flat_a[begin : begin + BLOCK]


def rows_in_double(one: Array, other: Array) -> Iterator[tuple[slice, Array, Array]]:
    """Some rows of two arrays of one shape at a time, in double precision: which they are, and both as matrices."""
    if one.size == 0:
        return
    rows, others = (array.reshape(len(array) if array.ndim else 1, -1) for array in (one, other))
    step = max(1, AT_ONCE // rows.shape[1])
    for begin in range(0, len(rows), step):
        part = slice(begin, begin + step)
        yield part, in_double(rows[part]), in_double(others[part])


def in_double(array: Array) -> Array:
    """An array in double precision, row by row: with a matrix on its side, all arithmetic is many times slower."""
    return array.astype(np.float64, order="C")


@dataclass(frozen=True, slots=True)
class Apart:
    """How far apart two float32 arrays are at most; at least so far where only the first blocks were looked at."""

    gap: float
    whole: bool

    def within(self, least: float, most: float) -> bool | None:
        """Whether no element is farther apart than a limit, which lies between two bounds.

        None where only a look at each element in float64 can tell, or a difference is not finite.
        """
        if not np.isfinite(self.gap):
            return None
        if self.whole and self.gap * (1 + _ROUNDED) <= least:
            return True
        return False if self.gap * (1 - _ROUNDED) > most else None


def apart(e: Array, a: Array, enough: float) -> Apart:
    """The largest distance of two float32 arrays, in float32; that of the first blocks where it is beyond a bound.

    The arrays must be contiguous and of one size.
    """
    buffer = np.empty(min(BLOCK, e.size), np.float32)
    worst = np.float32(0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        for begin, one, other in pairs_of_blocks(e, a):
            gap = np.subtract(other, one, out=buffer[: one.size])
            worst = np.maximum(worst, np.maximum(gap.max(), -gap.min()))
            if not worst <= enough:  # far beyond it, or NaN: no need to look at the rest
                return Apart(float(worst), begin + one.size == e.size)
    return Apart(float(worst), whole=True)


def equal(one: Array, other: Array) -> bool:
    """Whether two arrays of one shape hold equal numbers; NaN equals nothing. Stops at the first block that differs."""
    if not (one.flags.c_contiguous and other.flags.c_contiguous):
        if one.ndim != 2:
            return bool(np.array_equal(one, other))
        return all(
            np.array_equal(np.ascontiguousarray(one[tile]), np.ascontiguousarray(other[tile]))
            for tile in product(_steps(one.shape[0]), _steps(one.shape[1]))
        )
    return all(bool((left == right).all()) for _, left, right in pairs_of_blocks(one, other))


def _steps(count: int) -> list[slice]:
    """The tiles along an axis: of a matrix that lies turned, whole rows would not stay in the cache."""
    return [slice(i, i + TILE) for i in range(0, count, TILE)]


def largest_gap(e: Array, a: Array) -> float:
    """The largest distance of two arrays of one size, in memory order; equal infinities are not apart.

    That of two float32 arrays is rounded to float32.
    """
    one, other = np.ascontiguousarray(e), np.ascontiguousarray(a).reshape(e.shape)
    quick = apart(one, other, np.inf).gap if plain(one, other) else np.nan
    if np.isfinite(quick):
        return quick
    worst = 0.0
    wide = np.complex128 if "c" in (e.dtype.kind, a.dtype.kind) else np.float64
    with np.errstate(invalid="ignore", over="ignore"):
        for _, left, right in pairs_of_blocks(one, other):
            gap = np.abs(right.astype(wide) - left)
            top = float(gap.max())
            if not np.isfinite(top):
                same = (left == right) | (np.isnan(left) & np.isnan(right))
                top = float(np.where(same, 0.0, gap).max())
            worst = max(worst, top)
    return worst


@np.errstate(invalid="ignore", over="ignore")
def overall(e: Array, a: Array, limit: float, most: float) -> Overall | None:
    """Sums and extremes of two contiguous float32 arrays; None where a number is not finite, or larger than `most`.

    Numbers and their differences stay float32 within a block, the sums of blocks are float64: sums are right to about
    six digits. `within` counts as float64 does.
    """
    size = min(BLOCK, e.size)
    gaps, units, ones = np.empty(size, np.float32), np.empty(size, np.float32), np.ones(size, np.float32)
    sums = np.zeros(4)
    worst, at, ulps, within = -1.0, 0, 0.0, 0
    for begin, one, other in pairs_of_blocks(e, a):
        n = one.size
        gap, unit = gaps[:n], units[:n]
        np.subtract(other, one, out=gap)
        squares_e, products = float(one @ one), float(one @ gap)
        squares_gap = float(gap @ gap)
        np.abs(gap, out=gap)
        sums += (float(gap @ ones[:n]), squares_gap, squares_e, products)
        place = int(gap.argmax())
        top = float(gap[place])
        if not _is_ordinary(one, other, squares_e, top, most):
            return None
        if top > worst:
            worst, at = top, begin + place
        if top > 0:
            # The exponent alone is the size of the number's unit times 2^23; of subnormal numbers it is that of the
            # smallest normal one.
            np.bitwise_and(one.view(np.int32), 0x7F800000, out=unit.view(np.int32))
            np.maximum(unit, _SMALLEST, out=unit)
            np.divide(gap, unit, out=unit)
            ulps = max(ulps, float(unit.max()))
        within += n if top * (1 + _ROUNDED) <= limit else _within(one, other, limit)
    exact = abs(float(a.reshape(-1)[at]) - float(e.reshape(-1)[at]))
    apart, squares_gap, squares_e, products = (float(x) for x in sums)
    return Overall(exact, at, apart, squares_gap, squares_e, products, ulps * 2.0**23, within)


def _is_ordinary(one: Array, other: Array, squares: float, gap: float, most: float) -> bool:
    """Whether no number of two blocks is larger than a bound; `squares` is the sum of those of the first.

    That, and how far they are apart at most, mostly tell it without another look.
    """
    if gap < most and squares <= (most - gap) ** 2:
        return True
    size = largest(one)
    return size + gap <= most or (size <= most and largest(other) <= most)


def _within(one: Array, other: Array, limit: float) -> int:
    """How many elements are at most a limit apart, in double precision."""
    return int(np.count_nonzero(np.abs(other.astype(np.float64) - one) <= limit))
