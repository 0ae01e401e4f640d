"""The nouns of a comparison of detections: frozen, and all that its views are made of."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (part of the public signature)
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from layerdiff.pipeline.found import Detections

    Box = tuple[float, float, float, float]


class Reason(str, Enum):
    """Why a box of one side has no counterpart on the other."""

    CONF_THRESHOLD = "conf-threshold"
    NMS_IOU = "nms-iou"
    NMS_CLASS_AGNOSTIC = "nms-class-agnostic"
    MAX_DET = "max-det"
    BOX_FORMAT = "box-format"
    LETTERBOX = "letterbox"
    IMAGE_SIZE = "image-size"
    SCORE = "score"
    CLASS = "class"
    UNEXPLAINED = "unexplained"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class DetectionMatch:
    """One box that both sides found.

    `offset_px` is actual minus expected for left, top, right and bottom, in the units of the boxes (pixels, unless both
    sides are shares of the image); `score_shift` is actual minus expected.
    """

    image: str
    expected: int
    actual: int
    iou: float
    offset_px: tuple[float, float, float, float]
    score: float
    score_shift: float
    expected_class: Any
    actual_class: Any

    @property
    def same_class(self) -> bool:
        """Whether both sides name one class."""
        return bool(self.expected_class == self.actual_class)


@dataclass(frozen=True, slots=True)
class UnmatchedDetection:
    """One box that only one side has, and why the other does not.

    `index` counts within its image and side; `detail` says it in a sentence with numbers, which are in `evidence` too
    (`threshold`, `below_by`, `suppressed_by` (a box), `iou`, `limit`). `within_rounding` is True where the scores lie
    on both sides of a threshold and differ by no more than rounding.
    """

    image: str
    index: int
    box: tuple[float, float, float, float]
    score: float
    label: Any
    reason: Reason
    detail: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    within_rounding: bool = False


@dataclass(frozen=True)
class DetectionComparison:
    """What `compare_detections` found.

    Attributes
    ----------
    matches
        Boxes that both sides have, the same place by IoU of at least 0.5, by image.
    missing
        Boxes that only `expected` has, each with its reason.
    extra
        Boxes that only `actual` has, each with its reason.
    shift_px
        How far boxes are moved systematically: the median of actual minus expected, for left, top, right, bottom.
    score_shift
        The median of actual minus expected over the matches.
    settings
        What differs between the two post-processings, by name, as (expected, actual): conf, iou, max_det (None: no
        limit), agnostic, multi_label, image_size, format. Settings that need not differ are not listed.
    reconciled
        Whether post-processing with these settings, run again, gives exactly the boxes of both sides. It is run on
        `raw`, else on all boxes of the two sides together, which `from_raw` tells apart.
    notes
        What else is to be known, one sentence each.
    tolerance_px, tolerance_score
        What a box edge and a score may differ by.

    """

    matches: tuple[DetectionMatch, ...]
    missing: tuple[UnmatchedDetection, ...]
    extra: tuple[UnmatchedDetection, ...]
    shift_px: tuple[float, float, float, float]
    score_shift: float
    settings: Mapping[str, tuple[Any, Any]]
    reconciled: bool
    from_raw: bool
    notes: tuple[str, ...]
    tolerance_px: float
    tolerance_score: float
    expected: tuple[Detections, ...] = field(default=(), repr=False, compare=False)
    actual: tuple[Detections, ...] = field(default=(), repr=False, compare=False)

    @property
    def agrees(self) -> bool:
        """Whether both sides have the same boxes, scores and classes, up to rounding."""
        alone = all(box.within_rounding for box in (*self.missing, *self.extra))
        return alone and "format" not in self.settings and all(self.match_agrees(match) for match in self.matches)

    def match_agrees(self, match: DetectionMatch) -> bool:
        """Whether box, score and class of one pair are equal up to rounding."""
        near = all(abs(offset) <= self.tolerance_px for offset in match.offset_px)
        return near and abs(match.score_shift) <= self.tolerance_score and match.same_class

    @property
    def flips(self) -> tuple[DetectionMatch, ...]:
        """Matches of one place to which the two sides give different classes."""
        return tuple(match for match in self.matches if not match.same_class)

    @property
    def verdict(self) -> str:
        """A few sentences to paste in a chat."""
        from layerdiff.pipeline.detection_text import verdict

        return verdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per box: matched, missing or extra, with offsets, score shift and reason."""
        from layerdiff.pipeline.detection_text import to_frame

        return to_frame(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers, for JSON."""
        from layerdiff.pipeline.detection_text import to_dict

        return to_dict(self)

    def accuracy(self, labels: Any = None) -> pd.DataFrame:
        """COCO's average precision (pycocotools), one row per measurement.

        Each side against `labels` where they are given (in any form that `compare_detections` takes); else each side
        against the other, taken as the truth.

        Raises
        ------
        MissingExtraError
            pycocotools is not installed.
        InputError
            The labels are in no form that is known, or are of other images.

        """
        from layerdiff.pipeline.accuracy import accuracies

        return accuracies(self, labels)

    def confidence(self) -> Any:
        """The two distributions of scores, with tests for a shift: see `ConfidenceShift`."""
        from layerdiff.pipeline.confidence import confidence_shift

        return confidence_shift(self)

    def plot(self, image: Any = None, *, which: str | None = None, path: str | Path | None = None) -> Figure:
        """Both sides' boxes over one image: matched, missing and extra; written to `path` when one is given.

        `image` is an array (H, W), (H, W, 3) or (3, H, W), or the path of a file; without it the boxes are drawn on
        white. `which` is the name of the image in the comparison; the first one that differs by default.
        """
        from layerdiff.pipeline.detection_picture import plot

        return plot(self, image, which=which, path=path)

    def _repr_html_(self) -> str:
        from layerdiff.pipeline.detection_text import fragment

        return fragment(self)

    def __str__(self) -> str:
        from layerdiff.pipeline.detection_text import summary

        return summary(self)
