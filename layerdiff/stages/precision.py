"""What the number format of a quantised detector costs, layer by layer: SQNR against average precision."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.pipeline.accuracy import average_precision
from layerdiff.pipeline.heads import heads_of
from layerdiff.pipeline.nms import NmsSettings, detect
from layerdiff.pipeline.reading import read_side
from layerdiff.runner import Runner
from layerdiff.samples import samples
from layerdiff.sides import open_candidate, open_reference
from layerdiff.stages.values import BothSides
from layerdiff.tracing import trace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

    from layerdiff.model import LayerResult
    from layerdiff.pipeline.found import Detections

    Array = np.ndarray[Any, Any]

# YOLOv5's settings for validation: average precision needs boxes of low confidence, too.
VALIDATION = NmsSettings(conf=0.001, iou=0.6, max_det=300)
# Each layer that is healed costs one run for every image.
HEALED_LAYERS = 8


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """One layer: what it introduces and what has accumulated there as SQNR in decibels, and what healing it gives.

    `ap_healed` is the average precision when this layer alone has the reference's value; None where it was not tried.
    """

    layer: str
    type: str
    introduced_db: float
    accumulated_db: float
    ap_healed: float | None = None


@dataclass(frozen=True, slots=True)
class PrecisionStudy:
    """What `precision_study` found: `ap` of the candidate, `ap_reference`, and the layers, worst introduced SQNR first.

    `truth` says against what the average precision was measured: labels, or the reference's own detections.
    """

    ap: float
    ap_reference: float
    truth: str
    layers: tuple[LayerPrecision, ...]

    @property
    def verdict(self) -> str:
        """A sentence or two."""
        told = f"AP {self.ap:.3f} against {self.ap_reference:.3f} of the reference ({self.truth})."
        tried = [layer for layer in self.layers if layer.ap_healed is not None]
        if not tried:
            return told
        best = max(tried, key=lambda layer: layer.ap_healed or 0.0)
        gain = (best.ap_healed or 0.0) - self.ap
        if gain <= 0:
            return f"{told} None of the {len(tried)} layers that introduce most, healed alone, makes it better."
        return (
            f"{told} Of the {len(tried)} layers that introduce most, {best.layer} costs most: {gain:+.3f} when healed."
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per layer."""
        import pandas as pd

        return pd.DataFrame(
            [
                {
                    "layer": layer.layer,
                    "type": layer.type,
                    "introduced_db": layer.introduced_db,
                    "accumulated_db": layer.accumulated_db,
                    "ap_healed": layer.ap_healed,
                }
                for layer in self.layers
            ],
            columns=["layer", "type", "introduced_db", "accumulated_db", "ap_healed"],
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """Introduced SQNR against the average precision with that layer healed; written to `path` when one is given."""
        from layerdiff.stages.precision_picture import plot

        return plot(self, path)


def precision_study(
    model: Any,
    quantised: Any,
    images: Any,
    *,
    labels: Any = None,
    nms: NmsSettings = VALIDATION,
) -> PrecisionStudy:
    """Per-layer SQNR of a quantised detector beside its detection metric.

    Parameters
    ----------
    model, quantised
        As for `layerdiff.trace`: a module, and the ONNX file, scripted or other module that was made of it. Their first
        output is a raw head (batch, boxes, 5 + classes) or (batch, 4 + classes, boxes).
    images
        Inputs as for `layerdiff.trace`. Layers are measured on the sample that differs most; average precision is over
        all of them.
    labels
        True boxes, one set per image, in any form that `layerdiff.compare_detections` takes. Without them the
        reference's own detections are the truth.
    nms
        Settings of post-processing, for both sides.

    Raises
    ------
    InputError
        No raw head comes out, or there are other labels than images.

    """
    given = list(images) if isinstance(images, Iterator) else images  # an iterator can be read once
    every = list(samples(given))
    report = trace(model, quantised, given, progress=False)
    runner = Runner(open_reference(model), open_candidate(quantised, None), None, None)
    sides = [BothSides.of(runner, sample) for sample in every]
    expected = [one for side in sides for one in _found(_head_of_reference(side), nms)]
    actual = [one for side in sides for one in _found(_first(side.candidate.shipped), nms)]
    truth: Sequence[Detections] = expected if labels is None else read_side(labels, "labels").images
    if len(truth) != len(expected):
        raise InputError(f"labels: {len(truth)} sets of boxes for {len(expected)} images; give one per image")
    ranked = _ranked(report.layers)
    final = {output.tensor for output in report.outputs}
    tried = [result for result in ranked if result.onnx_tensor not in final][:HEALED_LAYERS]
    healed = {id(result): _healed(sides, result, truth, nms) for result in tried}
    return PrecisionStudy(
        average_precision(truth, actual)["AP"],
        average_precision(truth, expected)["AP"],
        "the reference's detections" if labels is None else "labels",
        tuple(_layer(result, healed.get(id(result))) for result in ranked),
    )


def _ranked(layers: Sequence[LayerResult]) -> list[LayerResult]:
    """The layers that were compared, the lowest introduced SQNR first; each tensor once, by its innermost layer."""
    by_tensor: dict[str, LayerResult] = {}
    for result in layers:
        if result.introduced is not None and result.onnx_tensor is not None:
            known = by_tensor.get(result.onnx_tensor)
            if known is None or result.layer.count(".") > known.layer.count("."):
                by_tensor[result.onnx_tensor] = result
    return sorted(by_tensor.values(), key=lambda r: r.introduced.sqnr_db if r.introduced else np.inf)


def _layer(result: LayerResult, healed: float | None) -> LayerPrecision:
    assert result.introduced is not None
    accumulated = float("nan") if result.accumulated is None else result.accumulated.sqnr_db
    return LayerPrecision(result.layer, result.type, result.introduced.sqnr_db, accumulated, healed)


def _healed(
    sides: Sequence[BothSides], result: LayerResult, truth: Sequence[Detections], nms: NmsSettings
) -> float | None:
    found: list[Detections] = []
    for side in sides:
        outputs = side.healed(result)
        if outputs is None:
            return None
        found += _found(_first(outputs), nms)
    return average_precision(truth, found)["AP"]


def _found(raw: Array, nms: NmsSettings) -> list[Detections]:
    return [detect(head, nms) for head in heads_of(raw, "the first output")]


def _head_of_reference(side: BothSides) -> Array:
    first = next(iter(side.reference.outputs.values()))
    value = side.reference.values[first].array  # noqa: PD011  no DataFrame
    if value is None:
        raise InputError("precision study: the reference's first output is no tensor; give a model that returns a head")
    return value


def _first(outputs: Mapping[str, Array | None] | Mapping[str, Array]) -> Array:
    value = next(iter(outputs.values()))
    if value is None:
        raise InputError("precision study: the candidate's first output is no tensor; give a model that returns a head")
    return value
