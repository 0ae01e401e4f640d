"""Evidence from values: tensors that hold the same numbers.

A fixed sample of positions finds candidates, a full comparison confirms them. Shapes may differ as long as the numbers
are the same in the same order, since exporters flatten and unflatten freely; the pair of a layer with another shape is
said to be so in the report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import Apart, apart, blocks, largest, largest_gap, pairs_of_blocks, plain
from layerdiff.limits import MASK_SMALLEST, MASK_TOLERANCE, Limit, mask_bound, mask_like
from layerdiff.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Mapping

    Array = np.ndarray[Any, Any]

# Beyond so many times the limit the rest of two arrays is not looked at.
FAR = 2.0
VAGUE = 0.5
# How many numbers are looked at first: to touch many pages of memory takes longer than to compute with them.
_FIRST = 128
_FIRST_PART = 4096


def same_numbers(expected: Array, actual: Array, limit: Limit) -> bool:
    """Whether two arrays of one size agree, element by element in memory order, within a limit."""
    e, a = expected, np.ascontiguousarray(actual).reshape(expected.shape)
    if e.dtype.kind in "iub" or a.dtype.kind in "iub":
        return bool(np.array_equal(e, a))
    if limit.rtol == 0 and plain(e, a):
        quick = _quickly(e, a, apart(e, a, FAR * float(np.max(limit.atol))), limit)
        if quick is not None:
            return quick
    wide, bound = (np.complex128 if "c" in (e.dtype.kind, a.dtype.kind) else np.float64), mask_bound(e)
    rows = np.broadcast_to(limit.atol, (*e.shape[:-1], 1)).reshape(-1) if np.ndim(limit.atol) else None
    for begin, one, other in pairs_of_blocks(e, a):
        atol = limit.atol if rows is None else rows[np.arange(begin, begin + one.size) // e.shape[-1]]
        if not _close(one.astype(wide), other.astype(wide), Limit(limit.rtol, atol), bound):
            return False
    return True


@np.errstate(invalid="ignore")
def _close(expected: Array, actual: Array, limit: Limit, bound: float) -> bool:
    """Whether every element is within its limit, as `allowances` has it: what is beyond a bound is a mask constant."""
    size = np.abs(expected)
    allowed = limit.atol + limit.rtol * size
    allowed = np.where(size > bound, np.maximum(allowed, MASK_TOLERANCE * size), allowed)
    near = (np.abs(actual - expected) <= allowed) & np.isfinite(size)  # a share of infinity would allow for anything
    return bool(np.all(near | (expected == actual) | (np.isnan(expected) & np.isnan(actual))))


def same_in(run: Mapping[str, Array], tensor: str, value: int, expected: Array, limit: Limit) -> bool:
    """The same for a tensor of a run; how far it is from that value is noted with the run."""
    if not isinstance(run, Shelf) or limit.rtol != 0:
        return same_numbers(expected, run[tensor], limit)
    found, least, most = run.notes.get((tensor, value)), float(np.min(limit.atol)), float(np.max(limit.atol))
    known = found if isinstance(found, Apart) and (found.whole or found.gap > most) else None
    quick = None if known is None else known.within(least, most)
    if quick or (quick is False and largest(expected) <= MASK_SMALLEST):
        return quick  # without a look at the tensor
    actual = np.ascontiguousarray(run[tensor]).reshape(expected.shape)
    if known is None:
        if not plain(expected, actual):
            return same_numbers(expected, actual, limit)
        known = run.notes[tensor, value] = apart(expected, actual, FAR * most)
    quick = _quickly(expected, actual, known, limit)
    return same_numbers(expected, actual, limit) if quick is None else quick


def largest_gap_in(run: Mapping[str, Array], tensor: str, value: int, expected: Array) -> float:
    """The largest distance of a tensor of a run from a value of its size."""
    known = run.notes.get((tensor, value)) if isinstance(run, Shelf) else None
    if isinstance(known, Apart) and known.whole and np.isfinite(known.gap):
        return known.gap
    return largest_gap(expected, run[tensor])


def _quickly(e: Array, a: Array, known: Apart, limit: Limit) -> bool | None:
    """Whether arrays that are so far apart agree; None where each element has to be looked at."""
    least, most = float(np.min(limit.atol)), float(np.max(limit.atol))
    quick = known.within(least, most)
    return None if quick is False and not _apart(e, a, most) else quick


def _apart(e: Array, a: Array, most: float) -> bool:
    """Whether numbers that are no mask constants, which may be farther off, are farther apart than a limit."""
    if largest(e) <= MASK_SMALLEST:
        return True
    with np.errstate(invalid="ignore", over="ignore"):
        far = np.abs(np.subtract(a, e, dtype=np.float64)) > most
    return bool(np.any(far & (np.abs(e) <= MASK_SMALLEST)))


def says_nothing(array: Array, limit: Limit) -> bool:
    """Whether a value may be off by so much of its own spread that any tensor of its size would match."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    room = float(np.median(limit.atol)) if np.ndim(limit.atol) else float(limit.atol)
    if _spreads_beyond(array, room / VAGUE):
        return False
    ordinary = array[np.isfinite(array) & ~mask_like(array)].astype(np.float64)
    if not ordinary.size:
        return not np.isfinite(array).any()
    return room > VAGUE * float(np.std(ordinary)) > 0


def _spreads_beyond(array: Array, least: float) -> bool:
    """Whether some of the ordinary numbers alone make the standard deviation of them all larger than a bound.

    Of n numbers, parts of m have together the sum of squares about their own means that all n have at least about
    theirs. What is ordinary in a part is so in the whole.
    """
    wanted = least**2 * array.size
    some = array.reshape(-1)[:: max(1, array.size // _FIRST)]
    low, high = float(some.min()), float(some.max())
    if low >= -MASK_SMALLEST and high <= MASK_SMALLEST and (high - low) ** 2 / 2 > wanted:
        return True  # the two alone are far enough apart
    seen = 0.0
    for part in blocks(array, first=_FIRST_PART):
        ordinary = part if largest(part) <= MASK_SMALLEST else part[np.abs(part) <= MASK_SMALLEST]
        seen += float(np.var(ordinary, dtype=np.float64)) * ordinary.size if ordinary.size else 0.0
        if seen > wanted:
            return True
    return False
