"""The eight ways in which a picture can lie: flips, quarter turns, and what EXIF calls them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Turn:
    """Something done to the rows and columns of a picture: a transpose first, then flips of rows and columns."""

    transpose: bool = False
    flip_rows: bool = False  # upside down
    flip_columns: bool = False  # mirrored

    @property
    def still(self) -> bool:
        """Whether it does nothing."""
        return not (self.transpose or self.flip_rows or self.flip_columns)

    def on(self, image: Array, h: int, w: int) -> Array:
        """An image with its rows along axis `h` and its columns along axis `w`, turned: a view."""
        found = np.swapaxes(image, h, w) if self.transpose else image
        axes = tuple([h] * self.flip_rows + [w] * self.flip_columns)
        return np.flip(found, axes) if axes else found

    def code(self, h: int, w: int, name: str = "x") -> str:
        """The same as code that changes an array of that name."""
        axes = tuple([h] * self.flip_rows + [w] * self.flip_columns)
        lines = [f"{name} = np.swapaxes({name}, {h}, {w})"] * self.transpose
        return "\n".join(lines + [f"{name} = np.flip({name}, {axes})"] * bool(axes))

    @property
    def kind(self) -> str:
        """The kind of the mismatch that it undoes."""
        if self.transpose and not (self.flip_rows or self.flip_columns):
            return "layout"
        return "rotation" if self.transpose or (self.flip_rows and self.flip_columns) else "flip"

    @property
    def parameters(self) -> dict[str, Any]:
        """What it undoes, as plain data."""
        if self.kind == "layout":
            return {"expected": "HW", "actual": "WH", "how": "transpose"}
        if self.kind == "flip":
            return {"axis": "vertical" if self.flip_rows else "horizontal"}
        mirrored = self.transpose and self.flip_rows == self.flip_columns
        return {"degrees": self.degrees, "mirrored": mirrored, "exif": EXIF[self]}

    @property
    def degrees(self) -> int:
        """How far the candidate's picture has to be turned, anticlockwise, to lie like the expected one."""
        if not self.transpose:
            return 180 if self.flip_rows and self.flip_columns else 0
        return 90 if self.flip_rows else 270

    @property
    def summary(self) -> str:
        """What it undoes, in words."""
        if self.kind == "layout":
            return "rows and columns are exchanged"
        if self.kind == "flip":
            return (
                f"the picture is {'upside down' if self.flip_rows else 'mirrored'} (a flip, as augmentation makes it)"
            )
        turned = f"the picture is turned by {(360 - self.degrees) % 360} degrees anticlockwise"
        return f"{turned}, as without EXIF orientation {EXIF[self]}"


STILL = Turn()
# What a decoder has to do for each value of the EXIF tag Orientation, in the order 1 to 8 (Exif 3.0, 4.6.5.1).
BY_TAG = (
    STILL,
    Turn(flip_columns=True),
    Turn(flip_rows=True, flip_columns=True),
    Turn(flip_rows=True),
    Turn(transpose=True),
    Turn(transpose=True, flip_columns=True),
    Turn(transpose=True, flip_rows=True, flip_columns=True),
    Turn(transpose=True, flip_rows=True),
)
EXIF = {turn: tag for tag, turn in enumerate(BY_TAG, 1)}
TURNS = (
    STILL,
    Turn(flip_columns=True),
    Turn(flip_rows=True),
    Turn(flip_rows=True, flip_columns=True),
    Turn(transpose=True, flip_columns=True),
    Turn(transpose=True, flip_rows=True),
    Turn(transpose=True),
    Turn(transpose=True, flip_rows=True, flip_columns=True),
)


def back(turn: Turn) -> Turn:
    """What undoes a turn."""
    if not turn.transpose:
        return turn
    return Turn(transpose=True, flip_rows=turn.flip_columns, flip_columns=turn.flip_rows)


def same(second: Turn, first: Turn, together: Turn) -> bool:
    """Whether one turn after another is a third."""
    corners = np.arange(6).reshape(2, 3)
    return np.array_equal(second.on(first.on(corners, 0, 1), 0, 1), together.on(corners, 0, 1))
