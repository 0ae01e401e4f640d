"""Small samples of many arrays: which of them are near each other is told of all of one size together."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from layerdiff.shelf import noted, outline, size_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.shelf import Outline

    Array = np.ndarray[Any, Any]

K = TypeVar("K")

SAMPLES = 64
SAMPLE = "sample"
"""Under which they are noted."""
_FIRST = 4
# Sums of samples: numbers beyond this count as this, and adding up rounds by so much at most.
_HUGE, _ADDING = 1e30, 1e-13
# Marks for what is not finite: all else is smaller.
_NAN, _INF = 9.8e299, 1e300
# Pairs that are looked at together.
_AT_ONCE = 1 << 14


def sample(array: Array) -> Array:
    """Up to 64 elements at fixed pseudo-random positions, as float64; NaN and Inf become large marks."""
    return widened(picked(array))


@dataclass(frozen=True, slots=True)
class Sampled(Generic[K]):
    """Arrays of one size and kind: their names, and a sample of each in a row."""

    names: list[K]
    numbers: Array

    def finite(self) -> Array:
        """Of which arrays all numbers of the sample are finite."""
        return np.asarray((np.abs(self.numbers) < _NAN).all(axis=1))


def sampled(arrays: Mapping[K, Array]) -> dict[tuple[int, str], Sampled[K]]:
    """Samples of the arrays of each size and kind, without those that are empty."""
    groups: dict[tuple[int, str], tuple[list[K], list[Array]]] = {}
    for name in arrays:
        known = outline(arrays, name)
        if known is not None and (size := size_of(known)):
            names, rows = groups.setdefault((size, comparable_kind(known)), ([], []))
            names.append(name)
            rows.append(noted(arrays, name, SAMPLE, picked))
    return {kind: Sampled(names, widened(_stacked(rows))) for kind, (names, rows) in groups.items()}


def comparable_kind(array: Outline) -> str:
    """Arrays compare within a kind only: float, complex, integer or boolean."""
    return "i" if array.dtype.kind == "u" else array.dtype.kind


def picked(array: Array) -> Array:
    """Up to 64 elements at fixed pseudo-random positions; a copy, which the array may not outlive."""
    flat = array.reshape(-1)
    return flat[_places(flat.size)] if flat.size > SAMPLES else flat.copy()


def _stacked(rows: Sequence[Array]) -> Array:
    return np.concatenate(rows).reshape(len(rows), -1)


def widened(numbers: Array) -> Array:
    """Numbers as float64, complex ones by their size; NaN and Inf become large marks."""
    wide = (np.abs(numbers) if numbers.dtype.kind == "c" else numbers).astype(np.float64)
    if np.isfinite(wide).all():
        return wide
    return np.nan_to_num(wide, nan=_NAN, posinf=_INF, neginf=-_INF)


@lru_cache(maxsize=256)
def _places(size: int) -> Array:
    return np.random.default_rng(size).integers(0, size, SAMPLES)


class Table:
    """Samples in rows, sorted by a weighted sum of each for a quick search.

    A single element would not do: behind a ReLU half of all tensors begin with a zero.
    """

    def __init__(self, samples: Array) -> None:
        self._weights = np.random.default_rng(0).uniform(0.5, 1.5, samples.shape[1])
        keys = self._key(samples)
        self._order = np.argsort(keys, kind="stable")
        self._samples, self._keys = samples[self._order], keys[self._order]

    def _key(self, samples: Array) -> Array:
        """The sums; the marks for what is not finite would make them overflow."""
        return np.asarray(np.minimum(np.maximum(samples, -_HUGE), _HUGE) @ self._weights)

    def near(self, wanted: Array, rooms: Array) -> Iterator[tuple[Array, Array, Array]]:
        """Which rows are near which wanted ones, number by number: places in `wanted`, rows, and their distances.

        Many at a time; what belongs to one wanted row is not always together.
        """
        rooms = rooms * (1 + _ADDING)
        apart = self._key(rooms) + _ADDING * self._key(np.abs(wanted))
        low = self._keys.searchsorted(self._key(wanted) - apart, side="left")
        counts = self._keys.searchsorted(self._key(wanted) + apart, side="right") - low
        ends = np.cumsum(counts)
        for begin in range(0, int(ends[-1]), _AT_ONCE):
            pairs = np.arange(begin, min(begin + _AT_ONCE, int(ends[-1])))
            places = ends.searchsorted(pairs, side="right")
            rows = low[places] + pairs - (ends - counts)[places]
            for part in (slice(_FIRST), slice(None)):  # most of many are far off in the first few
                gaps = self._samples[rows, part] - wanted[places, part]
                np.abs(gaps, out=gaps)
                near = (gaps <= rooms[places, part]).all(axis=1)
                places, rows = places[near], rows[near]
            yield places, self._order[rows], gaps[near]
