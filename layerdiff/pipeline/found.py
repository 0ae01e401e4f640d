"""Detections of one image, in one form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one image, as arrays of one length.

    `boxes` (n, 4) are corners x1, y1, x2, y2 in pixels unless the source wrote something else; `scores` (n,) are in
    [0, 1]; `classes` (n,) are numbers or names. `name` is the image's id or file name, `size` its width and height.
    """

    boxes: Floats
    scores: Floats
    classes: NDArray[Any]
    name: str = ""
    size: tuple[float, float] | None = None

    def __len__(self) -> int:
        return len(self.scores)

    def picked(self, which: NDArray[Any]) -> Detections:
        """Some of them, by a mask or by number."""
        return replace(self, boxes=self.boxes[which], scores=self.scores[which], classes=self.classes[which])

    def with_boxes(self, boxes: Floats) -> Detections:
        """The same with other boxes."""
        return replace(self, boxes=boxes)

    @property
    def finite(self) -> NDArray[np.bool_]:
        """Which of them have only finite numbers."""
        return np.asarray(np.isfinite(self.boxes).all(1) & np.isfinite(self.scores))

    @property
    def extent(self) -> float:
        """How far the image reaches, in the units of the boxes: its longer side, else the largest coordinate."""
        if self.size is not None:
            return float(max(self.size))
        finite = self.boxes[np.isfinite(self.boxes)]
        return float(np.abs(finite).max()) if finite.size else 0.0


NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))


def joined(first: Detections, second: Detections) -> Detections:
    """Both, the first ones first."""
    return replace(
        first,
        boxes=np.concatenate([first.boxes, second.boxes]),
        scores=np.concatenate([first.scores, second.scores]),
        classes=np.concatenate([first.classes, second.classes])
        if len(first) and len(second)
        else (first if len(first) else second).classes,
    )
