"""How the coordinates of one side become those of the other: another box format, another scale, an offset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import BoxFormat, corners, overlaps, written_as

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from layerdiff.pipeline.found import Detections

    Floats = NDArray[np.float64]

# A pair supports a frame when its boxes share so much after the change of coordinates.
SUPPORT_IOU = 0.8
# Of so many boxes of each side, the most confident ones, every likely pair proposes a frame.
PROPOSERS = 24
# So many boxes of each side, the most confident ones, judge the proposals.
JUDGES = 120
# Scales within a tenth of a percent are one, and so are offsets within a thousandth of the image.
SLACK = 1e-3


@dataclass(frozen=True, slots=True)
class Frame:
    """A change of coordinates: numbers read as `written`, then ``scale * corner + offset`` along x and y.

    `support` is how many boxes of the two sides it brings together.
    """

    written: BoxFormat = BoxFormat.XYXY
    scale: tuple[float, float] = (1.0, 1.0)
    offset: tuple[float, float] = (0.0, 0.0)
    support: int = 0

    def applied(self, boxes: Floats) -> Floats:
        """Boxes in the coordinates of the other side."""
        return _moved(corners(boxes, self.written), self.scale, self.offset)

    def is_identity(self, extent: float) -> bool:
        """Whether nothing changes, for an image of that extent."""
        return self.written is BoxFormat.XYXY and not self.scaled and not self.moved(extent)

    @property
    def scaled(self) -> bool:
        """Whether lengths change."""
        return max(abs(s - 1.0) for s in self.scale) > 5 * SLACK

    @property
    def uniform(self) -> bool:
        """Whether both axes are scaled alike."""
        return abs(self.scale[0] / self.scale[1] - 1.0) < 5 * SLACK

    def moved(self, extent: float) -> bool:
        """Whether the origin is elsewhere, for an image of that extent."""
        return max(abs(t) for t in self.offset) > 5 * SLACK * max(extent, 1e-12)


def _moved(boxes: Floats, scale: Any, offset: Any) -> Floats:
    return np.asarray(boxes * np.tile(scale, 2) + np.tile(offset, 2))


def as_misread(frame: Frame, boxes: Floats) -> Floats:
    """Boxes of the target's coordinates as the source would have written them."""
    unmoved = (boxes - np.tile(frame.offset, 2)) / np.tile(frame.scale, 2)
    return written_as(unmoved, frame.written)


def find_frame(source: Detections, target: Detections, formats: tuple[BoxFormat, ...]) -> Frame | None:
    """The change of coordinates under which most boxes of `source` meet one of `target`; None when none is convincing.

    Every pair of boxes with one class and nearly one score determines a scale and an offset; the one that most others
    support wins, as in RANSAC, and is then fitted to all of them.
    """
    source, target = source.picked(source.finite), target.picked(target.finite)
    if not len(source) or not len(target):
        return None
    source, target = _most_confident(source), _most_confident(target)
    if meet(source.boxes, target.boxes):
        return Frame(support=min(len(source), len(target)))
    pairs = list(_likely(source, target))
    best: Frame | None = None
    for written in formats:
        boxes = corners(source.boxes, written)
        for frame in _proposed(boxes, target, pairs, written):
            if best is None or _rank(frame, target.extent) > _rank(best, target.extent):
                best = frame
    if best is None or not _convincing(best, source, target, pairs):
        return None
    return _fitted(best, source, target)


def _most_confident(found: Detections) -> Detections:
    return found.picked(np.sort(np.argsort(-found.scores, kind="stable")[:JUDGES]))


def meet(source: Floats, target: Floats) -> bool:
    """Whether the boxes meet as they are, all of those of one side."""
    iou = overlaps(source, target)
    return bool(min(len(source), len(target)) and (iou.max(0).min() > 0.995 or iou.max(1).min() > 0.995))


def _rank(frame: Frame, extent: float) -> tuple[int, int]:
    """More support first, then fewer changes."""
    changes = (frame.written is not BoxFormat.XYXY) + 2 * (not frame.uniform) + frame.scaled + frame.moved(extent)
    return frame.support, -int(changes)


def _likely(source: Detections, target: Detections) -> Iterator[tuple[int, int]]:
    """Pairs that could be one detection, by class and score."""
    for t in np.argsort(-target.scores, kind="stable")[:PROPOSERS]:
        gap = np.abs(source.scores - target.scores[t]) + 0.5 * (source.classes != target.classes[t])
        for s in np.argsort(gap, kind="stable")[:3]:
            if gap[s] < 0.1:
                yield int(s), int(t)


def _proposed(boxes: Floats, target: Detections, pairs: list[tuple[int, int]], written: BoxFormat) -> Iterator[Frame]:
    yield Frame(written, support=_support(boxes, target))
    for s, t in pairs:
        scale, offset = _between(boxes[s], target.boxes[t])
        if scale is None:
            continue
        yield Frame(written, scale, offset, _support(_moved(boxes, scale, offset), target))


def _between(box: Floats, other: Floats) -> tuple[Any, Any]:
    """Scale and offset that make one box of another; nothing where a box has no size."""
    size, wanted = box[2:] - box[:2], other[2:] - other[:2]
    if not (np.all(size > 0) and np.all(wanted > 0)):
        return None, None
    scale = wanted / size
    if abs(scale[0] / scale[1] - 1.0) < 0.02:  # one scale on both axes, up to rounding
        scale[:] = np.sqrt(scale[0] * scale[1])
    offset = (other[:2] + other[2:]) / 2 - scale * (box[:2] + box[2:]) / 2
    return (float(scale[0]), float(scale[1])), (float(offset[0]), float(offset[1]))


def _support(boxes: Floats, target: Detections) -> int:
    iou = overlaps(boxes, target.boxes)
    return int(min(np.count_nonzero(iou.max(1) >= SUPPORT_IOU), np.count_nonzero(iou.max(0) >= SUPPORT_IOU)))


def _convincing(frame: Frame, source: Detections, target: Detections, pairs: list[tuple[int, int]]) -> bool:
    """Whether the support cannot be chance: any one pair fits some frame, and a free stretch fits more than a scale."""
    if frame.support >= max(2 if frame.uniform else 3, 0.3 * min(len(source), len(target))):
        return True
    exact = any(abs(source.scores[s] - target.scores[t]) < 1e-4 for s, t in pairs)
    single = min(len(source), len(target)) <= 2 and frame.support == min(len(source), len(target))
    plain = frame.uniform or source.extent <= 1.5 or target.extent <= 1.5
    return single and exact and plain and len({*source.scores[:2].tolist()} | {1.0}) > 1


def _fitted(frame: Frame, source: Detections, target: Detections) -> Frame:
    """The frame with the scale and offset that fit its pairs best; pairs that stay far off are left out."""
    if not frame.scaled and frame.offset == (0.0, 0.0):
        return frame
    boxes = corners(source.boxes, frame.written)
    moved = _moved(boxes, frame.scale, frame.offset)
    iou = overlaps(moved, target.boxes)
    with np.errstate(invalid="ignore"):
        worth = iou - np.abs(source.scores[:, None] - target.scores[None])
    mine = np.nonzero(iou.max(1) >= SUPPORT_IOU)[0]
    a, b = boxes[mine], target.boxes[worth[mine].argmax(1)]
    for _ in range(2):
        if len(a) < 2:
            return frame
        far = np.abs(_moved(a, frame.scale, frame.offset) - b).max(1)
        near = far <= 2 * np.median(far)
        a, b = a[near], b[near]
        scale, offset = zip(*(_line(a[:, axis::2].ravel(), b[:, axis::2].ravel()) for axis in (0, 1)), strict=True)
        fitted = Frame(frame.written, scale, offset, frame.support)
        if _support(_moved(boxes, scale, offset), target) < frame.support:
            return frame
        frame = fitted
    return frame


def _line(x: Floats, y: Floats) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    slope = float(np.polyfit(x - x.mean(), y, 1)[0]) if np.ptp(x) > 0 else 1.0
    return slope, float(y.mean() - slope * x.mean())
