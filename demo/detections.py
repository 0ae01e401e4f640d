"""From the detector's raw output to detections: non-maximum suppression, and pictures of the result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from demo.shapes import CLASSES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

# Okabe and Ito's palette, readable with any colour vision: one per class.
COLOURS = dict(zip(CLASSES, ("#e69f00", "#56b4e9", "#f0e442", "#cc79a7"), strict=True))

LABEL_WIDTH_PX, LABEL_HEIGHT_PX = 22.0, 6.0


@dataclass(frozen=True, slots=True)
class Detection:
    """One found object: its box as x1, y1, x2, y2 in pixels, its class name and the confidence in [0, 1]."""

    box: tuple[float, float, float, float]
    label: str
    confidence: float


def detect(raw_output: NDArray[Any], confidence: float = 0.25, iou: float = 0.45) -> list[Detection]:
    """Return the detections in one image's raw output (1, N, 5 + classes), most confident first."""
    rows = raw_output[0].astype(np.float64)
    scores = rows[:, 4] * rows[:, 5:].max(1)
    kinds = rows[:, 5:].argmax(1)
    boxes = np.concatenate([rows[:, :2] - rows[:, 2:4] / 2, rows[:, :2] + rows[:, 2:4] / 2], 1)
    # Stable, so that equal scores keep the detector's order.
    waiting = np.argsort(-scores, kind="stable")
    waiting = waiting[scores[waiting] >= confidence]
    found = []
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        x1, y1, x2, y2 = (float(edge) for edge in boxes[best])
        found.append(Detection((x1, y1, x2, y2), CLASSES[kinds[best]], float(scores[best])))
        waiting = rest[(box_iou(boxes[best], boxes[rest]) <= iou) | (kinds[rest] != kinds[best])]
    return found


def box_iou(box: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Return the IoU (n,) of one box (4,) with others (n, 4), corners in pixels."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    overlap = sides.clip(0.0).prod(1)
    union = np.prod(box[2:] - box[:2]) + (others[:, 2:] - others[:, :2]).prod(1) - overlap
    return np.asarray(overlap / union)


def draw_side_by_side(image: NDArray[Any], panels: Sequence[tuple[str, Sequence[Detection]]], path: Path) -> Path:
    """Return `path`, where one PNG now shows the image (3, H, W) once per titled panel, with its detections."""
    figure = Figure(figsize=(4.6 * len(panels), 5.0), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (title, detections) in zip(axes, panels, strict=True):
        axis.imshow(image.transpose(1, 2, 0))
        axis.set_title(f"{title}: {len(detections)} detections")
        axis.set_axis_off()
        _draw_boxes(axis, detections)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return path


def _draw_boxes(axis: Axes, detections: Sequence[Detection]) -> None:
    """Draw labelled boxes; the label moves below its box where another one is already above it."""
    taken: list[tuple[float, float]] = []
    for detection in detections:
        # The half pixel: `imshow` puts pixel centres on whole numbers.
        x1, y1, x2, y2 = (edge - 0.5 for edge in detection.box)
        colour = COLOURS[detection.label]
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="black", linewidth=3.5))
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=2.0))
        at = (max(x1, 0.0), max(y1, 6.0))
        crowded = any(abs(at[0] - x) < LABEL_WIDTH_PX and abs(at[1] - y) < LABEL_HEIGHT_PX for x, y in taken)
        if crowded:
            at = (at[0], y2)
        taken.append(at)
        axis.text(
            *at,
            f"{detection.label} {detection.confidence:.2f}",
            fontsize=8,
            verticalalignment="top" if crowded else "bottom",
            bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0},
            clip_on=True,
        )
