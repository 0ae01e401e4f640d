"""SQNR of layers against the detection metric, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from layerdiff.files import need_folder
from layerdiff.report.plot import Picture

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from layerdiff.stages.precision import PrecisionStudy


def plot(study: PrecisionStudy, path: str | Path | None = None) -> Figure:
    """On the left all layers by introduced SQNR, on the right those that were healed, with the average precision."""
    figure = Picture(figsize=(10.0, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(range(len(study.layers)), [layer.introduced_db for layer in study.layers], ".-", color="#0072b2")
    left.set_xlabel("layers, worst first")
    left.set_ylabel("introduced SQNR (dB)")
    tried = [layer for layer in study.layers if layer.ap_healed is not None]
    right.plot([layer.ap_healed or 0.0 for layer in tried], [layer.layer for layer in tried], "o", color="#e69f00")
    right.axvline(study.ap, color="#d55e00", label=f"as it is: {study.ap:.3f}")
    right.axvline(study.ap_reference, color="#0072b2", linestyle="--", label=f"reference: {study.ap_reference:.3f}")
    values = [study.ap, study.ap_reference, *(layer.ap_healed or 0.0 for layer in tried)]
    margin = 0.1 * (max(values) - min(values)) or 0.01
    right.set_xlim(min(values) - margin, max(values) + margin)
    right.invert_yaxis()
    right.set_xlabel("AP with this layer healed")
    right.tick_params(axis="y", labelsize=7)
    right.legend(fontsize=8, frameon=False)
    if path is not None:
        need_folder(Path(path))
        figure.savefig(path, dpi=150)
    return figure
