"""An array as planes of an image: which axis is what, and the array with its axes in one order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

CHANNELS = (1, 3, 4)


@dataclass(frozen=True, slots=True)
class Axes:
    """The meaning of each axis of an image tensor, as letters: "NCHW", "HWC", "HW", …."""

    letters: str

    def at(self, letter: str) -> int:
        """The position of an axis, counted from the end; 0 (which is none) where the tensor has no such axis."""
        return self.letters.index(letter) - len(self.letters) if letter in self.letters else 0

    def pick(self, **items: str) -> str:
        """The index expression that applies to some axes: ``pick(C="[2, 1, 0]")`` is ``[:, [2, 1, 0]]`` for NCHW."""
        slots = [items.get(letter, ":") for letter in self.letters]
        while len(slots) > 1 and slots[-1] == ":":
            slots.pop()
        return f"[{', '.join(slots)}]"

    def spread(self, values: Array) -> Array:
        """One number for each channel, in a shape that broadcasts against the tensor."""
        after = len(self.letters) - 1 - self.letters.index("C") if "C" in self.letters else 0
        return values.reshape((-1,) + (1,) * after) if "C" in self.letters else values.reshape(())

    def spread_code(self, values: Array) -> str:
        """The same as code."""
        numbers = [float(v) for v in values]
        if "C" not in self.letters or len(set(numbers)) == 1:
            return repr(numbers[0])
        after = len(self.letters) - 1 - self.letters.index("C")
        return f"np.array({numbers})" + (f".reshape({', '.join(['-1', *['1'] * after])})" if after else "")


def readings(shape: tuple[int, ...]) -> tuple[Axes, ...]:
    """What the axes of an image tensor of this shape can mean, likeliest first; nothing for other ranks."""
    if len(shape) == 2:
        return (Axes("HW"),)
    if len(shape) == 3:
        first, last = shape[0] in CHANNELS, shape[-1] in CHANNELS
        found = [Axes("CHW")] * first + [Axes("HWC")] * last
        if first and last and shape[1] not in CHANNELS and shape[0] == 1:
            found.reverse()  # (1, W, 3) is a row of pixels
        return tuple(found) or (Axes("NHW"), Axes("CHW"))
    if len(shape) == 4:
        found = [Axes("NCHW")] * (shape[1] in CHANNELS) + [Axes("NHWC")] * (shape[3] in CHANNELS)
        return tuple(found) or (Axes("NCHW"),)
    return ()


def planes(array: Array, axes: Axes) -> Array:
    """The tensor as (N, C, H, W), a view."""
    letters = axes.letters
    moved = array.transpose([letters.index(letter) for letter in "NCHW" if letter in letters])
    shape = iter(moved.shape)
    return moved.reshape([next(shape) if letter in letters else 1 for letter in "NCHW"])
