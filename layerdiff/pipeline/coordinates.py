"""What a change of coordinates between two sides means: another box format, a letterbox, another image size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import BoxFormat
from layerdiff.pipeline.detection_model import Reason
from layerdiff.pipeline.frames import Frame, as_misread, find_frame
from layerdiff.pipeline.matching import pair_boxes

if TYPE_CHECKING:
    from layerdiff.pipeline.found import Detections

# Coordinates up to here can be shares of the image; pixels of anything larger than a few pixels are not.
LARGEST_SHARE = 1.6


@dataclass(frozen=True, slots=True)
class Relation:
    """How the numbers of `actual` become those of `expected` in one image; `reason` None where they are alike.

    `moved` are the boxes of `actual` in the coordinates of `expected`. `setting` is what to list, by name.
    """

    moved: Detections
    reason: Reason | None = None
    setting: tuple[str, tuple[Any, Any]] | None = None
    detail: str = ""


def relate(expected: Detections, actual: Detections) -> Relation:
    """The change of coordinates between two sides of one image; none where the boxes meet as they are."""
    least = min(len(expected), len(actual))
    if least == 0:
        return Relation(actual)
    pairs, iou = pair_boxes(expected, actual)
    meet = len(pairs) >= max(1, 0.5 * least)
    formats = (BoxFormat.XYXY,) if meet else tuple(BoxFormat)
    frame = find_frame(actual, expected, formats)
    back = None if meet else find_frame(expected, actual, formats)
    if back is not None and back.written is not BoxFormat.XYXY and back.support > (frame.support if frame else 0):
        return _misread(actual, back)
    if frame is None or frame.is_identity(expected.extent):
        return Relation(actual)
    moved = actual.with_boxes(frame.applied(actual.boxes))
    if meet:  # noise moves boxes, too: the change must bring them together much better
        after = pair_boxes(expected, moved)[1]
        if len(after) < len(iou) or not np.mean(1 - after) < 0.5 * np.mean(1 - iou):
            return Relation(actual)
    return _named(frame, moved, expected, actual)


def _misread(actual: Detections, frame: Frame) -> Relation:
    """The expected boxes are the ones that are written otherwise."""
    moved = actual.with_boxes(as_misread(frame, actual.boxes))
    detail = f"the expected boxes are {frame.written}, the actual ones xyxy"
    return Relation(moved, Reason.BOX_FORMAT, ("format", (str(frame.written), "xyxy")), detail)


def _named(frame: Frame, moved: Detections, expected: Detections, actual: Detections) -> Relation:
    if frame.written is not BoxFormat.XYXY:
        detail = f"the actual boxes are {frame.written}" + (_scale_words(frame) if frame.scaled else "")
        return Relation(moved, Reason.BOX_FORMAT, ("format", ("xyxy", str(frame.written))), detail)
    shares = [side.extent <= LARGEST_SHARE for side in (expected, actual)]
    if shares[0] != shares[1] and frame.scaled:
        width, height = frame.scale if shares[1] else (1 / frame.scale[0], 1 / frame.scale[1])
        pair = ("xyxy", "xyxy, normalised") if shares[1] else ("xyxy, normalised", "xyxy")
        which = "actual" if shares[1] else "expected"
        detail = f"the {which} boxes are shares of an image of {width:.4g} × {height:.4g} pixels"
        return Relation(moved, Reason.BOX_FORMAT, ("format", pair), detail)
    if frame.moved(expected.extent):
        return _letterboxed(frame, moved)
    detail = f"the actual boxes are{_scale_words(frame)}"
    return Relation(moved, Reason.IMAGE_SIZE, ("image_size", _sizes(frame, expected)), detail)


def _scale_words(frame: Frame) -> str:
    sx, sy = (1 / s for s in frame.scale)
    return (
        f" in an image {sx:.4g} times as large" if frame.uniform else f" in an image {sx:.4g} × {sy:.4g} times as large"
    )


def _letterboxed(frame: Frame, moved: Detections) -> Relation:
    """Boxes that still are where the letterbox put them: scaled by its gain, moved by its padding."""
    on_actual = min(frame.offset) < 0 and -min(frame.offset) >= max(frame.offset)
    gain = 1 / frame.scale[0] if on_actual else frame.scale[0]
    pad = [-t / s for t, s in zip(frame.offset, frame.scale, strict=True)] if on_actual else list(frame.offset)
    pad = [round(p, 2) + 0.0 for p in pad]  # no -0
    which = "actual" if on_actual else "expected"
    words = f"xyxy, letterbox not undone (gain {gain:.4g}, padding {pad[0]:.4g}, {pad[1]:.4g})"
    detail = (
        f"the {which} boxes are those of a letterboxed image: gain {gain:.4g}, padding {pad[0]:.4g} and {pad[1]:.4g}"
    )
    pair = ("xyxy", words) if on_actual else (words, "xyxy")
    return Relation(moved, Reason.LETTERBOX, ("format", pair), detail)


def _sizes(frame: Frame, expected: Detections) -> tuple[Any, Any]:
    """Both sizes where the expected one is known, else how large each is relative to the expected one."""
    sx, sy = frame.scale
    if expected.size is None:
        relative: Any = round(1 / sx, 4) if frame.uniform else (round(1 / sx, 4), round(1 / sy, 4))
        return (1.0 if frame.uniform else (1.0, 1.0)), relative
    width, height = expected.size
    return (round(width), round(height)), (round(width / sx), round(height / sy))
