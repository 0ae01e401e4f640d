"""The same picture at another place: windows of one in the other, found by correlation in the frequency domain."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerdiff.preprocessing.borders import Box

Array = np.ndarray[Any, Any]

_LARGEST = 2048  # pixels a side that are transformed; larger pictures are looked at in a window of that size


def shift_between(expected: Array, actual: Array) -> tuple[int, int] | None:
    """How far down and right the candidate's picture (D, H, W) has to move to lie on the expected one (C, H, W).

    Phase correlation (Kuglin and Hines 1975) of the sums of the channels; None where no peak stands out, or where the
    two overlap by less than half.
    """
    e, a = (_edges(x.astype(np.float32).sum(axis=0)[:_LARGEST, :_LARGEST]) for x in (expected, actual))
    shape = tuple(_fast(max(m, n) + min(m, n) // 2) for m, n in zip(e.shape, a.shape, strict=True))
    product = np.fft.rfft2(e, shape) * np.conj(np.fft.rfft2(a, shape))
    size = np.abs(product)
    peaks = np.fft.irfft2(product / np.maximum(size, 1e-6 * size.max() + 1e-30), shape)
    at = np.unravel_index(np.argmax(peaks), shape)
    if peaks[at] < 12 * peaks.std():
        return None
    dy, dx = (
        int(p) if p <= n - m // 2 else int(p) - full for p, n, m, full in zip(at, e.shape, a.shape, shape, strict=True)
    )
    return dy, dx


def overlap(expected: tuple[int, int], actual: tuple[int, int], shift: tuple[int, int]) -> tuple[Box, Box] | None:
    """The boxes of both pictures that show the same after a shift; None where they do not overlap by much."""
    spans = []
    for e, a, move in zip(expected, actual, shift, strict=True):
        low, high = max(0, move), min(e, a + move)
        if high - low < max(4, min(e, a) // 4):
            return None
        spans.append((low, low - move, high - low))
    (top, a_top, height), (left, a_left, width) = spans
    return Box(top, left, height, width), Box(a_top, a_left, height, width)


def _edges(image: Array) -> Array:
    """The image without its mean, so that a canvas around it does not correlate by itself."""
    found: Array = image - image.mean()
    found[1:] -= 0.95 * found[:-1].copy()
    return found


def _fast(n: int) -> int:
    """A length at least n that has small factors only, which the transform likes."""
    while True:
        left = n
        for factor in (2, 3, 5):
            while left % factor == 0:
                left //= factor
        if left == 1:
            return n
        n += 1
