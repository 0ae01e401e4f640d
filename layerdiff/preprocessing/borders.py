"""Constant borders around an image: where the content is, and what the border holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle of rows and columns of an image."""

    top: int
    left: int
    height: int
    width: int

    @property
    def rows(self) -> slice:
        """Its rows."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Its columns."""
        return slice(self.left, self.left + self.width)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    def of(self, image: Array) -> Array:
        """The part of an image (…, H, W) that it covers, a view."""
        cut: Array = image[..., self.rows, self.columns]
        return cut

    def around(self, image: Array) -> Array | None:
        """The value of each channel of (C, H, W) outside of it; None where that is not constant or there is nothing."""
        strips = (
            image[:, : self.top],
            image[:, self.top + self.height :],
            image[:, :, : self.left],
            image[:, :, self.left + self.width :],
        )
        filled = [strip for strip in strips if strip.size]
        if not filled:
            return None
        values = filled[0][:, 0, 0]
        flat = all(bool(np.all(strip == values[:, None, None])) for strip in filled)
        return values.astype(np.float64) if flat else None


def whole(image: Array) -> Box:
    """All of an image (…, H, W)."""
    return Box(0, 0, image.shape[-2], image.shape[-1])


def content(image: Array) -> Box:
    """The image (C, H, W) without the rows and columns at its edges that all hold the value of one of its corners.

    All of it where nothing else would be left.
    """
    found = whole(image)
    for corner in (image[:, :1, :1], image[:, -1:, -1:]):
        inside = found.of(image)
        edges = (inside[:, 0], inside[:, -1], inside[:, :, 0], inside[:, :, -1])
        if not any(np.all(edge == corner[:, :, 0]) for edge in edges):
            continue
        differs = (inside != corner).any(axis=0)
        rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
        if not rows.size:
            return whole(image)
        found = Box(
            found.top + int(rows[0]),
            found.left + int(columns[0]),
            int(rows[-1] - rows[0]) + 1,
            int(columns[-1] - columns[0]) + 1,
        )
    return found
