"""Evidence from values: tensors that hold the same numbers.

A fixed sample of positions finds candidates, a full comparison confirms them. Shapes may differ as long as the numbers
are the same in the same order, since exporters flatten and unflatten freely; the pair of a layer with another shape is
said to be so in the report.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import Apart, apart, largest, largest_gap, plain
from layerdiff.measure import MASK_SMALLEST, MASK_TOLERANCE, allowances, mask_like
from layerdiff.store import Shelf

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerdiff.measure import Limit

    Array = np.ndarray[Any, Any]

SAMPLES = 64
# Beyond so many times the limit the rest of two arrays is not looked at.
FAR = 2.0
VAGUE = 0.5
_FIRST = 4
# How many numbers are looked at first: to touch many pages of memory takes longer than to compute with them.
_PARTS = (128, 4096)
# Sums of samples: numbers beyond this count as this, and adding up rounds by so much at most.
_HUGE, _ADDING = 1e30, 1e-13


def sample(array: Array) -> Array:
    """Up to 64 elements at fixed pseudo-random positions, as float64; NaN and Inf become large marks."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.size > SAMPLES:
        flat = flat[_places(flat.size)]
    wide = (np.abs(flat) if flat.dtype.kind == "c" else flat).astype(np.float64)
    if np.isfinite(wide).all():
        return wide
    return np.nan_to_num(wide, nan=9.8e299, posinf=1e300, neginf=-1e300)


@lru_cache(maxsize=256)
def _places(size: int) -> Array:
    return np.random.default_rng(size).integers(0, size, SAMPLES)


def comparable_kind(array: Array) -> str:
    """Arrays compare within a kind only: float, complex, integer or boolean."""
    return "i" if array.dtype.kind == "u" else array.dtype.kind


def same_numbers(expected: Array, actual: Array, limit: Limit) -> bool:
    """Whether two arrays of one size agree, element by element in memory order, within a limit."""
    e, a = expected, np.ascontiguousarray(actual).reshape(expected.shape)
    if e.dtype.kind in "iub" or a.dtype.kind in "iub":
        return bool(np.array_equal(e, a))
    if limit.rtol == 0 and plain(e, a):
        quick = _quickly(e, a, apart(e, a, FAR * float(np.max(limit.atol))), limit)
        if quick is not None:
            return quick
    wide = np.complex128 if "c" in (e.dtype.kind, a.dtype.kind) else np.float64
    e, a = e.astype(wide), a.astype(wide)
    with np.errstate(invalid="ignore"):
        close = np.abs(a - e) <= allowances(e, limit)
    return bool(np.all(close | (e == a) | (np.isnan(e) & np.isnan(a))))


def same_in(run: Mapping[str, Array], tensor: str, value: int, expected: Array, limit: Limit) -> bool:
    """The same for a tensor of a run; how far it is from that value is noted with the run."""
    if not isinstance(run, Shelf) or limit.rtol != 0:
        return same_numbers(expected, run[tensor], limit)
    known, most = run.notes.get((tensor, value)), float(np.max(limit.atol))
    if isinstance(known, Apart) and (known.whole or known.gap > most):
        quick = _quickly(expected, run[tensor], known, limit)
        return same_numbers(expected, run[tensor], limit) if quick is None else quick
    actual = np.ascontiguousarray(run[tensor]).reshape(expected.shape)
    if plain(expected, actual):
        run.notes[tensor, value] = apart(expected, actual, FAR * most)
        quick = _quickly(expected, actual, run.notes[tensor, value], limit)
        if quick is not None:
            return quick
    return same_numbers(expected, actual, limit)


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


def match_values(
    expected: Mapping[int, Array], actual: Mapping[str, Array], limits: Mapping[int, Limit]
) -> dict[int, list[str]]:
    """For each reference value the tensors that hold the same numbers, in the order of `actual`."""
    groups: dict[tuple[int, str], list[str]] = {}
    for name, array in actual.items():
        if array.size:
            groups.setdefault((array.size, comparable_kind(array)), []).append(name)
    tables = {key: _Table(names, (actual[name] for name in names)) for key, names in groups.items()}
    found: dict[int, list[str]] = {}
    for index, array in expected.items():
        table = tables.get((array.size, comparable_kind(array)))
        if table is None or says_nothing(array, limits[index]):
            continue
        limit = limits[index]
        names = [n for n in table.near(sample(array), limit) if same_in(actual, n, index, array, limit)]
        if names:
            found[index] = names
    return found


def says_nothing(array: Array, limit: Limit) -> bool:
    """Whether a value may be off by so much of its own spread that any tensor of its size would match."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    room = float(np.median(limit.atol)) if np.ndim(limit.atol) else float(limit.atol)
    if any(_spreads_beyond(array, room / VAGUE, count) for count in _PARTS):
        return False
    ordinary = array[np.isfinite(array) & ~mask_like(array)].astype(np.float64)
    return bool(ordinary.size) and room > VAGUE * float(np.std(ordinary)) > 0


def _spreads_beyond(array: Array, least: float, count: int) -> bool:
    """Whether a part of the ordinary numbers alone makes the standard deviation of them all larger than a bound.

    Of n numbers, m have the sum of squares about their own mean that all n have at least about theirs.
    """
    some = array.reshape(-1)[:: max(1, array.size // count)].astype(np.float64)
    low, high = float(some.min()), float(some.max())
    if low >= -MASK_SMALLEST and high <= MASK_SMALLEST and (high - low) ** 2 / 2 > least**2 * array.size:
        return True  # the two alone are far enough apart
    some = some[np.abs(some) <= MASK_SMALLEST]
    return some.size > 0 and float(np.sum((some - some.mean()) ** 2)) > least**2 * array.size


class _Table:
    """Samples of the tensors of one size, sorted by a weighted sum of each for a quick search.

    A single element would not do: behind a ReLU half of all tensors begin with a zero.
    """

    def __init__(self, names: list[str], arrays: Iterable[Array]) -> None:
        self._names = names
        samples = np.stack([sample(array) for array in arrays])
        self._weights = np.random.default_rng(0).uniform(0.5, 1.5, samples.shape[1])
        keys = self._key(samples)
        self._order = np.argsort(keys, kind="stable")
        self._samples, self._keys = samples[self._order], keys[self._order]

    def _key(self, samples: Array) -> Array:
        """The sums; the marks for what is not finite would make them overflow."""
        return np.asarray(np.minimum(np.maximum(samples, -_HUGE), _HUGE) @ self._weights)

    def near(self, wanted: Array, limit: Limit) -> list[str]:
        size = np.abs(wanted)  # the full comparison that follows knows which large numbers are masks
        room = np.max(limit.atol) + limit.rtol * size + np.where(size > MASK_SMALLEST, MASK_TOLERANCE * size, 0.0)
        room *= 1 + _ADDING
        key, apart, adding = self._key(np.stack([wanted, room, size]))
        apart += _ADDING * adding
        low = self._keys.searchsorted(key - apart, side="left")
        high = self._keys.searchsorted(key + apart, side="right")
        near = np.arange(low, high)
        for part in (slice(_FIRST), slice(_FIRST, None)):  # most of many are far off in the first few
            gaps = self._samples[near, part] - wanted[part]
            near = near[(np.abs(gaps, out=gaps) <= room[part]).all(axis=1)]
        return [self._names[i] for i in sorted(self._order[near])]
