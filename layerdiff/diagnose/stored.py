"""In what way stored integers do not stand for the model's weights: their sign, zero point, scale, axis or range."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.quantisers import Scheme, Stored, fitted

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

# How near stored weights come to the model's when only their scale, zero point or axis was wrong.
FITS = 0.02
# What rounding to the nearest of a step takes from numbers is 0.29 of it in the root mean square.
_ROUNDED = 0.45
# Factors of channels that are so near each other are told as one.
_ALIKE = 1.1


def what_is_wrong(one: Stored, right: Array) -> tuple[Scheme, str]:
    """The scheme that the weights should have, and in what way the file's differ."""
    scheme, integers = one.scheme, one.integers
    if one.is_bias:
        factors = _factors(scheme.real(integers), right, scheme)
        refitted = replace(scheme, scale=(scheme.scale * factors).astype(scheme.scale.dtype))
        fits = apart(refitted.real(integers), right) <= FITS
        return refitted if fits else scheme, _misscaled(one, right)
    for axis in range(right.ndim) if scheme.per_channel else ():
        other = replace(scheme, axis=axis)
        if right.shape[axis] == scheme.scale.size and apart(other.real(integers), right) <= room(other, right):
            return fitted(right, scheme, axis), f"have their scales along axis {scheme.axis} instead of {axis}"
    return fitted(right, scheme), _misread(one, right) or _misscaled(one, right)


def _misread(one: Stored, right: Array) -> str | None:
    """That the integers are right, and read with another sign or from another zero."""
    scheme, integers, size = one.scheme, one.integers, one.integers.dtype.itemsize
    if not scheme.bits:
        kind = np.dtype(f"{'i' if integers.dtype.kind == 'u' else 'u'}{size}")
        zeros = [
            scheme.zero.view(kind),
            np.full_like(scheme.zero, 0 if kind.kind == "i" else 1 << (8 * size - 1), kind),
        ]
        if any(apart(replace(scheme, zero=z).real(integers.view(kind)), right) <= FITS for z in zeros):
            return f"are {kind.name} numbers that are read as {integers.dtype}"
    moved = replace(scheme, zero=_zero_points(one, right))
    fits = apart(moved.real(integers), right) <= room(scheme, right)
    return f"have the zero point {short(scheme.zero)} instead of {short(moved.zero)}" if fits else None


def _zero_points(one: Stored, right: Array) -> Array:
    """The zero points with which the integers come nearest to the right weights."""
    scheme = one.scheme
    off = one.integers.astype(np.float64) - right / scheme.along(scheme.scale, right.ndim).astype(np.float64)
    rest = tuple(a for a in range(right.ndim) if not scheme.per_channel or a != scheme.axis % right.ndim)
    found = np.clip(np.rint(np.median(off, axis=rest)), *scheme.limits)
    return np.broadcast_to(found.astype(scheme.zero.dtype), scheme.zero.shape)


def _misscaled(one: Stored, right: Array) -> str:
    """That the integers are right and their scale is not; else how many are clipped, or how far off they are."""
    scheme, integers = one.scheme, one.integers
    factors = _factors(scheme.real(integers), right, scheme)
    refitted = replace(scheme, scale=(scheme.scale * factors).astype(scheme.scale.dtype))
    if apart(refitted.real(integers), right) <= room(refitted, right):
        wrong = np.flatnonzero(np.abs(factors - 1) > FITS)
        ratios = np.sort(1 / factors.reshape(-1)[wrong]) if wrong.size else np.ones(1)
        spread = f"{ratios[0]:.4g} to {ratios[-1]:.4g}"
        ratio = f"{float(np.median(ratios)):.4g}" if ratios[-1] < _ALIKE * ratios[0] else spread
        where = f" in {wrong.size} of {factors.size} channels" if factors.size > 1 else ""
        return f"have a scale that is {ratio} times theirs{where}"
    smallest, largest = scheme.limits
    ends = int(np.sum((integers == smallest) | (integers == largest)))
    if ends > max(4 * scheme.scale.size, integers.size // 100):
        return f"are clipped: {ends} of {integers.size} are at an end of the range"
    return f"are not the model's: they differ by {apart(scheme.real(integers), right):.2g} of their size"


def room(scheme: Scheme, right: Array) -> float:
    """How near stored weights come to the model's when their scheme is right: with few bits not very near."""
    step, size = (float(np.sqrt(np.mean(np.square(a, dtype=np.float64)))) for a in (scheme.scale, right))
    return max(FITS, _ROUNDED * step / size) if size > 0 else FITS


def _factors(real: Array, right: Array, scheme: Scheme) -> Array:
    """By how much each scale must be multiplied for the integers to come nearest to the right weights."""
    if not scheme.per_channel:
        return np.asarray(np.sum(real * right) / max(float(np.sum(real * real)), 1e-300)).reshape(scheme.scale.shape)
    axis = scheme.axis % right.ndim
    rest = tuple(a for a in range(right.ndim) if a != axis)
    return np.asarray(np.sum(real * right, axis=rest) / np.maximum(np.sum(real * real, axis=rest), 1e-300))


def apart(real: Array, right: Array) -> float:
    """The distance of two arrays of one shape, as a share of the size of the right one."""
    return float(np.linalg.norm(real - right)) / max(float(np.linalg.norm(right)), 1e-300)


def short(array: Array) -> Any:
    """One number where all are one; else the first few."""
    flat = array.reshape(-1)
    numbers = [float(f"{x:.6g}") if array.dtype.kind == "f" else int(x) for x in flat[:4]]
    return numbers[0] if flat.size == 1 or np.all(flat == flat[0]) else f"{numbers} … of {flat.size}"
