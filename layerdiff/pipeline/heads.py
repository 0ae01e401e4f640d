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


BINS = 16
_COCO = 3 * (5 + 80)  # channels of one scale of YOLOv5 for the classes of COCO


@dataclass(frozen=True, slots=True, eq=False)
class Head:
    """One image's decoded head: `boxes` (n, 4) corners, `objectness` (n,) or None, `classes` (n, c), in [0, 1]."""

    boxes: Array
    objectness: Array | None
    classes: Array

    @property
    def holes(self) -> int:
        """How many of its numbers are NaN or infinite."""
        parts = (self.boxes, self.classes, *(() if self.objectness is None else (self.objectness,)))
        return sum(int(np.count_nonzero(~np.isfinite(part))) for part in parts)

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


def decoded(maps: Sequence[Array], where: str) -> Array:
    """The head that YOLOv5 or YOLOv8 makes of its logits, one map per scale.

    (B, 3, H, W, 5 + classes) is YOLOv5's, and so is (B, 3 * (5 + classes), H, W) where it has fewer than YOLOv8's 64
    channels for the box, or the 255 of the 80 classes of COCO; all else of four axes is YOLOv8's.

    Raises
    ------
    InputError
        Maps of no such shape, or of YOLOv5 with another number of scales than there are anchors for.

    """
    shapes = [np.shape(one) for one in maps]
    channels = {shape[-1] if len(shape) == 5 else shape[1] for shape in shapes}
    if len({len(shape) for shape in shapes}) != 1 or len(channels) != 1:
        raise InputError(f"{where}: maps of one head have as many axes and channels each, got shapes {shapes}")
    count = channels.pop()
    if len(shapes[0]) == 4 and (count <= 4 * BINS or count == _COCO):
        if count % 3 or count < 18:
            raise InputError(
                f"{where}: logits of shape {shapes[0]} are neither YOLOv5's, with 3 * (5 + classes) channels, nor "
                "YOLOv8's, with 64 + classes. Decode other heads into arrays of x1, y1, x2, y2, score, class"
            )
        maps = [np.moveaxis(np.reshape(m, (len(m), 3, count // 3, *np.shape(m)[2:])), 2, -1) for m in maps]
    elif len(shapes[0]) == 4:
        return decode_yolov8(maps)
    if len(maps) != len(YOLOV5_ANCHORS):
        raise InputError(
            f"{where}: YOLOv5's anchors are for {len(YOLOV5_ANCHORS)} scales, got {len(maps)} maps; "
            "decode them with the model's own anchors and give the decoded head"
        )
    return decode_yolov5(maps)


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


def decode_yolov8(maps: Sequence[Array], strides: Sequence[int] = (), bins: int = BINS) -> Array:
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
