"""The report as a table."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pandas as pd

from layerdiff.model import Metrics
from layerdiff.weights import WeightResult

if TYPE_CHECKING:
    from layerdiff.model import LayerResult
    from layerdiff.report.record import Report

METRICS = tuple(field.name for field in fields(Metrics))
_ABOUT = ("layer", "call", "type", "op", "onnx_tensor", "evidence", "status", "reason", "noise", "noise_assumed")
WEIGHT_COLUMNS = tuple(field.name for field in fields(WeightResult))
COLUMNS = (*_ABOUT, *METRICS, *(f"introduced_{name}" for name in METRICS))


def to_frame(report: Report) -> pd.DataFrame:
    """One row per layer in execution order.

    Columns: layer, call, type, op, onnx_tensor, evidence, status, reason, noise (max-abs distance to the float64 twin),
    noise_assumed (no twin was run, see `Noise`), then every metric of the normal run under its own name and every
    metric of the isolated run as ``introduced_…``.
    """
    return pd.DataFrame([_row(result) for result in report.layers], columns=list(COLUMNS))


def _row(result: LayerResult) -> dict[str, Any]:
    row: dict[str, Any] = {
        "layer": result.layer,
        "call": result.call,
        "type": result.type,
        "op": result.op,
        "onnx_tensor": result.onnx_tensor,
        "evidence": None if result.evidence is None else str(result.evidence),
        "status": str(result.status),
        "reason": result.reason,
        "noise": None if result.noise is None else result.noise.max_abs,
        "noise_assumed": None if result.noise is None else result.noise.assumed,
    }
    for prefix, metrics in (("", result.accumulated), ("introduced_", result.introduced)):
        row |= {prefix + name: None if metrics is None else getattr(metrics, name) for name in METRICS}
    return row


def weights_frame(report: Report) -> pd.DataFrame:
    """One row per parameter, with the fields of `WeightResult` as columns; enums as their words."""
    rows = [{name: getattr(weight, name) for name in WEIGHT_COLUMNS} for weight in report.weights]
    words = [row | {"how": str(row["how"]), "verdict": str(row["verdict"])} for row in rows]
    return pd.DataFrame(words, columns=list(WEIGHT_COLUMNS))
