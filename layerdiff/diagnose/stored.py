"""In what way stored integers do not stand for the model's weights: their sign, zero point, scale, axis or range."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.quantisers import Scheme, Stored, fitted

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

# How near stored weights come to the model's when only their scale, zero point or axis was wrong.
FITS = 0.02
# Factors of channels that are so near each other are told as one.
_ALIKE = 1.1


def what_is_wrong(one: Stored, right: Array) -> tuple[Scheme, str]:
    """The scheme that the weights should have, and in what way the file's differ."""
    scheme, integers = one.scheme, one.integers
    if integers.dtype.itemsize > 1:  # a bias: its scale is the product of two others, and it has room for any number
        factors = _factors(scheme.real(integers), right, scheme)
        refitted = Scheme((scheme.scale * factors).astype(scheme.scale.dtype), scheme.zero, scheme.axis)
        fits = apart(refitted.real(integers), right) <= FITS
        return refitted if fits else scheme, _misscaled(one, right)
    for axis in range(right.ndim) if scheme.per_channel else ():
        other = Scheme(scheme.scale, scheme.zero, axis)
        if right.shape[axis] == scheme.scale.size and apart(other.real(integers), right) <= FITS:
            return fitted(right, scheme, axis), f"have their scales along axis {scheme.axis} instead of {axis}"
    return fitted(right, scheme), _misread(one, right) or _misscaled(one, right)


def _misread(one: Stored, right: Array) -> str | None:
    """That the integers are right, and read with another sign or from another zero."""
    scheme, integers = one.scheme, one.integers
    kind = np.dtype("i1") if integers.dtype.kind == "u" else np.dtype("u1")
    zeros = [scheme.zero.view(kind), np.full_like(scheme.zero, 0 if kind.kind == "i" else 128, kind)]
    if any(apart(Scheme(scheme.scale, z, scheme.axis).real(integers.view(kind)), right) <= FITS for z in zeros):
        return f"are {kind.name} numbers that are read as {integers.dtype}"
    limits = np.iinfo(integers.dtype)
    for number in range(limits.min, limits.max + 1):
        moved = Scheme(scheme.scale, np.full_like(scheme.zero, number), scheme.axis)
        if apart(moved.real(integers), right) <= FITS:
            return f"have the zero point {short(scheme.zero)} instead of {number}"
    return None


def _misscaled(one: Stored, right: Array) -> str:
    """That the integers are right and their scale is not; else how many are clipped, or how far off they are."""
    scheme, integers = one.scheme, one.integers
    factors = _factors(scheme.real(integers), right, scheme)
    refitted = Scheme((scheme.scale * factors).astype(scheme.scale.dtype), scheme.zero, scheme.axis)
    if apart(refitted.real(integers), right) <= FITS:
        wrong = np.flatnonzero(np.abs(factors - 1) > FITS)
        ratios = np.sort(1 / factors.reshape(-1)[wrong]) if wrong.size else np.ones(1)
        spread = f"{ratios[0]:.4g} to {ratios[-1]:.4g}"
        ratio = f"{float(np.median(ratios)):.4g}" if ratios[-1] < _ALIKE * ratios[0] else spread
        where = f" in {wrong.size} of {factors.size} channels" if factors.size > 1 else ""
        return f"have a scale that is {ratio} times theirs{where}"
    limits = np.iinfo(integers.dtype)
    ends = int(np.sum((integers == limits.min) | (integers == limits.max)))
    if ends > max(4 * scheme.scale.size, integers.size // 100):
        return f"are clipped: {ends} of {integers.size} are at an end of the range"
    return f"are not the model's: they differ by {apart(scheme.real(integers), right):.2g} of their size"


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
