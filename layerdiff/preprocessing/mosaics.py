"""A picture somewhere inside another, smaller: one tile of a mosaic, as augmentation makes them."""

from __future__ import annotations

from typing import Any

import numpy as np

from layerdiff.preprocessing.blocks import Integral

Array = np.ndarray[Any, Any]

_CELLS = 96
_ALIKE = 0.85


def tile_in(expected: Array, actual: Array) -> dict[str, Any] | None:
    """Where the expected picture (C, H, W) lies in the candidate's: a box as shares of it, and how well it fits.

    Both are reduced to means over cells, and every middle part of the first is slid over the second, at scales from a
    fifth to the whole (normalised cross-correlation, Lewis 1995). None where nothing fits, or all of it does.
    """
    e_sums, a_sums = Integral.of(expected), Integral.of(actual)
    scene = a_sums.grid((0, 0, *a_sums.size), _CELLS)
    best: tuple[float, float, tuple[int, int, int]] | None = None
    h, w = e_sums.size
    for share in np.linspace(0.2, 0.8, 25):
        # The middle of it: a tile is often cut off at the edges of the mosaic.
        part = 0.6
        count = round(_CELLS * share * part)
        box = (h * (1 - part) / 2, w * (1 - part) / 2, h * part, w * part)
        score, top, left = _slid(e_sums.grid(box, count), scene)
        if best is None or score > best[0]:
            best = (score, float(share), (top, left, count))
    if best is None or best[0] < _ALIKE:
        return None
    score, share, (top, left, count) = best
    middle = ((top + count / 2) / _CELLS, (left + count / 2) / _CELLS)
    box_of = [round(float(v), 3) for v in (middle[0] - share / 2, middle[1] - share / 2, share, share)]
    return {"how": "mosaic", "box": box_of, "correlation": round(float(score), 4)}


def _slid(part: Array, scene: Array) -> tuple[float, int, int]:
    """The best correlation of a part with any window of a scene, and where that begins."""
    n = len(part)
    centred = part - part.mean()
    norm = float(np.sqrt((centred * centred).sum()))
    if n < 4 or norm <= 1e-9 * max(float(np.abs(part).max()), 1e-30):
        return 0.0, 0, 0
    room, size = len(scene) - n + 1, 2 * len(scene)
    product = np.fft.rfft2(scene, (size, size)) * np.conj(np.fft.rfft2(centred, (size, size)))
    dots = np.fft.irfft2(product, (size, size))[:room, :room]
    sums = Integral.of(scene[None]).sums
    squares = Integral.of((scene * scene)[None]).sums
    total, power = (s[n:, n:] - s[:-n, n:] - s[n:, :-n] + s[:-n, :-n] for s in (sums, squares))
    spread = np.sqrt(np.maximum(power - total * total / (n * n), 0))
    scores = np.abs(dots) / np.maximum(norm * spread, 1e-9 * norm * max(float(spread.max()), 1e-30))
    at = np.unravel_index(int(np.argmax(scores)), scores.shape)
    return float(scores[at]), int(at[0]), int(at[1])
