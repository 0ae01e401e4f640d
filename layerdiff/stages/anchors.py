"""Anchors of a checkpoint against those baked into an ONNX head, and against labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.pipeline.reading import in_pixels, read_side

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import onnx
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

# YOLOv5's `anchor_t`: a label can be learnt from an anchor that is at most so many times larger or smaller, per side.
RATIO = 4.0
# Anchors that differ by less are one: exports keep them in float32, or in float16.
SAME = 2e-3
MOST_ANCHORS = 12


@dataclass(frozen=True, slots=True)
class AnchorLevel:
    """Anchors of one scale, as widths and heights in pixels; `stride` in pixels, None where nothing tells it."""

    stride: float | None
    anchors: tuple[tuple[float, float], ...]

    @property
    def area(self) -> float:
        """The mean area, by which levels are ordered."""
        return float(np.mean([w * h for w, h in self.anchors]))


@dataclass(frozen=True, slots=True)
class AnchorRecall:
    """How well anchors fit labels: `best_possible` is the share of labels that any anchor fits within a ratio of 4.

    `per_label` is how many anchors fit a label on average (YOLOv5's `autoanchor`).
    """

    best_possible: float
    per_label: float
    labels: int


@dataclass(frozen=True, slots=True)
class AnchorCheck:
    """What `check_anchors` found: the levels of both sides by stride, their order, and how they fit the labels."""

    expected: tuple[AnchorLevel, ...]
    actual: tuple[AnchorLevel, ...]
    agrees: bool
    verdict: str
    expected_recall: AnchorRecall | None = None
    actual_recall: AnchorRecall | None = None


def check_anchors(
    checkpoint: Any, candidate: str | Path | onnx.ModelProto, *, labels: Any = None, image_size: Any = None
) -> AnchorCheck:
    """Whether an ONNX head has the anchors of its checkpoint, at the right strides, and whether they fit the labels.

    Parameters
    ----------
    checkpoint
        A module whose detection layer holds anchors (YOLOv5's ``anchors`` in strides with ``stride``, or buffers in
        pixels), or an array (levels, anchors, 2) in pixels.
    candidate
        The exported file. Its anchors are constants that multiply a computed size of boxes.
    labels
        True boxes in any form that `layerdiff.compare_detections` takes, or an array (n, 2) of widths and heights.
    image_size
        As for `layerdiff.compare_detections`: needed for labels that are shares of the image.

    Raises
    ------
    InputError
        No anchors in the module or in the file, or labels in no form that is known.

    """
    expected, actual = _of_checkpoint(checkpoint), _of_file(candidate)
    sizes = None if labels is None else _sizes(labels, image_size)
    recalls = [None if sizes is None else recall(side, sizes) for side in (expected, actual)]
    agrees, text = _compared(expected, actual)
    for name, side, found in zip(("expected", "actual"), (expected, actual), recalls, strict=True):
        if found is not None:
            text += f" Best possible recall of the {name} anchors: {found.best_possible:.3f}"
            text += f" ({found.per_label:.1f} anchors for a label, {found.labels} labels)."
        if [level.area for level in side] != sorted(level.area for level in side):
            text += f" The {name} anchors do not grow with the stride."
    return AnchorCheck(expected, actual, agrees, text, recalls[0], recalls[1])


def recall(levels: Sequence[AnchorLevel], sizes: Floats) -> AnchorRecall:
    """How well anchors fit widths and heights (n, 2) in pixels, as in YOLOv5's ``autoanchor``."""
    anchors = np.array([anchor for level in levels for anchor in level.anchors])
    ratio = sizes[:, None] / anchors[None]
    fit = np.minimum(ratio, 1 / ratio).min(2)
    return AnchorRecall(float((fit.max(1) > 1 / RATIO).mean()), float((fit > 1 / RATIO).sum(1).mean()), len(sizes))


def _compared(expected: Sequence[AnchorLevel], actual: Sequence[AnchorLevel]) -> tuple[bool, str]:
    if len(expected) != len(actual):
        return False, f"The checkpoint has anchors for {len(expected)} scales, the file for {len(actual)}."
    wrong = [n for n, pair in enumerate(zip(expected, actual, strict=True)) if not _same(*pair)]
    if not wrong:
        return True, f"The file has the checkpoint's anchors at all {len(expected)} scales."
    order = [next((m for m, e in enumerate(expected) if _same(e, a)), -1) for a in actual]
    if sorted(order) == list(range(len(expected))):
        return False, f"The anchors are in another order of strides: the file's scales hold those of scales {order}."
    e, a = expected[wrong[0]], actual[wrong[0]]
    factor = np.array(a.anchors) / np.array(e.anchors) if len(e.anchors) == len(a.anchors) else np.array([np.nan, 1.0])
    scaled = f", {factor.mean():.4g} times as large" if np.ptp(factor) < SAME else ""
    return False, (
        f"The anchors of {len(wrong)} of {len(expected)} scales differ{scaled}; at stride {_shown(e.stride)} the "
        f"checkpoint has {_list(e)}, the file {_list(a)}."
    )


def _same(one: AnchorLevel, other: AnchorLevel) -> bool:
    first, second = np.array(one.anchors), np.array(other.anchors)
    return first.shape == second.shape and bool(np.all(np.abs(first - second) <= SAME * np.abs(first)))


def _shown(stride: float | None) -> str:
    return "unknown" if stride is None else f"{stride:g}"


def _list(level: AnchorLevel) -> str:
    return ", ".join(f"{w:.4g} x {h:.4g}" for w, h in level.anchors)


def _sizes(labels: Any, image_size: Any) -> Floats:
    found = labels.detach().cpu().numpy() if hasattr(labels, "detach") else labels
    if isinstance(found, np.ndarray) and found.ndim == 2 and found.shape[1] == 2:
        sizes = found.astype(np.float64)
    else:
        side = in_pixels(read_side(found, "labels"), image_size, "labels")
        sizes = np.concatenate([image.boxes[:, 2:] - image.boxes[:, :2] for image in side.images])
    sizes = sizes[np.isfinite(sizes).all(1) & (sizes > 0).all(1)]
    if not len(sizes):
        raise InputError("labels: no box has a width and a height")
    if sizes.max() <= 1.0:
        raise InputError("labels: no box is wider or higher than a pixel; for shares of the image give image_size=")
    return sizes


def _of_checkpoint(checkpoint: Any) -> tuple[AnchorLevel, ...]:
    if not hasattr(checkpoint, "named_buffers"):
        array = np.asarray(checkpoint, np.float64)
        if array.ndim != 3 or array.shape[2] != 2:
            raise InputError(
                f"checkpoint: wanted a module, or anchors (levels, anchors, 2) in pixels, got {array.shape}"
            )
        return tuple(_level(rows, None) for rows in array)
    for module in checkpoint.modules():
        own = {**dict(module.named_buffers(recurse=False)), **dict(module.named_parameters(recurse=False))}
        held = [(name, t) for name, t in own.items() if re.fullmatch(r"anchors\d*", name) and t.numel() % 2 == 0]
        if len(held) == 1 and held[0][1].dim() >= 3 and len(held[0][1]) > 1:
            levels = held[0][1].detach().cpu().double().numpy()
            strides = getattr(module, "stride", None)
            steps = [None] * len(levels) if strides is None else [float(s) for s in strides]
            return tuple(_level(rows * (step or 1.0), step) for rows, step in zip(levels, steps, strict=True))
        if held:
            return tuple(_level(t.detach().cpu().double().numpy(), None) for _, t in held)
    raise InputError(
        "checkpoint: no module of it holds anchors (a buffer called anchors, anchors0, …); give an array of them"
    )


def _level(rows: Any, stride: float | None) -> AnchorLevel:
    pairs = np.asarray(rows, np.float64).reshape(-1, 2)
    return AnchorLevel(stride, tuple((float(w), float(h)) for w, h in pairs))


def _of_file(candidate: str | Path | onnx.ModelProto) -> tuple[AnchorLevel, ...]:
    """The anchors in a graph, by ascending stride where shapes tell it, else in the order of the nodes."""
    import onnx

    from layerdiff.graph import load

    model = onnx.shape_inference.infer_shapes(load(candidate))
    graph = model.graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in (*graph.value_info, *graph.output)}
    stored = {t.name: t for t in graph.initializer}
    stored |= {
        n.output[0]: a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.name == "value"
    }
    size = max((d.dim_value for port in graph.input for d in port.type.tensor_type.shape.dim), default=0)
    levels = []
    for node in graph.node:
        constants = [name for name in node.input if name in stored]
        if node.op_type != "Mul" or len(constants) != 1:
            continue
        pairs = _pairs(onnx.numpy_helper.to_array(stored[constants[0]]))
        if pairs is not None:
            shape = shapes.get(node.output[0], [])
            cells = shape[-3] if len(shape) >= 4 else 0
            levels.append(_level(pairs, size / cells if size and cells else None))
    if not levels:
        raise InputError(
            "candidate: no constant in it multiplies the size of boxes by anchors; the head may be exported without "
            "its decode, or have no anchors (as from YOLOv8 on)"
        )
    if all(level.stride is not None for level in levels):
        levels.sort(key=lambda level: level.stride or 0.0)
    return tuple(levels)


def _pairs(constant: Any) -> Floats | None:
    """The anchors in a constant that is the same in every cell; None where it is something else."""
    if constant.ndim < 4 or constant.shape[-1] != 2 or constant.dtype.kind != "f":
        return None
    first = constant.reshape(-1, *constant.shape[-4:])[0] if constant.ndim > 4 else constant
    cells = first[:, :1, :1]
    alike = bool(np.all(first == cells)) and bool(np.all(first > 0))
    return np.asarray(cells.reshape(-1, 2), np.float64) if alike and 2 <= len(first) <= MOST_ANCHORS else None
