"""Outputs that were put together of parts: boxes in pixels beside scores, say. Each part is judged by its own size.

The largest number that a detection head gives is a coordinate: beside it an error of 0.001 is rounding. Of a score it
is not.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import pairs_of_blocks
from layerdiff.limits import limit_for, scale_of
from layerdiff.model import Noise
from layerdiff.operators import base_name, is_reshaping

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.model import Metrics, Reference, Site

    Array = np.ndarray[Any, Any]

_JOINS = frozenset({"cat", "concat", "concatenate"})
_APART = 16.0
"""Parts whose largest numbers are nearer each other than this are judged together."""


def limits_of_parts(reference: Reference, value: int, floor: Mapping[int, Noise]) -> Array | None:
    """The error that rounding explains for each element, float32; None where the value has no parts of unlike size.

    Of each part as of any value, see `limit_for`; where its own noise floor is not known, that of the whole counts.
    """
    parts, places = _parts(reference, value)
    arrays = [array for part in parts if (array := reference.values[part].array) is not None]
    if len(parts) < 2 or len(arrays) < len(parts) or any(array.dtype.kind != "f" for array in arrays):
        return None
    sizes = [scale_of(array) for array in arrays]
    if not max(sizes) > _APART * min(sizes):
        return None
    noises = [floor.get(part) or floor.get(value) for part in parts]
    largest = [None if noise is None else Noise(noise.max_abs, noise.rms) for noise in noises]
    dtype = reference.values[value].dtype
    limits = [limit_for(array, dtype, noise) for array, noise in zip(arrays, largest, strict=True)]
    return np.asarray(limits, np.float32)[places]


def judged_by_parts(metrics: Metrics, expected: Array, actual: Array, limits: Array) -> Metrics:
    """The metrics of an output that agrees as a whole, judged element by element."""
    with np.errstate(invalid="ignore"):
        if all(np.all(gap <= allowed) for gap, allowed in _gaps(expected, actual, limits)):
            return metrics
    with np.errstate(invalid="ignore", divide="ignore"):
        gap = np.abs(actual - expected)
        times = np.where(gap > 0, gap / limits, 0.0)
    if not (worst := float(np.nanmax(times, initial=0.0))) > 1:
        return metrics
    place = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(times)), times.shape))
    within = float(np.mean(~(times > 1)))
    limit = float(limits[place])
    return replace(metrics, within=within, worst_index=place, limit=limit, times_limit=worst, agrees=False)


def _gaps(expected: Array, actual: Array, limits: Array) -> Iterator[tuple[Array, Array]]:
    """How far apart the numbers are and what is allowed, block by block."""
    allowed = limits.reshape(-1)
    for begin, one, other in pairs_of_blocks(expected, actual):
        yield np.abs(other - one), allowed[begin : begin + one.size]


def _parts(reference: Reference, value: int) -> tuple[list[int], Array]:
    """The values that a value was put together of, and for each element the number of the one that it comes from."""
    shape, site = reference.values[value].shape, reference.producer(value)
    if site is not None and base_name(site.op) in _JOINS:
        found = [_parts(reference, index) for index in site.inputs if len(reference.values[index].shape) == len(shape)]
        begins = list(accumulate((len(parts) for parts, _ in found), initial=0))
        axis = site.arguments.get("dim", site.arguments.get("axis", 0))
        joined = np.concatenate([p + b for (_, p), b in zip(found, begins, strict=False)], axis)
        if joined.shape == shape:
            return [part for parts, _ in found for part in parts], joined
    axes = None if site is None else _axes(site, len(shape))
    if site is not None and axes is not None and site.inputs:
        parts, places = _parts(reference, site.inputs[0])
        if places.size == int(np.prod(shape)):
            return parts, places.transpose(axes or range(places.ndim)).reshape(shape)
    return [value], np.zeros(shape, np.int16)


def _axes(site: Site, rank: int) -> list[int] | None:
    """The order of the axes that a site gives out; nothing in it where it only reshapes, None where it computes."""
    name, given = base_name(site.op), site.arguments
    axes = list(range(rank))
    if is_reshaping(site.op):
        return []
    if name == "permute":
        return [axis % rank for axis in given["dims"]]
    if name == "t":
        return axes[::-1]
    if name == "transpose" and {"dim0", "dim1"} <= given.keys():
        one, other = given["dim0"] % rank, given["dim1"] % rank
        axes[one], axes[other] = axes[other], axes[one]
        return axes
    return None
