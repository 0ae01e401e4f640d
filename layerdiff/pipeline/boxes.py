"""Boxes as float64 arrays (n, 4) of corners x1, y1, x2, y2: how they are written, and how much they overlap."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# Overlaps are computed for as many rows at a time as keep the work below about 50 MB.
_CELLS_AT_ONCE = 1_000_000


class BoxFormat(str, Enum):
    """What the four numbers of a box are."""

    XYXY = "xyxy"
    CXCYWH = "cxcywh"
    LTWH = "ltwh"
    YXYX = "yxyx"

    def __str__(self) -> str:
        return self.value


def corners(boxes: NDArray[Any], written: BoxFormat) -> Floats:
    """Corners of boxes that are written otherwise: centre and size, top-left and size, or y before x."""
    b = np.asarray(boxes, np.float64).reshape(-1, 4)
    if written is BoxFormat.CXCYWH:
        return np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], 1)
    if written is BoxFormat.LTWH:
        return np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], 1)
    return b[:, [1, 0, 3, 2]] if written is BoxFormat.YXYX else b


def written_as(boxes: Floats, wanted: BoxFormat) -> Floats:
    """Corners rewritten in another format."""
    if wanted is BoxFormat.CXCYWH:
        return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    if wanted is BoxFormat.LTWH:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    return boxes[:, [1, 0, 3, 2]] if wanted is BoxFormat.YXYX else boxes


def clipped_like(boxes: Floats, others: Floats) -> Floats:
    """Boxes clipped to what the others span: programs clip boxes to the image when all else is done."""
    finite = others[np.isfinite(others).all(1)]
    if not len(finite):
        return boxes
    low, high = np.tile(finite[:, :2].min(0), 2), np.tile(finite[:, 2:].max(0), 2)
    return np.asarray(np.clip(boxes, np.minimum(low, high), high))


def overlaps(first: Floats, second: Floats) -> Floats:
    """The IoU (n, m) of every box with every other; 1 for equal boxes, also empty or NaN ones."""
    if first.shape[0] == 0 or second.shape[0] == 0:
        return np.zeros((first.shape[0], second.shape[0]))
    step = max(1, _CELLS_AT_ONCE // second.shape[0])
    return np.concatenate([_overlaps(first[at : at + step], second) for at in range(0, first.shape[0], step)])


def _overlaps(first: Floats, second: Floats) -> Floats:
    one, other = first.T[:, :, None], second.T[:, None, :]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        wide = np.minimum(one[2], other[2]) - np.maximum(one[0], other[0])
        high = np.minimum(one[3], other[3]) - np.maximum(one[1], other[1])
        shared = np.clip(wide, 0.0, None) * np.clip(high, 0.0, None)
        area, others = _areas(first), _areas(second)
        iou = shared / (area[:, None] + others[None] - shared)
    iou = np.where(np.isfinite(iou), iou, 0.0)
    # Boxes without a size that is a number overlap only with their equals.
    odd, strange = (~((size > 0) & np.isfinite(size)) for size in (area, others))
    if odd.any() and strange.any():
        e, a = first[odd][:, None], second[strange][None]
        iou[np.ix_(odd, strange)] = np.all((e == a) | (np.isnan(e) & np.isnan(a)), 2)
    return iou


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0.0, None), 1))


def overlapping(boxes: Floats, least: float) -> tuple[NDArray[np.intp], NDArray[np.intp], Floats]:
    """Every two of the boxes that share more than `least`: the earlier, the later, their IoU."""
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats]] = []
    step = max(1, _CELLS_AT_ONCE // max(1, len(boxes)))
    for at in range(0, len(boxes), step):
        iou = _overlaps(boxes[at : at + step], boxes)
        row, column = np.nonzero(iou > least)
        later = column > row + at
        row, column = row[later], column[later]
        found.append((row + at, column, iou[row, column]))
    if not found:
        nothing = np.zeros(0, np.intp)
        return nothing, nothing, np.zeros(0)
    first, second, iou = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return first, second, iou
