"""Which tensors hold the numbers of which value: samples find candidates, a full comparison confirms them.

Of small arrays a sample is all there is. A deep network has thousands of them, many within rounding of their
neighbours: these are compared all together. Where very many are near a value, as behind a layer that gives nothing but
zeros, those with the same bytes are compared once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.sampled import SAMPLES, Table, sampled
from layerdiff.align.values import VAGUE, same_in, says_nothing
from layerdiff.blocks import Apart
from layerdiff.limits import MASK_RATIO, MASK_SMALLEST, MASK_TOLERANCE, mask_bound
from layerdiff.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from layerdiff.align.sampled import Sampled
    from layerdiff.limits import Limit

    Array = np.ndarray[Any, Any]

# Where more tensors than this are near a value, many of them may be copies of one another.
FEW = 8


def match_values(
    expected: Mapping[int, Array], actual: Mapping[str, Array], limits: Mapping[int, Limit]
) -> dict[int, list[str]]:
    """For each reference value the tensors that hold the same numbers, in the order of `actual`."""
    tensors = sampled(actual)
    found: dict[int, list[str]] = {}
    for (size, kind), values in sampled(expected).items():
        if (size, kind) in tensors:
            small = size <= SAMPLES and kind == "f"
            found |= (_Small if small else _Size)(expected, actual, limits, values, tensors[size, kind]).matches()
    return {index: found[index] for index in expected if index in found}


class Sought:
    """Values that are looked for in several lots of tensors, as far as samples tell."""

    def __init__(self, expected: Mapping[int, Array], limits: Mapping[int, Limit]) -> None:
        self._known = {kind: (values, _rooms(values, limits)) for kind, values in sampled(expected).items()}

    def near(self, actual: Mapping[str, Array]) -> Iterator[tuple[int, str]]:
        """Each value with each tensor that may hold it."""
        for kind, tensors in sampled(actual).items():
            if kind in self._known:
                values, rooms = self._known[kind]
                for places, rows, _ in Table(tensors.numbers).near(values.numbers, rooms):
                    pairs = zip(places.tolist(), rows.tolist(), strict=True)
                    yield from ((values.names[place], tensors.names[row]) for place, row in pairs)


def _rooms(values: Sampled[int], limits: Mapping[int, Limit]) -> Array:
    """How far each number of the samples of some values may be off for the whole to be compared."""
    size = np.abs(values.numbers)  # the full comparison that follows knows which large numbers are masks
    rooms = _bounds(values, limits, np.max) + _shares(values, limits) * size
    return np.asarray(rooms + np.where(size > MASK_SMALLEST, MASK_TOLERANCE * size, 0.0))


def _bounds(values: Sampled[int], limits: Mapping[int, Limit], of_rows: Callable[[Any], Any]) -> Array:
    """The absolute limit of each value in a column; one number where it differs from row to row."""
    found = (limits[value].atol for value in values.names)
    return np.array([atol if isinstance(atol, float) else float(of_rows(atol)) for atol in found])[:, None]


def _shares(values: Sampled[int], limits: Mapping[int, Limit]) -> Array:
    """The relative limit of each value, in a column."""
    return np.array([limits[value].rtol for value in values.names])[:, None]


@dataclass(frozen=True)
class _Size:
    """Values and tensors of one size and kind."""

    expected: Mapping[int, Array]
    actual: Mapping[str, Array]
    limits: Mapping[int, Limit]
    values: Sampled[int]
    tensors: Sampled[str]
    _digests: dict[int, bytes] = field(default_factory=dict)

    def matches(self) -> dict[int, list[str]]:
        """The tensors that hold each value."""
        return self._compared([np.stack([places, rows]) for places, rows, _ in self.near()])

    def _compared(self, pairs: list[Array]) -> dict[int, list[str]]:
        """Those of some pairs of a place and a row that are the same in full, by value."""
        found = {self.values.names[place]: self.same(place, rows) for place, rows in _by_place(pairs).items()}
        return {value: names for value, names in found.items() if names}

    def near(self) -> Iterator[tuple[Array, Array, Array]]:
        """Places of values, of tensors whose samples are near these, and how far apart each of their numbers is."""
        return Table(self.tensors.numbers).near(self.values.numbers, _rooms(self.values, self.limits))

    def same(self, place: int, rows: list[int]) -> list[str]:
        """Those of some tensors that hold a value in full."""
        value = self.values.names[place]
        array, limit = self.expected[value], self.limits[value]
        if says_nothing(array, limit):
            return []
        names = self.tensors.names
        if len(rows) <= FEW:
            return [names[row] for row in rows if same_in(self.actual, names[row], value, array, limit)]
        firsts: dict[bytes, int] = {}
        for row in rows:
            firsts.setdefault(self._digest(row), row)
        same = {digest: same_in(self.actual, names[row], value, array, limit) for digest, row in firsts.items()}
        return [names[row] for row in rows if same[self._digest(row)]]

    def _digest(self, row: int) -> bytes:
        if row not in self._digests:
            array = np.ascontiguousarray(self.actual[self.tensors.names[row]])
            self._digests[row] = blake2b(
                array.reshape(-1).view(np.uint8).data, person=array.dtype.char.encode()
            ).digest()
        return self._digests[row]


def _by_place(pairs: list[Array]) -> dict[int, list[int]]:
    """The rows of each place, both in order, of pairs in columns."""
    places, rows = np.concatenate(pairs, axis=1) if pairs else np.zeros((2, 0), int)
    order = np.lexsort((rows, places))
    places, begins = np.unique(places[order], return_index=True)
    return dict(zip(places.tolist(), (part.tolist() for part in np.split(rows[order], begins[1:])), strict=False))


class _Small(_Size):
    """Arrays of floats of which a sample is all there is; those with what is not finite are looked at one by one."""

    def matches(self) -> dict[int, list[str]]:
        """The tensors that hold each value."""
        masks = self._masks()
        allowed, telling = self._allowed(masks), self._telling(masks)
        finite, others = self.values.finite(), self.tensors.finite()
        kept, special = [], []
        for places, rows, gaps in self.near():
            whole = finite[places] & others[rows]
            same = whole & telling[places] & ((gaps <= allowed[places]) | (gaps == 0)).all(axis=1)
            self._note(places[same], rows[same], gaps[same])
            kept.append(np.stack([places[same], rows[same]]))
            special.append(np.stack([places[~whole], rows[~whole]]))
        names = self.tensors.names
        found = {self.values.names[place]: [names[row] for row in rows] for place, rows in _by_place(kept).items()}
        return found | self._compared(special)

    def _note(self, places: Array, rows: Array, gaps: Array) -> None:
        """Keep with the run how far apart what is the same is, as a subtraction in single precision tells."""
        if not isinstance(self.actual, Shelf) or not len(places):
            return
        with np.errstate(over="ignore"):
            far = gaps.max(axis=1).astype(np.float32).tolist()
        for place, row, gap in zip(places.tolist(), rows.tolist(), far, strict=True):
            name, value = self.tensors.names[row], self.values.names[place]
            if self.actual[name].dtype == self.expected[value].dtype == np.float32:
                self.actual.notes[name, value] = Apart(gap, whole=True)

    def _masks(self) -> Array:
        """Which numbers of the values are mask constants."""
        size = np.abs(self.values.numbers)
        bounds = np.full((len(size), 1), np.inf)
        for place in np.flatnonzero(_may_hold_masks(size)).tolist():
            bounds[place] = mask_bound(self.values.numbers[place])
        return np.asarray(size > bounds)

    def _allowed(self, masks: Array) -> Array:
        """The error that each number of each value may have, as `allowances` has it."""
        size = np.abs(self.values.numbers)
        allowed = np.broadcast_to(_bounds(self.values, self.limits, np.max), size.shape).copy()
        for place, value in enumerate(self.values.names):
            atol = self.limits[value].atol
            if not isinstance(atol, float):
                allowed[place] = np.broadcast_to(atol, self.expected[value].shape).reshape(-1)
        allowed += _shares(self.values, self.limits) * size
        return np.where(masks, np.maximum(allowed, MASK_TOLERANCE * size), allowed)

    @np.errstate(over="ignore", invalid="ignore")
    def _telling(self, masks: Array) -> Array:
        """Which values say something, as `says_nothing` has it."""
        spread = VAGUE * np.std(self.values.numbers, axis=1, where=~masks)
        return np.asarray(~((_bounds(self.values, self.limits, np.median)[:, 0] > spread) & (spread > 0)))


def _may_hold_masks(size: Array) -> Array:
    """Which rows of magnitudes may have mask constants among them; of most it is quickly told that they have none."""
    place = (size.shape[1] - 1) // 10
    tenth = np.partition(size, place, axis=1)[:, place]
    top = size.max(axis=1)
    return np.asarray((top > MASK_SMALLEST) & (top > MASK_RATIO * tenth))
