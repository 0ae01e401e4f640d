"""Raw heads of the YOLO family as candidates: every box that non-maximum suppression may choose from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.pipeline.boxes import BoxFormat, corners

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[Any]

# Width and height in pixels, three per stride 8, 16 and 32: those of YOLOv5's models trained on COCO.
YOLOV5_ANCHORS = (
    ((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)),
    ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)),
    ((116.0, 90.0), (156.0, 198.0), (373.0, 326.0)),
)


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One image's decoded head: `boxes` (n, 4) corners, `objectness` (n,) or None, `classes` (n, c), in [0, 1]."""

    boxes: Array
    objectness: Array | None
    classes: Array

    @property
    def scores(self) -> Array:
        """Confidence of every class (n, c): objectness times class score, or the class score alone."""
        return self.classes if self.objectness is None else self.objectness[:, None] * self.classes


def heads_of(array: Array, where: str) -> list[Head]:
    """One head per image of a raw output.

    (B, N, 5 + classes) is YOLOv5's: x, y, w, h, objectness, class scores. (B, 4 + classes, N), with more boxes than
    rows, is YOLOv8's, which has no objectness. A missing batch axis is added.

    Raises
    ------
    InputError
        Another shape.

    """
    batch = np.asarray(array, np.float64)
    batch = batch[None] if batch.ndim == 2 else batch
    if batch.ndim != 3 or min(batch.shape[1:]) < 5:
        raise InputError(
            f"{where}: a raw head is (batch, boxes, 5 + classes) as in YOLOv5, or (batch, 4 + classes, boxes) as in "
            f"YOLOv8; got {np.shape(array)}. Decode other heads into arrays of x1, y1, x2, y2, score, class"
        )
    if batch.shape[1] < batch.shape[2]:
        return [Head(corners(rows.T[:, :4], BoxFormat.CXCYWH), None, rows.T[:, 4:]) for rows in batch]
    if batch.shape[2] < 6:
        raise InputError(f"{where}: rows of 5 numbers have an objectness and no class; got {np.shape(array)}")
    return [Head(corners(rows[:, :4], BoxFormat.CXCYWH), rows[:, 4], rows[:, 5:]) for rows in batch]


def decode_yolov5(
    maps: Sequence[Array], anchors: Sequence[Sequence[Sequence[float]]] = YOLOV5_ANCHORS, strides: Sequence[int] = ()
) -> Array:
    """The head (B, N, 5 + classes) that YOLOv5 makes of its logits, one map (B, 3, H, W, 5 + classes) per scale.

    `anchors` are in pixels. Without `strides` those are 8, 16, 32, … by the order of the maps. The formula is that of
    ``Detect.forward`` in ultralytics/yolov5.
    """
    rows = []
    for level, (logits, sizes) in enumerate(zip(maps, anchors, strict=True)):
        stride = strides[level] if strides else 8 * 2**level
        y = _sigmoid(np.asarray(logits, np.float64))
        down, across = np.mgrid[0 : y.shape[2], 0 : y.shape[3]]
        xy = (y[..., :2] * 2 - 0.5 + np.stack([across, down], 2)) * stride
        wh = (y[..., 2:4] * 2) ** 2 * np.asarray(sizes, np.float64)[:, None, None]
        rows.append(np.concatenate([xy, wh, y[..., 4:]], -1).reshape(len(y), -1, y.shape[-1]))
    return np.concatenate(rows, 1)


def decode_yolov8(maps: Sequence[Array], strides: Sequence[int] = (), bins: int = 16) -> Array:
    """The head (B, 4 + classes, N) that YOLOv8 makes of its logits, one map (B, 4 * bins + classes, H, W) per scale.

    Each side's distance is the expected value of a softmax over `bins` (distribution focal loss, as in
    ``Detect.forward`` of ultralytics).
    """
    rows = []
    for level, logits in enumerate(maps):
        x = np.asarray(logits, np.float64)
        stride = strides[level] if strides else 8 * 2**level
        sides = x[:, : 4 * bins].reshape(len(x), 4, bins, -1)
        weights = np.exp(sides - sides.max(2, keepdims=True))
        distance = (weights * np.arange(bins)[:, None]).sum(2) / weights.sum(2)
        down, across = np.mgrid[0 : x.shape[2], 0 : x.shape[3]]
        centre = np.stack([across.ravel(), down.ravel()]) + 0.5
        low, high = centre - distance[:, :2], centre + distance[:, 2:]
        box = np.concatenate([(low + high) / 2, high - low], 1) * stride
        rows.append(np.concatenate([box, _sigmoid(x[:, 4 * bins :].reshape(len(x), -1, box.shape[-1]))], 1))
    return np.concatenate(rows, 2)


def _sigmoid(x: Array) -> Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))
