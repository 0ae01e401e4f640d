"""In which form one array holds the numbers of another: as it is, transposed, in parts, rounded, quantised."""

from __future__ import annotations

from functools import cached_property
from itertools import pairwise, permutations
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from layerdiff.blocks import equal
from layerdiff.weights import Carried

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Array = np.ndarray[Any, Any]

_SAMPLES = 32
_START = 16
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
# Dequantised numbers lie within half a step of what they stand for; a step is fitted, hence a little more.
_HALF_STEP = 0.51
# So many of the numbers of a block may be at its short end.
_CLIPPED = 0.1
# The step of a bias in 32 bits beside activations in 16 is finer than float32 itself, in which scale and product are.
_LAST_DIGITS = 4 * 2.0**-24


class Held(NamedTuple):
    """The tensor that holds some numbers, the form, and the same numbers back in the parameter's shape."""

    name: str
    how: Carried
    array: Array


def held(wanted: Array, constants: Mapping[str, Array]) -> Held | None:
    """The constant that holds exactly the wanted numbers, in whatever layout; the plainest form first."""
    for name, array in constants.items():
        axes = layout_of(wanted, array) if array.size == wanted.size else None
        if axes is not None:
            return Held(name, _plain_form(wanted, array, axes), wanted)
    return None


def layout_of(wanted: Array, array: Array) -> tuple[int, ...] | None:
    """The permutation after which one array is the other in memory order; None where there is none."""
    if array.dtype.kind != wanted.dtype.kind or array.dtype != wanted.dtype:
        return None
    if not _equal(_corners(wanted), _corners(array)):
        return None
    flat = np.ascontiguousarray(array).reshape(-1)
    picks = np.linspace(0, flat.size - 1, min(_SAMPLES, flat.size)).astype(np.int64)
    for axes in _axes(wanted.ndim):
        view = wanted.transpose(axes)
        some = view[np.unravel_index(picks, view.shape)] if view.ndim else view.reshape(-1)
        if _equal(some, flat[picks]) and _equal(view, flat.reshape(view.shape)):
            return axes
    return None


def _corners(array: Array) -> Array:
    """The first and the last number: no order of the axes changes them."""
    return np.array([array.flat[0], array.flat[-1]]) if array.size else array.reshape(-1)


def _equal(one: Array, other: Array) -> bool:
    """Whether two arrays are equal, NaN to itself; to look for NaN takes longer than all else."""
    if equal(one, other):
        return True
    return one.dtype.kind == "f" and np.array_equal(one, other, equal_nan=True)


def _axes(rank: int) -> Iterator[tuple[int, ...]]:
    """The permutations that are tried; none but reversal where there are too many."""
    if rank <= 4:
        return permutations(range(rank))
    return iter((tuple(range(rank)), tuple(reversed(range(rank)))))


def _plain_form(wanted: Array, array: Array, axes: tuple[int, ...]) -> Carried:
    if axes == tuple(range(wanted.ndim)):
        return Carried.EXACT if array.shape == wanted.shape else Carried.RESHAPED
    return Carried.TRANSPOSED


def in_parts(wanted: Array, constants: Mapping[str, Stored]) -> Held | None:
    """Where the rows (or columns) of an array stand in larger or several constants; or a constant that is one slice."""
    if wanted.size < 2 or not wanted.ndim:
        return None
    stored = [view for one in constants.values() if one.array.size > 1 for view in one.views(wanted.dtype)]
    views = [wanted] if wanted.ndim < 2 else [wanted, np.swapaxes(wanted, -1, -2)]
    for view in views:
        rows, row = view.shape[0], _unit(view)
        flat = _bits(view[: max(1, _START * rows // view.size)])[:_START]
        if _place(flat, stored, row) is None:
            continue  # every way to cut it begins with these numbers
        for parts in (n for n in _PARTS if rows % n == 0):
            chunks = [_bits(chunk) for chunk in np.split(view, parts)]
            places = [place for chunk in chunks if (place := _place(chunk, stored, row)) is not None]
            if len(places) == parts and _in_order(places):
                return Held(places[0][0], Carried.MERGED if parts == 1 else Carried.SPLIT, wanted)
    whole, row = _bits(wanted), _unit(wanted)
    slices = (v.name for v in stored if v.array.size * 8 >= wanted.size and v.at(whole, row) >= 0)
    name = next(slices, None)
    return None if name is None else Held(name, Carried.SPLIT, wanted)


class Stored:
    """A constant of the file, and its memory in the orders in which others may stand inside it."""

    def __init__(self, name: str, array: Array) -> None:
        self.array = array
        swapped = [np.swapaxes(array, -1, -2)] if array.ndim >= 2 else []
        self._views = [_View(name, view) for view in (array, *swapped) if view.ndim and view.size]

    def views(self, dtype: np.dtype[Any]) -> list[_View]:
        """The array as it is and with its last axes exchanged; none where it is of another type."""
        return self._views if self.array.dtype == dtype else []


class _View:
    """One order of a constant's numbers."""

    def __init__(self, name: str, array: Array) -> None:
        self.name = name
        self.array = array
        # Where rows begin; of a stack of matrices that stand on their sides the matrices' own.
        lying = array.flags.c_contiguous or array.ndim <= 2
        self._row = array.size // len(array) if lying else array.shape[-1]
        self._starts = _bits(array.reshape(len(array), -1)[:, 0] if lying else array[..., 0])

    @cached_property
    def _flat(self) -> Array:
        return _bits(self.array)

    def at(self, part: Array, row: int) -> int:
        """Where some numbers stand, negative where they do not; they begin a row of either side's (own: `row`)."""
        found = np.flatnonzero(self._starts == part[0]) * self._row
        if self.array.flags.c_contiguous and row > 1 and row % self._row:
            found = np.union1d(found, np.flatnonzero(self._flat[::row] == part[0]) * row)
        for place in found:
            if all(np.array_equal(self._flat[place : place + n], part[:n]) for n in (_START, part.size)):
                return int(place)
        return -1


def _unit(array: Array) -> int:
    """How many numbers each row has; a vector is one: recurrent layers keep two biases in a row for each direction."""
    return array.size // array.shape[0] if array.ndim > 1 else array.size


def _bits(array: Array) -> Array:
    """The numbers of an array in memory order, as integers of their size: NaN is equal to itself then."""
    flat = np.ascontiguousarray(array).reshape(-1)
    return flat.view(f"u{flat.itemsize}") if flat.itemsize in (1, 2, 4, 8) else flat


def _place(part: Array, stored: Sequence[_View], row: int) -> tuple[str, int] | None:
    """The first constant that has some numbers in it, and where."""
    return next(((view.name, at) for view in stored if (at := view.at(part, row)) >= 0), None)


def _in_order(places: Sequence[tuple[str, int]]) -> bool:
    """Whether the parts that stand in one constant follow each other as they should."""
    return all(b > a for (one, a), (two, b) in pairwise(places) if one == two)


def rounded(wanted: Array, constants: Mapping[str, Array], formats: Mapping[str, str]) -> Held | None:
    """The constant that holds the wanted numbers in a narrower format than theirs."""
    if wanted.dtype.kind != "f":
        return None
    for name, array in constants.items():
        kind = formats.get(name) or (str(array.dtype) if array.dtype.kind == "f" else "")
        if array.size != wanted.size or kind in ("", str(wanted.dtype)):
            continue
        narrow = in_format(wanted, kind)
        axes = None if narrow is None else layout_of(narrow.astype(array.dtype), array)
        if narrow is not None and axes is not None:
            return Held(name, Carried.ROUNDED, narrow)
    return None


def rounded_in_parts(wanted: Array, constants: Mapping[str, Stored], formats: Mapping[str, str]) -> Held | None:
    """The same among other numbers, or in pieces: recurrent layers keep both directions, and both biases, in one."""
    if wanted.dtype.kind != "f":
        return None
    kinds: dict[tuple[str, str], dict[str, Stored]] = {}
    for name, one in constants.items():
        kind = formats.get(name) or (str(one.array.dtype) if one.array.dtype.kind == "f" else "")
        if kind not in ("", str(wanted.dtype)):
            kinds.setdefault((kind, str(one.array.dtype)), {})[name] = one
    for (kind, dtype), alike in kinds.items():
        narrow = in_format(wanted, kind)
        found = None if narrow is None else in_parts(narrow.astype(dtype), alike)
        if found is not None:
            return Held(found.name, Carried.ROUNDED, found.array)
    return None


def in_format(array: Array, kind: str) -> Array | None:
    """An array rounded to a number format, a half to even; None for one that is not known."""
    if kind == "bfloat16":
        bits = array.astype(np.float32).view(np.uint32)
        even = bits + 0x7FFF + ((bits >> 16) & 1)
        return (even & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
    if kind in ("float16", "float32", "float64"):
        with np.errstate(over="ignore"):
            return array.astype(kind)
    return None


def quantised(
    wanted: Array, constants: Mapping[str, Array], steps: Mapping[str, Array], formats: Mapping[str, str]
) -> Held | None:
    """The constant that stands for the wanted numbers on a grid of integers, none of them off by more than half a step.

    `steps` are the scales of those that are dequantised; for plain integers scale and zero point are fitted.
    """
    if wanted.dtype.kind != "f" or wanted.size < 2:
        return None
    for name, array in constants.items():
        if array.size != wanted.size or not (name in steps or array.dtype.kind in "iu"):
            continue
        if np.squeeze(array).shape == np.squeeze(wanted).shape:
            array = array.reshape(wanted.shape)  # noqa: PLW2901  a norm's weight with axes of one behind it
        for view in (v for v in (wanted, wanted.T) if v.shape == array.shape):
            back = _dequantised(view, array) if array.dtype.kind in "iu" else array.astype(np.float64)
            step = _fitted_step(view, array) if array.dtype.kind in "iu" else steps.get(name)
            if back is None or step is None:
                continue
            off = np.abs(back - view) - _LAST_DIGITS * np.abs(view)
            if any(_within(off, room, formats.get(name, "")) for room in _along(step, view)):
                return Held(name, Carried.QUANTISED, back if view is wanted else back.T)
    return None


def _within(off: Array, step: Array, kind: str) -> bool:
    """Whether numbers lie within half a step; of few bits some are clipped: the middle leaves one end a step short."""
    inside = off <= _HALF_STEP * step
    return bool(np.all(inside)) or (
        kind in ("int2", "int4") and bool(np.all(off <= step)) and float(np.mean(inside)) >= 1 - _CLIPPED
    )


def _along(step: Array, view: Array) -> Iterator[Array]:
    """Scales along each axis that they can belong to: in a square matrix that may be either."""
    if step.size == 1:
        yield np.full(view.shape, float(step.reshape(-1)[0]))
        return
    axes = [i for i, size in enumerate(view.shape) if size == step.size]
    for axis in axes:
        yield np.broadcast_to(step.reshape([-1 if i == axis else 1 for i in range(view.ndim)]), view.shape)
    if not axes:
        yield np.full(view.shape, float(step.max()))


def _fitted_step(view: Array, integers: Array) -> Array | None:
    fit = _line(view, integers)
    return None if fit is None else np.abs(fit[0])


def _dequantised(view: Array, integers: Array) -> Array | None:
    fit = _line(view, integers)
    return None if fit is None else integers.astype(np.float64) * fit[0] + fit[1]


def _line(view: Array, integers: Array) -> tuple[Array, Array] | None:
    """Scale and offset per channel (or for all) that turn integers into numbers, by least squares."""
    for axes in (None, *range(view.ndim)):
        over = tuple(i for i in range(view.ndim) if i != axes) if axes is not None else tuple(range(view.ndim))
        if prod(view.shape[i] for i in over) < 3:
            continue
        q, w = integers.astype(np.float64), view.astype(np.float64)
        dq, dw = q - q.mean(over, keepdims=True), w - w.mean(over, keepdims=True)
        spread = np.sum(dq * dq, over, keepdims=True)
        scale = np.sum(dq * dw, over, keepdims=True) / np.where(spread > 0, spread, 1.0)
        offset = w.mean(over, keepdims=True) - scale * q.mean(over, keepdims=True)
        if np.all(np.abs(q * scale + offset - w) <= _HALF_STEP * np.abs(scale) + 1e-12):
            return scale, offset
    return None
