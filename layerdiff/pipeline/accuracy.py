"""COCO's average precision, through pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError, MissingExtraError
from layerdiff.pipeline.reading import in_pixels, read_side

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from layerdiff.pipeline.detection_model import DetectionComparison
    from layerdiff.pipeline.found import Detections

# What COCOeval.stats holds, in its order, as far as it counts all sizes of objects.
NAMES = {"AP": 0, "AP50": 1, "AP75": 2, "AR": 8}


def accuracies(compared: DetectionComparison, labels: Any = None) -> pd.DataFrame:
    """One row per measurement: which side was judged, against what, and COCO's AP, AP50, AP75 and AR."""
    import pandas as pd

    expected, actual = compared.expected, compared.actual
    if labels is None:
        runs = [("actual", "expected", actual, expected), ("expected", "actual", expected, actual)]
    else:
        truth = _labels(labels, expected)
        runs = [("expected", "labels", expected, truth), ("actual", "labels", actual, truth)]
    rows = [{"judged": a, "against": b, **average_precision(truth, found)} for a, b, found, truth in runs]
    return pd.DataFrame(rows)


def _labels(labels: Any, images: Sequence[Detections]) -> tuple[Detections, ...]:
    sizes = {image.name: image.size for image in images if image.size is not None}
    side = read_side(labels, "labels")
    side = in_pixels(side, sizes, "labels") if sizes and all(i.name in sizes for i in side.images) else side
    by_name = {image.name: image for image in side.images if image.name}
    if by_name and all(image.name in by_name for image in images):
        return tuple(by_name[image.name] for image in images)
    if len(side.images) != len(images):
        raise InputError(f"labels: {len(side.images)} images, the comparison has {len(images)}; give one per image")
    return side.images


def average_precision(truth: Sequence[Detections], found: Sequence[Detections]) -> dict[str, float]:
    """COCO's AP (mean over IoU 0.5 to 0.95), AP50, AP75 and AR of 100 boxes per image; NaN without any true box."""
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingExtraError("average precision", "pycocotools") from error
    kinds = sorted({kind for image in truth for kind in image.classes.tolist()}, key=str)
    number = {kind: n for n, kind in enumerate(kinds, 1)}
    if not kinds:
        return dict.fromkeys(NAMES, float("nan"))
    true_rows = [row for n, image in enumerate(truth, 1) for row in _rows(image, n, number)]
    rows = [row for n, image in enumerate(found, 1) for row in _rows(image, n, number)]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth_set, found_set = COCO(), COCO()
        for data, annotations in ((truth_set, true_rows), (found_set, rows)):
            data.dataset = {
                "images": [{"id": n} for n in range(1, len(truth) + 1)],
                "categories": [{"id": n} for n in number.values()],
                "annotations": [{**row, "id": n} for n, row in enumerate(annotations, 1)],
            }
            data.createIndex()
        run = COCOeval(truth_set, found_set, "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {name: max(0.0, float(run.stats[at])) for name, at in NAMES.items()}


def _rows(image: Detections, number: int, kinds: dict[Any, int]) -> list[dict[str, Any]]:
    """COCO's annotations of one image; boxes that are not finite cannot match and are left out."""
    rows = []
    for box, score, kind in zip(image.boxes, image.scores, image.classes.tolist(), strict=True):
        if kind in kinds and np.isfinite(box).all() and np.isfinite(score):
            x, y, w, h = (float(v) for v in (box[0], box[1], box[2] - box[0], box[3] - box[1]))
            rows.append({
                "image_id": number, "category_id": kinds[kind], "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
                "score": float(score),
            })  # fmt: skip
    return rows
