"""Why a box of one side has no counterpart on the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import overlaps
from layerdiff.pipeline.detection_model import Reason, UnmatchedDetection
from layerdiff.pipeline.matching import LEAST_IOU
from layerdiff.pipeline.nms import Dropped, Fate, NmsSettings, fates
from layerdiff.pipeline.reconcile import SAME_IOU, SAME_SCORE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.pipeline.found import Detections
    from layerdiff.pipeline.reconcile import Pool


@dataclass(frozen=True, slots=True)
class Absence:
    """What is needed to explain absences on one side: its pool, its settings, those of the other side."""

    pool: Pool
    fates: list[Fate]
    mine: NmsSettings
    theirs: NmsSettings
    resized: bool
    tolerance_score: float

    @classmethod
    def of(
        cls, pool: Pool, mine: NmsSettings, theirs: NmsSettings, *, resized: bool, tolerance_score: float
    ) -> Absence:
        """Post-processing of one side, run once for all boxes that it lacks."""
        return cls(pool, fates(pool.found, mine, pool.near), mine, theirs, resized, tolerance_score)

    def explain(self, found: Detections, index: int) -> UnmatchedDetection:
        """Why this side lacks a box that the other side found."""
        reason, detail, evidence, rounding = self._why(found, index)
        if self.resized and reason in (Reason.SCORE, Reason.UNEXPLAINED):
            reason, detail = Reason.IMAGE_SIZE, f"the network saw another image size; {detail}"
        return unmatched(found, index, reason, detail, evidence, within_rounding=rounding)

    def _why(self, found: Detections, index: int) -> tuple[Reason, str, Mapping[str, Any], bool]:
        if not found.finite[index]:
            return Reason.UNEXPLAINED, "its box or score is not finite", {}, False
        at, exact = _counterpart(self.pool.found, found, index)
        if self.theirs.multi_label and not self.mine.multi_label and not exact:
            detail = "another class of a box than its best one; only multi_label makes a candidate of it"
            return Reason.CLASS, detail, {"multi_label": False}, False
        if at is None:
            return (*self._elsewhere(found, index), False)
        score, fate = float(self.pool.found.scores[at]), self.fates[at]
        if fate.dropped is Dropped.CONFIDENCE:
            return self._below(float(found.scores[index]), score)
        if fate.dropped is Dropped.OVERLAP and fate.by is not None:
            return (*self._suppressed(at, fate), False)
        if fate.dropped is Dropped.LIMIT:
            limit = self.mine.max_det
            return Reason.MAX_DET, f"beyond the {limit} most confident boxes", {"limit": limit, "score": score}, False
        detail = (
            "a candidate is there, and no setting of post-processing that was tried explains why it did not come out"
        )
        return Reason.UNEXPLAINED, detail, {"score": score}, False

    def _below(self, theirs: float, mine: float) -> tuple[Reason, str, Mapping[str, Any], bool]:
        conf, gap = self.mine.conf, self.mine.conf - mine
        evidence = {"threshold": conf, "below_by": gap, "score": mine, "score_there": theirs}
        moved = abs(theirs - mine)
        if self.theirs.conf != conf and theirs <= max(conf, self.theirs.conf) + self.tolerance_score:
            return (
                Reason.CONF_THRESHOLD,
                f"its score {mine:.4g} is {gap:.3g} below the threshold {conf:g}",
                evidence,
                False,
            )
        if moved > 0:
            detail = f"its score is {theirs:.4g} on the other side and {mine:.4g} here, below the threshold {conf:g}"
            return Reason.SCORE, detail, evidence, moved <= self.tolerance_score
        return Reason.CONF_THRESHOLD, f"its score {mine:.4g} is {gap:.3g} below the threshold {conf:g}", evidence, False

    def _suppressed(self, at: int, fate: Fate) -> tuple[Reason, str, Mapping[str, Any]]:
        pool, by = self.pool.found, fate.by
        assert by is not None
        other = bool(pool.classes[by] != pool.classes[at])
        lead = float(pool.scores[by] - pool.scores[at])
        box = tuple(float(edge) for edge in pool.boxes[by])
        evidence = {
            "suppressed_by": box,
            "iou": fate.iou,
            "threshold": self.mine.iou,
            "score_of_suppressor": float(pool.scores[by]),
            "class_of_suppressor": pool.classes[by].item(),
            "tie": lead <= self.tolerance_score,
        }
        detail = f"suppressed by {place(box)}"
        detail += f" of class {pool.classes[by]}" if other else ""
        detail += f", score {pool.scores[by]:.3g}, at IoU {fate.iou:.3f}, above {self.mine.iou:g}"
        if lead <= self.tolerance_score:
            detail += "; the two scores are equal up to rounding, so their order decides"
        return (Reason.NMS_CLASS_AGNOSTIC if other else Reason.NMS_IOU), detail, evidence

    def _elsewhere(self, found: Detections, index: int) -> tuple[Reason, str, Mapping[str, Any]]:
        pool = self.pool.found
        iou = overlaps(found.boxes[index : index + 1], pool.boxes)[0] if len(pool) else np.zeros(0)
        near = np.nonzero(iou >= LEAST_IOU)[0]
        if len(near):
            best = int(near[pool.scores[near].argmax()])
            evidence = {"class": pool.classes[best].item(), "iou": float(iou[best]), "score": float(pool.scores[best])}
            detail = (
                f"there the box is of class {pool.classes[best]}, score {pool.scores[best]:.3g}, IoU {iou[best]:.2f}"
            )
            return Reason.CLASS, detail, evidence
        most = float(iou.max()) if len(iou) else 0.0
        detail = f"nothing of the other side overlaps it by more than {most:.2f}; look at the inputs and the network"
        return Reason.UNEXPLAINED, detail, {"iou": most}


def _counterpart(pool: Detections, found: Detections, index: int) -> tuple[int | None, bool]:
    """The candidate of the same class and place (the score decides between several), and whether it is the very one."""
    same = np.nonzero(pool.classes == found.classes[index])[0]
    if not len(same):
        return None, False
    iou = overlaps(found.boxes[index : index + 1], pool.boxes[same])[0]
    apart = np.abs(pool.scores[same] - found.scores[index])
    worth = np.where(iou >= LEAST_IOU, iou**4 - apart, -np.inf)
    best = int(worth.argmax())
    if not np.isfinite(worth[best]):
        return None, False
    return int(same[best]), bool(iou[best] >= SAME_IOU and apart[best] <= SAME_SCORE * found.scores[index])


def unmatched(  # noqa: PLR0913  the parts of one finding
    found: Detections,
    index: int,
    reason: Reason,
    detail: str,
    evidence: Mapping[str, Any],
    *,
    within_rounding: bool = False,
) -> UnmatchedDetection:
    """One box without a counterpart, with its reason."""
    x1, y1, x2, y2 = (float(edge) for edge in found.boxes[index])
    return UnmatchedDetection(
        found.name,
        index,
        (x1, y1, x2, y2),
        float(found.scores[index]),
        found.classes[index].item(),
        reason,
        detail,
        evidence,
        within_rounding,
    )


def place(box: tuple[float, ...]) -> str:
    """A box as people read it."""
    return "[" + ", ".join(f"{edge:.4g}" for edge in box) + "]"
