"""Mean values over rectangles of a picture, through its integral image: quick looks at any scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from layerdiff.preprocessing.orientation import Turn

Array = np.ndarray[Any, Any]

_LARGE = 3_000_000  # pixels from which a picture is reduced before it is looked at


@dataclass(frozen=True, slots=True)
class Grey:
    """The sum of the channels of a picture, of a large one over blocks of `block` × `block` pixels."""

    sums: Array
    size: tuple[int, int]  # height and width of the picture
    block: int

    @staticmethod
    def of(planes: Array) -> Grey:
        """That of (C, H, W)."""
        size = (int(planes.shape[-2]), int(planes.shape[-1]))
        block = max(1, math.ceil(math.sqrt(size[0] * size[1] / _LARGE)))
        h, w = (max(1, n // block) for n in size)
        sums = np.zeros((h, w))
        for plane in planes:
            for row in range(min(block, size[0])):
                for column in range(min(block, size[1])):
                    sums += plane[row::block, column::block][:h, :w]
        return Grey(sums, size, block)

    def turned(self, turn: Turn) -> Grey:
        """That of the picture turned; where blocks leave a rest at one edge it is off by less than a block."""
        return Grey(turn.on(self.sums, 0, 1), self.size[::-1] if turn.transpose else self.size, self.block)

    def integral(self) -> Integral:
        """Its integral image."""
        h, w = self.sums.shape
        sums = np.zeros((h + 1, w + 1))
        np.cumsum(np.cumsum(self.sums, axis=0), axis=1, out=sums[1:, 1:])
        return Integral(sums, self.sums, self.size, self.block)


@dataclass(frozen=True, slots=True)
class Integral:
    """The sums of a grey picture over everything above and left of each corner.

    A large picture is first reduced to means over blocks of `block` × `block` pixels; places are told in pixels.
    """

    sums: Array
    grey: Array  # what they are the sums of, (H, W)
    size: tuple[int, int]  # height and width of the picture
    block: int = 1

    @staticmethod
    def of(planes: Array) -> Integral:
        """That of the sum of the channels of (C, H, W)."""
        return Grey.of(planes).integral()

    def means(self, rows: tuple[Array, Array], columns: tuple[Array, Array]) -> Array:
        """The mean over each rectangle between two rows and two columns, which need not be whole numbers.

        Each covers at least a pixel about its middle: for an enlarged picture that is bilinear sampling.
        """
        ends = (n - 1 for n in self.sums.shape)
        pairs = ((low / self.block, high / self.block) for low, high in (rows, columns))
        (top, bottom), (left, right) = (_span(*pair, n) for pair, n in zip(pairs, ends, strict=True))
        total = self._at(bottom, right) - self._at(top, right) - self._at(bottom, left) + self._at(top, left)
        found: Array = total / ((bottom - top) * (right - left))
        return found

    def pixels(self, rows: Array, columns: Array) -> Array:
        """The pixels at whole rows and columns, (…); of a large picture the blocks that hold them."""
        height, width = self.grey.shape
        i, j = (np.clip(at.astype(np.intp) // self.block, 0, n - 1) for at, n in ((rows, height), (columns, width)))
        found: Array = self.grey[i, j]
        return found

    def between(self, y: Array, x: Array) -> Array:
        """The picture between its pixels, where whole numbers are their middles (bilinear)."""
        if self.block > 1:
            return self.means((y, y + 1), (x, x + 1))
        top, left = np.floor(y), np.floor(x)
        fy, fx = y - top, x - left
        upper = self.pixels(top, left) * (1 - fx) + self.pixels(top, left + 1) * fx
        lower = self.pixels(top + 1, left) * (1 - fx) + self.pixels(top + 1, left + 1) * fx
        found: Array = upper * (1 - fy) + lower * fy
        return found

    def _at(self, y: Array, x: Array) -> Array:
        """The integral up to a place between pixels, (…)."""
        height, width = self.sums.shape
        i, j = np.minimum(y.astype(np.intp), height - 2), np.minimum(x.astype(np.intp), width - 2)
        fy, fx = y - i, x - j
        flat = self.sums.ravel()
        at = i * width + j
        upper = flat[at] * (1 - fx) + flat[at + 1] * fx
        lower = flat[at + width] * (1 - fx) + flat[at + width + 1] * fx
        found: Array = upper * (1 - fy) + lower * fy
        return found

    def grid(self, box: tuple[float, float, float, float], count: int = 32) -> Array:
        """The means over `count` × `count` cells of a box (top, left, height, width)."""
        top, left, height, width = box
        y, x = top + height * np.arange(count + 1) / count, left + width * np.arange(count + 1) / count
        rows = (y[:-1, None].repeat(count, 1), y[1:, None].repeat(count, 1))
        columns = (x[None, :-1].repeat(count, 0), x[None, 1:].repeat(count, 0))
        return self.means(rows, columns)


def _span(low: Array, high: Array, size: int) -> tuple[Array, Array]:
    """Both ends inside the picture and at least a pixel apart, about the same middle."""
    middle, half = (low + high) / 2, np.maximum(high - low, 1.0) / 2
    first = np.clip(middle - half, 0, size)
    last = np.clip(middle + half, 0, size)
    return np.minimum(first, size - 0.5), np.maximum(last, 0.5)


def correlation(one: Array, other: Array) -> float:
    """The correlation of two arrays of one shape, without a sign; 0 where one of them is constant."""
    a, b = one.ravel() - one.mean(), other.ravel() - other.mean()
    bottom = float(np.sqrt((a @ a) * (b @ b)))
    return float(abs(a @ b)) / bottom if bottom > 1e-12 * max(float(np.abs(one).max()), 1.0) else 0.0
