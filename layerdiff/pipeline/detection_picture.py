"""Detections as pictures: both sides' boxes over the image, and the distributions of their scores."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from layerdiff.errors import InputError
from layerdiff.files import replacing
from layerdiff.report.plot import Picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from layerdiff.pipeline.confidence import ConfidenceShift
    from layerdiff.pipeline.detection_model import DetectionComparison

    Box = tuple[float, float, float, float]

# Readable with any colour vision.
EXPECTED, ACTUAL, MISSING, EXTRA = "#0072b2", "#e69f00", "#d55e00", "#cc79a7"
# Labels of more boxes than this cover each other.
MOST_LABELS = 40


def plot(
    compared: DetectionComparison, image: Any = None, *, which: str | None = None, path: str | Path | None = None
) -> Figure:
    """Expected boxes dashed, actual ones solid, missing and extra ones thick, with reasons."""
    at = _which(compared, which)
    expected, actual = compared.expected[at], compared.actual[at]
    pixels = None if image is None else _pixels(image)
    figure = Picture(figsize=(8.0, 6.4), layout="constrained")
    axes = figure.add_subplot()
    if pixels is not None:
        axes.imshow(pixels, cmap="gray" if pixels.ndim == 2 else None)
    else:
        _frame(axes, np.concatenate([expected.boxes, actual.boxes]))
    missing = [box for box in compared.missing if box.image == expected.name]
    extra = [box for box in compared.extra if box.image == actual.name]
    lone = ({box.index for box in missing}, {box.index for box in extra})
    for n, box in enumerate(expected.boxes.tolist()):
        if n not in lone[0]:
            _draw(axes, box, EXPECTED, 3.2, "-")
    for n, box in enumerate(actual.boxes.tolist()):
        if n not in lone[1]:
            _draw(axes, box, ACTUAL, 1.4, "--")
    few = len(missing) + len(extra) <= MOST_LABELS
    for boxes, colour, sign in ((missing, MISSING, "-"), (extra, EXTRA, "+")):
        for box in boxes:
            _draw(axes, box.box, colour, 2.2, ":" if sign == "-" else "-")
            if few and np.isfinite(box.box).all():
                text = f"{sign} {box.label} {box.score:.2f} {box.reason}"
                axes.text(box.box[0], box.box[1] - 2, text, color="white", fontsize=7, va="bottom", clip_on=True,
                          bbox={"facecolor": colour, "edgecolor": "none", "pad": 1.0})  # fmt: skip
    _legend(axes, (len(expected) - len(missing), len(actual) - len(extra), len(missing), len(extra)))
    axes.set_title("Detections agree" if compared.agrees else "Detections differ", loc="left", fontsize=11)
    axes.set_axis_off()
    return _written(figure, path)


def _which(compared: DetectionComparison, which: str | None) -> int:
    names = [image.name for image in compared.expected]
    if which is not None:
        if which not in names:
            raise InputError(f"plot: no image {which!r} in the comparison; there are {', '.join(map(repr, names[:8]))}")
        return names.index(which)
    odd = {box.image for box in (*compared.missing, *compared.extra)}
    odd |= {match.image for match in compared.matches if not compared.match_agrees(match)}
    return next((n for n, name in enumerate(names) if name in odd), 0)


def _pixels(image: Any) -> NDArray[Any]:
    """An image as imshow takes it: (H, W) or (H, W, 3), eight bits or in [0, 1]."""
    if isinstance(image, (str, Path)):
        from matplotlib.image import imread

        if not Path(image).is_file():
            raise InputError(f"plot: {image}: no such file; give an image, or an array (H, W, 3)")
        return np.asarray(imread(image))
    array = np.asarray(image.detach().cpu().numpy() if hasattr(image, "detach") else image)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    array = array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if array.ndim not in (2, 3) or array.dtype.kind not in "fiub":
        raise InputError(f"plot: an image is (H, W), (H, W, 3) or (3, H, W), got shape {array.shape}, {array.dtype}")
    return array if array.dtype == np.uint8 else np.clip(array / (255.0 if array.max() > 1.5 else 1.0), 0, 1)


def _frame(axes: Axes, boxes: NDArray[np.float64]) -> None:
    finite = boxes[np.isfinite(boxes).all(1)]
    low = np.minimum(0, finite.min(0)[:2]) if len(finite) else np.zeros(2)
    high = finite.max(0)[2:] if len(finite) else np.ones(2)
    axes.set_xlim(low[0], max(high[0] * 1.05, low[0] + 1e-6))
    axes.set_ylim(max(high[1] * 1.05, low[1] + 1e-6), low[1])
    axes.set_aspect("equal")


def _draw(axes: Axes, box: Any, colour: str, width: float, style: str) -> None:
    x1, y1, x2, y2 = box
    if np.isfinite([x1, y1, x2, y2]).all():
        corner = (x1 - 0.5, y1 - 0.5)  # imshow puts pixel centres on whole numbers
        axes.add_patch(
            Rectangle(corner, x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width, linestyle=style)
        )


def _legend(axes: Axes, counts: tuple[int, int, int, int]) -> None:
    names = ("expected, matched", "actual, matched", "missing", "extra")
    styles: tuple[tuple[str, Literal["-", "--", ":"]], ...] = (
        (EXPECTED, "-"),
        (ACTUAL, "--"),
        (MISSING, ":"),
        (EXTRA, "-"),
    )
    lines = [
        Line2D([], [], color=colour, linestyle=style, label=f"{name}: {count}")
        for name, count, (colour, style) in zip(names, counts, styles, strict=True)
        if count
    ]
    if lines:
        axes.legend(handles=lines, loc="upper center", bbox_to_anchor=(0.5, -0.01), ncols=4, fontsize=8, frameon=False)


def plot_scores(shift: ConfidenceShift, path: str | Path | None = None) -> Figure:
    """Histograms of both sides' scores, with what lies below the common threshold shaded."""
    figure = Picture(figsize=(7.0, 4.0), layout="constrained")
    axes = figure.add_subplot()
    bins = np.linspace(0, 1, 41).tolist()
    for scores, colour, name in zip(shift.scores, (EXPECTED, ACTUAL), ("expected", "actual"), strict=True):
        axes.hist(scores, bins=bins, histtype="stepfilled", alpha=0.35, color=colour, label=f"{name}: {len(scores)}")
        axes.hist(scores, bins=bins, histtype="step", color=colour)
    axes.axvspan(0, shift.from_score, color="#eceff1", zorder=0, label=f"below {shift.from_score:.3g}: not tested")
    axes.set_xlabel("score")
    axes.set_ylabel("boxes")
    axes.legend(fontsize=8, frameon=False)
    axes.set_title(
        "Scores are shifted" if shift.shifted else "No shift of the scores is found", loc="left", fontsize=11
    )
    return _written(figure, path)


def _written(figure: Figure, path: str | Path | None) -> Figure:
    if path is not None:
        target = Path(path)
        with replacing(target if target.suffix else target.with_suffix(".png")) as draft:
            figure.savefig(draft, dpi=150, format=target.suffix.removeprefix(".") or "png")
    return figure
