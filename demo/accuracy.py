"""How many drawn objects a detector finds: precision and recall on pictures it was not trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from demo.detections import box_iou, detect
from demo.shapes import CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from demo.detections import Detection
    from demo.detector import Detector
    from demo.shapes import Scene


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Precision and recall at an IoU threshold over all objects of all scenes."""

    precision: float
    recall: float
    objects: int


def measure_accuracy(detector: Detector, scenes: Sequence[Scene], iou: float, confidence: float) -> Accuracy:
    """Return how well the detector, in eval mode, does on the scenes; a hit has the right class and enough overlap."""
    hits = found = objects = 0
    for scene in scenes:
        with torch.no_grad():
            detections = detect(detector(torch.from_numpy(scene.image[None])).numpy(), confidence)
        hits += count_hits(detections, scene, iou)
        found += len(detections)
        objects += len(scene.boxes)
    return Accuracy(hits / max(found, 1), hits / max(objects, 1), objects)


def count_hits(detections: Sequence[Detection], scene: Scene, iou: float) -> int:
    """Return how many objects are found, each by at most one detection, the most confident first."""
    free = np.ones(len(scene.boxes), bool)
    for detection in detections:
        overlaps = box_iou(np.array(detection.box), scene.boxes)
        usable = free & (scene.classes == CLASSES.index(detection.label)) & (overlaps >= iou)
        if usable.any():
            free[np.where(usable, overlaps, -1.0).argmax()] = False
    return int((~free).sum())
