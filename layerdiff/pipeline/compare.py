"""compare_detections(): read, relate coordinates, match, reconcile settings, explain what is left."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import BoxFormat, clipped_like
from layerdiff.pipeline.coordinates import Relation, relate
from layerdiff.pipeline.detection_model import DetectionComparison, DetectionMatch, Reason, UnmatchedDetection
from layerdiff.pipeline.explain import Absence, unmatched
from layerdiff.pipeline.found import Detections, joined
from layerdiff.pipeline.frames import find_frame, meet
from layerdiff.pipeline.given import read_both, tolerances
from layerdiff.pipeline.matching import pair_boxes
from layerdiff.pipeline.nms import candidates
from layerdiff.pipeline.notes import notes
from layerdiff.pipeline.reconcile import Pool, Reconciled, pool_of, reconcile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from layerdiff.pipeline.heads import Head


def compare_detections(
    expected: Any,
    actual: Any,
    *,
    raw: Any = None,
    image_size: Any = None,
    tolerance: tuple[float, float] | None = None,
) -> DetectionComparison:
    """Where two sets of detections differ, box by box, and which settings of post-processing explain it.

    Parameters
    ----------
    expected, actual
        What each side found, in any form: an array (n, 6) of x1, y1, x2, y2, score, class; a dict or an object with
        boxes, scores and classes (of torchvision, ultralytics, supervision, YOLOv5); COCO JSON; a YOLO ``.txt`` file or
        a folder of them; an ``.npy`` or ``.npz`` file; a raw head of YOLOv5 (batch, boxes, 5 + classes) or YOLOv8
        (batch, 4 + classes, boxes), which is decoded and filtered with confidence 0.25 and IoU 0.45; a list with one
        of those per image.
    raw
        The raw head output that the detections were made of: one for both sides, or a pair, one for each. Settings
        are then found by running post-processing on it. Without it, they are inferred from the two sides together.
    image_size
        Width and height in pixels (one number where they are equal), or a dict of them by image name: needed where
        files hold shares of the image.
    tolerance
        What a box edge (in pixels) and a score may differ by; a ten-thousandth of the image and 0.001 by default.

    Raises
    ------
    InputError
        A side is in no form that is known, or the two are of different images.
    MissingExtraError
        scipy is not installed.

    """
    given = read_both(expected, actual, raw, image_size)
    job = _Job(tuple(_image(e, a) for e, a in given.images), *given.heads)
    return job.compared(*tolerances(given.images, tolerance))


# So few boxes may lie on a threshold, where rounding decides; only a run of post-processing can tell.
FEW_ALONE = 3


def match_detections(expected: Any, actual: Any) -> DetectionComparison:
    """As `compare_detections`, but boxes without a counterpart are explained only where that can change the verdict."""
    given = read_both(expected, actual, None, None)
    job = _Job(tuple(_image(e, a) for e, a in given.images), None, None)
    few = sum(len(image.alone(0)) + len(image.alone(1)) for image in job.images) <= FEW_ALONE
    return job.compared(*tolerances(given.images, None), explain=few)


@dataclass(frozen=True, slots=True)
class _Image:
    """Both sides of one image, with the pairs as they are (`met`) and after a change of coordinates (`pairs`)."""

    expected: Detections
    actual: Detections
    relation: Relation
    met: NDArray[np.intp]
    iou: NDArray[np.float64]
    pairs: NDArray[np.intp]

    @property
    def moved(self) -> Detections:
        return self.relation.moved

    def alone(self, side: int) -> list[int]:
        """The boxes of one side (0: expected, 1: actual) without a counterpart in common coordinates."""
        count = len(self.actual if side else self.expected)
        return sorted(set(range(count)) - {int(n) for n in self.pairs[:, side]})


def _image(expected: Detections, actual: Detections) -> _Image:
    relation = relate(expected, actual)
    met, iou = pair_boxes(expected, actual)
    return _Image(expected, actual, relation, met, iou, pair_boxes(expected, relation.moved)[0])


@dataclass(frozen=True, slots=True)
class _Job:
    images: tuple[_Image, ...]
    expected_heads: tuple[Head, ...] | None
    actual_heads: tuple[Head, ...] | None

    def compared(self, tolerance_px: float, tolerance_score: float, *, explain: bool = True) -> DetectionComparison:
        """Everything about the two sides."""
        alone = explain and any(image.alone(0) or image.alone(1) for image in self.images)
        pools = self.pools() if alone else None
        found = reconcile(*pools) if pools is not None else None
        missing, extra = self.unmatched(pools, found, tolerance_score)
        matches = tuple(match for image in self.images for match in _matches(image))
        offsets = np.array([m.offset_px for m in matches]).reshape(-1, 4)
        offsets = offsets[np.isfinite(offsets).all(1)]
        shift = np.median(offsets, 0) if len(offsets) else np.zeros(4)
        scores = [m.score_shift for m in matches if np.isfinite(m.score_shift)]
        compared = DetectionComparison(
            matches,
            tuple(missing),
            tuple(extra),
            (float(shift[0]), float(shift[1]), float(shift[2]), float(shift[3])),
            float(np.median(scores)) if scores else 0.0,
            self.settings(found),
            reconciled=found is None or found.wrong == (0, 0),
            from_raw=self.expected_heads is not None,
            notes=(),
            tolerance_px=tolerance_px,
            tolerance_score=tolerance_score,
            expected=tuple(image.expected for image in self.images),
            actual=tuple(image.actual for image in self.images),
        )
        relations = [image.relation for image in self.images]
        return replace(compared, notes=notes(compared, relations, found, (self.expected_heads, self.actual_heads)))

    def settings(self, found: Reconciled | None) -> dict[str, tuple[Any, Any]]:
        """What differs, by name: post-processing, then coordinates, then the sizes of the heads."""
        settings = {} if found is None else dict(found.differing)
        for image in self.images:
            if image.relation.setting is not None:
                settings.setdefault(*image.relation.setting)
        sizes = self.sizes()
        if sizes is not None:
            settings.setdefault("image_size", sizes)
        return settings

    def sizes(self) -> tuple[Any, Any] | None:
        """The image sizes that the two heads were computed for, where they differ."""
        if self.expected_heads is None or self.actual_heads is None:
            return None
        counts = [max(len(head.boxes) for head in heads) for heads in (self.expected_heads, self.actual_heads)]
        if counts[0] == counts[1]:
            return None
        return _side_of(counts[0], self.expected_heads[0]), _side_of(counts[1], self.actual_heads[0])

    def pools(self) -> tuple[dict[bool, list[Pool]], dict[bool, list[Pool]]]:
        """The candidates of both sides: of the raw heads, else all boxes of the two sides together."""
        if self.expected_heads is None or self.actual_heads is None:
            pairs = [_together(image) for image in self.images]
            return {False: [pair[0] for pair in pairs]}, {False: [pair[1] for pair in pairs]}
        scores = np.concatenate([np.concatenate([i.expected.scores, i.actual.scores]) for i in self.images])
        least = 0.5 * float(np.nanmin(scores, initial=0.25))
        found: list[dict[bool, list[Pool]]] = []
        for heads, side in ((self.expected_heads, 0), (self.actual_heads, 1)):
            targets = [image.moved if side else image.expected for image in self.images]
            kinds = (False, True) if heads[0].classes.shape[1] > 1 else (False,)
            pairs_of = list(zip(heads, targets, strict=True))
            found.append(
                {kind: [_pool(head, target, least, multi_label=kind) for head, target in pairs_of] for kind in kinds}
            )
        return found[0], found[1]

    def unmatched(
        self, pools: Any, found: Reconciled | None, tolerance_score: float
    ) -> tuple[list[UnmatchedDetection], list[UnmatchedDetection]]:
        """The boxes of each side without a counterpart, explained by the post-processing of the other side."""
        missing: list[UnmatchedDetection] = []
        extra: list[UnmatchedDetection] = []
        resized = self.sizes() is not None
        for number, image in enumerate(self.images):
            apart = _apart(image)
            missing += [_by_relation(image.expected, n, image.relation) for n in apart[0]]
            extra += [_by_relation(image.actual, n, image.relation) for n in apart[1]]
            if found is None:
                missing += [_unasked(image.expected, n) for n in image.alone(0)]
                extra += [_unasked(image.actual, n) for n in image.alone(1)]
                continue
            for side, told, there in ((0, missing, image.expected), (1, extra, image.moved)):
                mine, theirs = (found.actual, found.expected) if side == 0 else (found.expected, found.actual)
                every = pools[1 - side]
                lone = image.alone(side)
                if not lone:
                    continue
                pool = every[mine.multi_label if mine.multi_label in every else False][number]
                absence = Absence.of(pool, mine, theirs, resized=resized, tolerance_score=tolerance_score)
                written = image.actual if side else image.expected
                told += [_as_written(absence.explain(there, n), written, n) for n in lone]
        return missing, extra


def _as_written(told: UnmatchedDetection, written: Detections, index: int) -> UnmatchedDetection:
    x1, y1, x2, y2 = (float(edge) for edge in written.boxes[index])
    return replace(told, box=(x1, y1, x2, y2), image=written.name)


def _apart(image: _Image) -> tuple[list[int], list[int]]:
    """Boxes of each side that meet only after the change of coordinates."""
    if image.relation.reason is None:
        return [], []
    met = [{int(n) for n in image.met[:, side]} for side in (0, 1)]
    return tuple(sorted({int(n) for n in image.pairs[:, side]} - met[side]) for side in (0, 1))  # type: ignore[return-value]


def _by_relation(found: Detections, index: int, relation: Relation) -> UnmatchedDetection:
    assert relation.reason is not None
    detail = f"{relation.detail}; read so, the box has a counterpart"
    return unmatched(found, index, relation.reason, detail, dict((relation.setting,) if relation.setting else ()))


def _unasked(found: Detections, index: int) -> UnmatchedDetection:
    return unmatched(found, index, Reason.UNEXPLAINED, "nothing was tried to explain it", {})


def _matches(image: _Image) -> list[DetectionMatch]:
    e, a = image.expected, image.actual
    found = []
    for (one, other), iou in zip(image.met.tolist(), image.iou.tolist(), strict=True):
        offset = [_gap(x, y) for x, y in zip(e.boxes[one], a.boxes[other], strict=True)]
        edges = (offset[0], offset[1], offset[2], offset[3])
        kinds = e.classes[one].item(), a.classes[other].item()
        shift = _gap(e.scores[one], a.scores[other])
        found.append(DetectionMatch(e.name, one, other, iou, edges, float(e.scores[one]), shift, *kinds))
    return found


def _gap(expected: float, actual: float) -> float:
    """Actual minus expected; NaN and Inf on both sides coincide, on one side they are as far away as can be."""
    if expected == actual or (np.isnan(expected) and np.isnan(actual)):
        return 0.0
    with np.errstate(over="ignore"):
        gap = float(actual - expected)
    return gap if np.isfinite(gap) else float("inf")


def _together(image: _Image) -> tuple[Pool, Pool]:
    """Candidates of each side when no raw head is there: its own boxes, and what only the other side has."""
    e, a = image.expected, image.moved
    only_e, only_a = (side.picked(np.asarray(image.alone(n), np.intp)) for n, side in ((0, e), (1, a)))
    return pool_of(joined(e, only_a), e.picked(e.finite)), pool_of(joined(a, only_e), a.picked(a.finite))


def _pool(head: Head, target: Detections, least: float, *, multi_label: bool) -> Pool:
    found = candidates(head, multi_label=multi_label, least=least)
    found = found.picked(found.finite)
    near = _scored_alike(found, target)
    as_they_are = meet(clipped_like(near.boxes, target.boxes), target.boxes)
    frame = None if as_they_are else find_frame(near, target, (BoxFormat.XYXY,))
    if frame is not None and not frame.is_identity(target.extent):
        found = found.with_boxes(frame.applied(found.boxes))
    return pool_of(found, target.picked(target.finite))


def _scored_alike(found: Detections, target: Detections) -> Detections:
    """The candidates whose scores the detections have: of thousands only these tell where boxes have gone."""
    near = [
        np.argsort(np.abs(found.scores - score) + (found.classes != kind), kind="stable")[:2]
        for score, kind in zip(target.scores, target.classes, strict=True)
    ]
    return found.picked(np.unique(np.concatenate(near)) if near else np.zeros(0, np.intp))


def _side_of(count: int, head: Head) -> Any:
    """The side of the square image for which a head with three scales has so many boxes, else the number of boxes."""
    each = 3 if head.objectness is not None else 1  # YOLOv5 has three anchors per cell
    side = np.sqrt(count / (each * (1 / 64 + 1 / 256 + 1 / 1024)))
    return round(side) if abs(side - round(side)) < 1e-6 else f"{count} boxes"
