"""Where a picture lies in an input: stretched, letterboxed or cropped, as the usual code places it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.blocks import Integral, correlation
from layerdiff.preprocessing.borders import Box, content, whole

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]
Size = tuple[int, int]


_FEW = 1000  # places with which a frame is only looked at in passing
_RULES = (np.floor, np.rint)  # torchvision truncates the long side, others round it


class Sampling(str, Enum):
    """What of a picture one pixel of an input shows: all that it covers, one pixel, or a place between four of them."""

    AREA = "area"
    CORNER = "corner"
    MIDDLE = "middle"
    BETWEEN = "between"
    ALIGNED = "aligned corners"


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture is cut to `cut`, resized to `size`; `window` of that is put at `target` of the input."""

    cut: Box
    size: Size
    window: Box
    target: Box
    canvas: Size

    @property
    def mode(self) -> str:
        """One of "crop", "letterbox", "stretch", or "resize" where the shape of the picture fits as it is."""
        if self.window.size != self.size or (self.cut.top or self.cut.left):
            return "crop"
        if self.target.size != self.canvas:
            return "letterbox"
        ratio = (self.size[0] / self.cut.height) / (self.size[1] / self.cut.width)
        slack = 1.0 / min(self.size)
        return "stretch" if abs(np.log(ratio)) > slack else "resize"

    @property
    def setting(self) -> dict[str, Any]:
        """As plain data."""
        told: dict[str, Any] = {"mode": self.mode, "canvas": list(self.canvas), "resized": list(self.size)}
        if self.mode == "letterbox":
            told |= {"top": self.target.top, "left": self.target.left}
        if self.mode == "crop":
            cut = self.cut
            told |= {"top": self.window.top, "left": self.window.left, "window": list(self.window.size)}
            told |= {"cut": [cut.top, cut.left, cut.height, cut.width]} if cut.top or cut.left else {}
        return told

    def score(self, picture: Integral, rows: Array, columns: Array, values: Array) -> tuple[float, Sampling]:
        """How well places of the target (row, column) correlate with what they show of the picture, and how sampled."""
        y, x = rows - self.target.top + self.window.top, columns - self.target.left + self.window.left
        dy, dx = self.cut.height / self.size[0], self.cut.width / self.size[1]
        tops, lefts = self.cut.top + y * dy, self.cut.left + x * dx
        best = correlation(picture.means((tops, tops + dy), (lefts, lefts + dx)), values), Sampling.AREA
        if len(values) < _FEW:
            return best
        # Nearest neighbours: OpenCV's is the pixel at a corner, in a mirror at the other, PIL's that in the middle.
        first = np.floor(tops + 1e-6), np.floor(lefts + 1e-6)
        last = np.ceil(tops + dy - 1e-6) - 1, np.ceil(lefts + dx - 1e-6) - 1
        # Aligned corners: the middles of the outermost pixels stay where they are.
        steps = ((n - 1) / max(m - 1, 1) for n, m in zip(self.cut.size, self.size, strict=True))
        aligned = [at + n * step for at, n, step in zip((self.cut.top, self.cut.left), (y, x), steps, strict=True)]
        for sampling, shown in (
            (Sampling.CORNER, picture.pixels(*first)),
            (Sampling.CORNER, picture.pixels(first[0], last[1])),
            (Sampling.CORNER, picture.pixels(last[0], first[1])),
            (Sampling.MIDDLE, picture.pixels(np.floor(tops + dy / 2), np.floor(lefts + dx / 2))),
            (Sampling.BETWEEN, picture.between(tops + dy / 2 - 0.5, lefts + dx / 2 - 0.5)),
            (Sampling.ALIGNED, picture.between(aligned[0], aligned[1])),
        ):
            best = max(best, (correlation(shown, values), sampling))
        return best


def simple_frames(planes: Array, picture: Size) -> list[Frame]:
    """The frames that need no search: stretched, in the border that is seen, letterboxes, centre crops by rule."""
    canvas = planes.shape[-2:]
    full, everything = Box(0, 0, *picture), whole(planes)
    found = [Frame(full, canvas, everything, everything, canvas)]
    seen = content(planes)
    if seen != everything:
        found.append(_into(full, seen, canvas))
    found += [f for f in _letterboxes(full, canvas) if f.target.around(planes) is not None]
    found += list(_covers(full, canvas))
    return list(dict.fromkeys(found))


def _into(cut: Box, target: Box, canvas: Size) -> Frame:
    return Frame(cut, target.size, Box(0, 0, *target.size), target, canvas)


def _letterboxes(full: Box, canvas: Size) -> Iterator[Frame]:
    ratio = min(canvas[0] / full.height, canvas[1] / full.width)
    for r in dict.fromkeys((ratio, min(ratio, 1.0))):
        exact = (full.height * r, full.width * r)
        for rule in (np.rint, np.floor, np.ceil):
            h, w = (min(max(int(rule(round(n, 6))), 1), c) for n, c in zip(exact, canvas, strict=True))
            free = (canvas[0] - h, canvas[1] - w)
            if not any(free):
                continue
            tops = dict.fromkeys((free[0] // 2, (free[0] + 1) // 2, 0, free[0]))
            lefts = dict.fromkeys((free[1] // 2, (free[1] + 1) // 2, 0, free[1]))
            for top in tops:
                for left in lefts:
                    yield _into(full, Box(top, left, h, w), canvas)


def _covers(full: Box, canvas: Size) -> Iterator[Frame]:
    """The largest window of the canvas's shape, cut out before the resize."""
    ratio = max(canvas[0] / full.height, canvas[1] / full.width)
    h, w = min(full.height, round(canvas[0] / ratio)), min(full.width, round(canvas[1] / ratio))
    everything = Box(0, 0, *canvas)
    if (h, w) != full.size:
        for top, left in dict.fromkeys((((full.height - h) // 2, (full.width - w) // 2), (0, 0))):
            yield Frame(Box(top, left, h, w), canvas, everything, everything, canvas)
    yield from _windows(full, canvas, max(1.0, ratio * min(full.size)))
    for share in (0.875, 0.9, 0.95, 0.96):
        yield from _windows(full, canvas, min(canvas) / share)


def _windows(full: Box, canvas: Size, short: float) -> Iterator[Frame]:
    """The short side resized to a length, the canvas cut out of the middle."""
    for side in dict.fromkeys((int(short), round(short))):
        yield from window_frames(full, canvas, side, corners=False)


def window_frames(full: Box, canvas: Size, side: int, *, corners: bool) -> Iterator[Frame]:
    """The short side resized to `side`, and the canvas cut out of the middle, or also out of the corners."""
    short = min(full.size)
    everything = Box(0, 0, *canvas)
    for h, w in dict.fromkeys(
        tuple(side if n == short else int(r(n * side / short)) for n in full.size) for r in _RULES
    ):
        free = (h - canvas[0], w - canvas[1])
        if min(free) >= 0:
            middles = ((free[0] // 2, free[1] // 2), (round(free[0] / 2), round(free[1] / 2)))
            for top, left in dict.fromkeys((*middles, *([(0, 0), free] if corners else []))):
                yield Frame(full, (h, w), Box(top, left, *canvas), everything, canvas)


def around(frame: Frame) -> list[Frame]:
    """A crop from the middle and its neighbours: the short side two pixels more or less, every rounding of the rest.

    An enlargement by `s` with aligned corners is as large as one without whose side is longer by ``s - 1``.
    """
    if frame.mode != "crop" or frame.cut.top or frame.cut.left:
        return [frame]
    full, canvas, short = frame.cut.size, frame.canvas, min(frame.cut.size)
    at = full.index(short)
    found = [frame]
    longer = math.ceil(max(0.0, frame.size[at] / short - 1))
    for side in range(max(1, frame.size[at] - 2 - longer), frame.size[at] + 3):
        for rule in (np.floor, np.rint, np.ceil):
            h, w = (side if i == at else int(rule(n * side / short)) for i, n in enumerate(full))
            free = (h - canvas[0], w - canvas[1])
            places = product(*({n // 2, (n + 1) // 2} for n in free)) if min(free) >= 0 else ()
            found += [replace(frame, size=(h, w), window=Box(top, left, *canvas)) for top, left in places]
    return list(dict.fromkeys(found))


def sides(full: Box, canvas: Size, *, far: bool) -> range:
    """The lengths of the short side that are tried for a crop: all that cover the canvas, up to 1.6 times or beyond."""
    ratio = max(canvas[0] / full.height, canvas[1] / full.width)
    low = max(1, int(np.floor(ratio * min(full.size))))
    middle = int(1.6 * low) + 2
    return range(middle, middle + min(1200, 3 * min(full.size))) if far else range(low, middle)
