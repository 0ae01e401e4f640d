"""Post-processing as YOLOv5 does it, written plainly, so that the fate of every candidate can be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import overlapping
from layerdiff.pipeline.found import Detections

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from layerdiff.pipeline.heads import Head

# YOLOv5's non_max_suppression keeps at most so many candidates, the most confident ones.
MAX_CANDIDATES = 30_000


@dataclass(frozen=True, slots=True)
class NmsSettings:
    """What post-processing is told.

    A box is kept when its confidence is above `conf`, unless one that is more confident overlaps it by more than
    `iou` (of the same class only, unless `agnostic`); of what is left at most `max_det` (None: all) come out.
    `multi_label` makes a candidate of every class of a box instead of its best one, as YOLOv5's val.py does.
    """

    conf: float = 0.25
    iou: float = 0.45
    max_det: int | None = 300
    agnostic: bool = False
    multi_label: bool = False


class Dropped(str, Enum):
    """Why a candidate did not come out."""

    CONFIDENCE = "conf"
    OVERLAP = "overlap"
    LIMIT = "limit"


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of a candidate: None in `dropped` when it was kept; else why, and `by` which at which `iou`."""

    dropped: Dropped | None
    by: int | None = None
    iou: float = 0.0


def candidates(head: Head, *, multi_label: bool = False, least: float = 0.0) -> Detections:
    """Every box of a head with its best class (each class above `least`, with `multi_label`), most confident first."""
    scores = np.where(np.isnan(head.scores), -np.inf, head.scores)
    if multi_label:
        row, kind = np.nonzero(scores > least)
    else:
        kind = scores.argmax(1)
        row = np.nonzero(scores[np.arange(len(kind)), kind] > least)[0]
        kind = kind[row]
    score = scores[row, kind]
    order = np.argsort(-score, kind="stable")[:MAX_CANDIDATES]  # equal scores keep the head's order
    return Detections(head.boxes[row[order]], score[order], kind[order])


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """Which candidates overlap which, computed once for all thresholds. Candidates are sorted by confidence."""

    first: NDArray[np.intp]
    second: NDArray[np.intp]
    iou: NDArray[np.float64]
    same: NDArray[np.bool_]
    count: int

    @classmethod
    def of(cls, found: Detections, least: float = 0.05) -> Neighbours:
        """The neighbours in sorted candidates that overlap by more than `least`."""
        first, second, iou = overlapping(found.boxes, least)
        order = np.argsort(first, kind="stable")
        first, second, iou = first[order], second[order], iou[order]
        return cls(first, second, iou, found.classes[first] == found.classes[second], len(found))

    def suppressed_by(self, iou: float, *, agnostic: bool) -> NDArray[np.intp]:
        """For each candidate the kept one that suppresses it, or -1 where it is kept itself (greedy suppression)."""
        use = self.iou > iou if agnostic else (self.iou > iou) & self.same
        first, second = self.first[use], self.second[use]
        by = np.full(self.count, -1, np.intp)
        bounds = np.searchsorted(first, np.arange(self.count + 1))
        for at in np.flatnonzero(np.diff(bounds)):
            if by[at] < 0:
                others = second[bounds[at] : bounds[at + 1]]
                by[others[by[others] < 0]] = at
        return by

    def shared(self, one: int, other: int) -> float:
        """The IoU of two candidates."""
        here = (self.first == min(one, other)) & (self.second == max(one, other))
        return float(self.iou[here][0]) if here.any() else 0.0


def fates(found: Detections, settings: NmsSettings, neighbours: Neighbours | None = None) -> list[Fate]:
    """What becomes of each candidate (sorted by confidence)."""
    near = neighbours or Neighbours.of(found)
    by = near.suppressed_by(settings.iou, agnostic=settings.agnostic)
    told, kept = [], 0
    for at, (score, who) in enumerate(zip(found.scores, by, strict=True)):
        if not score > settings.conf:
            told.append(Fate(Dropped.CONFIDENCE))
        elif who >= 0:
            told.append(Fate(Dropped.OVERLAP, int(who), near.shared(at, int(who))))
        elif settings.max_det is not None and kept >= settings.max_det:
            told.append(Fate(Dropped.LIMIT))
        else:
            kept += 1
            told.append(Fate(None))
    return told


def suppress(found: Detections, settings: NmsSettings) -> Detections:
    """What comes out of sorted candidates."""
    above = found.picked(found.scores > settings.conf)
    by = Neighbours.of(above).suppressed_by(settings.iou, agnostic=settings.agnostic)
    return above.picked(np.nonzero(by < 0)[0][: settings.max_det])


def detect(head: Head, settings: NmsSettings) -> Detections:
    """What YOLOv5's post-processing makes of one image's head."""
    return suppress(candidates(head, multi_label=settings.multi_label, least=settings.conf), settings)


def best_first(found: Detections) -> Detections:
    """Sorted by confidence, equal ones in their order, NaN last."""
    scores: NDArray[Any] = np.where(np.isnan(found.scores), -np.inf, found.scores)
    return found.picked(np.argsort(-scores, kind="stable"))
