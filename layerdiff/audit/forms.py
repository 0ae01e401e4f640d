"""In which form one array holds the numbers of another: as it is, transposed, in parts, rounded, quantised."""

from __future__ import annotations

from itertools import pairwise, permutations
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from layerdiff.weights import Carried

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    Array = np.ndarray[Any, Any]

_SAMPLES = 32
_START = 16
_PARTS = (1, 2, 3, 4, 6, 8, 12, 16)
# Dequantised numbers lie within half a step of what they stand for; a step is fitted, hence a little more.
_HALF_STEP = 0.51


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
    flat = np.ascontiguousarray(array).reshape(-1)
    picks = np.linspace(0, flat.size - 1, min(_SAMPLES, flat.size)).astype(np.int64)
    for axes in _axes(wanted.ndim):
        view = wanted.transpose(axes)
        some = view[np.unravel_index(picks, view.shape)] if view.ndim else view.reshape(-1)
        equal_nan = wanted.dtype.kind == "f"
        if np.array_equal(some, flat[picks], equal_nan=equal_nan) and np.array_equal(
            view.reshape(-1), flat, equal_nan=equal_nan
        ):
            return axes
    return None


def _axes(rank: int) -> Iterator[tuple[int, ...]]:
    """The permutations that are tried; none but reversal where there are too many."""
    if rank <= 4:
        return permutations(range(rank))
    return iter((tuple(range(rank)), tuple(reversed(range(rank)))))


def _plain_form(wanted: Array, array: Array, axes: tuple[int, ...]) -> Carried:
    if axes == tuple(range(wanted.ndim)):
        return Carried.EXACT if array.shape == wanted.shape else Carried.RESHAPED
    return Carried.TRANSPOSED


def in_parts(wanted: Array, constants: Mapping[str, Array]) -> Held | None:
    """Where the rows (or columns) of an array stand in larger or several constants; or a constant that is one slice."""
    if wanted.size < 2 or not wanted.ndim:
        return None
    stored = [
        (name, view, np.ascontiguousarray(view).tobytes())
        for name, array in constants.items()
        if array.dtype == wanted.dtype and array.size > 1
        for view in ([array, np.swapaxes(array, -1, -2)] if array.ndim >= 2 else [array])
    ]
    views = [wanted] if wanted.ndim < 2 else [wanted, np.swapaxes(wanted, -1, -2)]
    for view in views:
        rows = view.shape[0]
        start = np.ascontiguousarray(view).reshape(-1)[: view.size // rows][:_START].tobytes()
        if _place(start, stored, wanted.itemsize) is None:
            continue  # every way to cut it begins with these numbers
        for parts in (n for n in _PARTS if rows % n == 0):
            chunks = [np.ascontiguousarray(chunk).tobytes() for chunk in np.split(view, parts)]
            places = [place for chunk in chunks if (place := _place(chunk, stored, wanted.itemsize)) is not None]
            if len(places) == parts and _in_order(places):
                return Held(places[0][0], Carried.MERGED if parts == 1 else Carried.SPLIT, wanted)
    whole = np.ascontiguousarray(wanted).tobytes()
    slices = (n for n, view, raw in stored if view.size * 8 >= wanted.size and _at(whole, raw, wanted.itemsize) >= 0)
    name = next(slices, None)
    return None if name is None else Held(name, Carried.SPLIT, wanted)


def _place(part: bytes, stored: Sequence[tuple[str, Array, bytes]], step: int) -> tuple[str, int] | None:
    """The first constant that has some bytes in it, and where."""
    return next(((name, at) for name, _, raw in stored if (at := _at(raw, part, step)) >= 0), None)


def _in_order(places: Sequence[tuple[str, int]]) -> bool:
    """Whether the parts that stand in one constant follow each other as they should."""
    return all(b > a for (one, a), (two, b) in pairwise(places) if one == two)


def _at(raw: bytes, part: bytes, step: int) -> int:
    """Where some bytes stand in others, at the place of an element; negative where they do not."""
    start = raw.find(part)
    while start >= 0 and start % step:
        start = raw.find(part, start + 1)
    return start


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


def in_format(array: Array, kind: str) -> Array | None:
    """An array rounded to a number format; None for one that is not known."""
    if kind == "bfloat16":
        bits = array.astype(np.float32).view(np.uint32)
        even = bits + 0x7FFF + ((bits >> 16) & 1)
        return (even & np.uint32(0xFFFF0000)).astype(np.uint32).view(np.float32)
    if kind in ("float16", "float32", "float64"):
        with np.errstate(over="ignore"):
            return array.astype(kind)
    return None


def quantised(wanted: Array, constants: Mapping[str, Array], steps: Mapping[str, Array]) -> Held | None:
    """The constant that stands for the wanted numbers on a grid of integers, none of them off by more than half a step.

    `steps` are the scales of those that are dequantised; for plain integers scale and zero point are fitted.
    """
    if wanted.dtype.kind != "f" or wanted.size < 2:
        return None
    for name, array in constants.items():
        if array.size != wanted.size or not (name in steps or array.dtype.kind in "iu"):
            continue
        for view in (v for v in (wanted, wanted.T) if v.shape == array.shape):
            back = _dequantised(view, array) if array.dtype.kind in "iu" else array.astype(np.float64)
            step = _fitted_step(view, array) if array.dtype.kind in "iu" else steps.get(name)
            if back is None or step is None:
                continue
            room = _HALF_STEP * _broadcast(step, view)
            if np.all(np.abs(back - view) <= room):
                return Held(name, Carried.QUANTISED, back if view is wanted else back.T)
    return None


def _broadcast(step: Array, view: Array) -> Array:
    """Scales along the axis that they belong to."""
    if step.size == 1:
        return np.full(view.shape, float(step.reshape(-1)[0]))
    axis = next((i for i, size in enumerate(view.shape) if size == step.size), None)
    if axis is None:
        return np.full(view.shape, float(step.max()))
    return np.broadcast_to(step.reshape([-1 if i == axis else 1 for i in range(view.ndim)]), view.shape)


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
