"""The report as one picture: the error of every layer in execution order, above its noise floor."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from layerdiff.errors import InputError
from layerdiff.files import replacing
from layerdiff.model import Status
from layerdiff.report.text import both_sides, layer_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from layerdiff.model import LayerResult
    from layerdiff.report.record import Report

COLOURS = {
    Status.AGREES: "#2e7d32",
    Status.FOLDED: "#9e9e9e",
    Status.CONFINED: "#5e35b1",
    Status.DRIFTS: "#f9a825",
    Status.PROPAGATES: "#ef6c00",
    Status.DIVERGES: "#c62828",
}
SMALLEST = 1e-12
LARGEST = 1e100  # matplotlib's marks on a log axis overflow well before a float does


class Picture(Figure):
    """A figure that a notebook shows without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def plot(report: Report, path: str | Path | None = None) -> Figure:
    """A figure with one point per layer call; written to `path` when one is given (format by its suffix)."""
    shown = [r for r in report.layers if r.status is not Status.UNMATCHED]
    figure = Picture(figsize=(min(18.0, max(8.0, 3 + 0.14 * len(shown))), 5.2), layout="constrained")
    axes = figure.add_subplot()
    _draw(axes, shown)
    _name_divergences(axes, report, shown)
    _dress(axes, report, shown)
    figure.suptitle(_title(report), x=0.01, ha="left", fontsize=12)
    figure.legend(loc="outside upper right", ncols=7, fontsize=8, frameon=False)
    if path is not None:
        target = Path(path)
        known = figure.canvas.get_supported_filetypes()
        if (kind := target.suffix.removeprefix(".").lower()) not in ("", *known):
            raise InputError(f"{target}: no picture is written as .{kind}; give one of .{', .'.join(sorted(known))}")
        with replacing(target if target.suffix else target.with_suffix(".png")) as draft:
            figure.savefig(draft, dpi=150, format=target.suffix.removeprefix(".") or "png")
    return figure


def _error(result: LayerResult) -> float:
    metrics = result.accumulated
    if metrics is None:
        return float("nan")
    return min(max(metrics.max_abs, SMALLEST), LARGEST) if metrics.nonfinite_mismatches == 0 else float("inf")


def _draw(axes: Axes, shown: list[LayerResult]) -> None:
    xs = np.arange(len(shown))
    errors = np.array([_error(r) for r in shown])
    top = np.nanmax(np.where(np.isfinite(errors), errors, np.nan), initial=SMALLEST)
    errors = np.where(np.isinf(errors), top * 10, errors)
    limits = _carried([r.accumulated.limit if r.accumulated else np.nan for r in shown])
    floor = _carried([max(r.noise.max_abs, SMALLEST) if r.noise else np.nan for r in shown])
    axes.fill_between(
        xs, SMALLEST / 10, limits, step="mid", color="#cfd8dc", alpha=0.6, linewidth=0, label="explained by rounding"
    )
    assumed = any(r.noise.assumed for r in shown if r.noise)
    label = "rounding collected so far" if assumed else "noise floor (float64 twin)"
    axes.plot(xs, floor, drawstyle="steps-mid", color="#78909c", linewidth=0.8, label=label)
    for status, colour in COLOURS.items():
        picked = [i for i, r in enumerate(shown) if r.status is status]
        if not picked:
            continue
        hollow = status is Status.FOLDED
        heights = [floor[i] if hollow else errors[i] for i in picked]
        axes.scatter(
            picked, heights, s=70 if status is Status.DIVERGES else 26, facecolors="none" if hollow else colour,
            edgecolors=colour, zorder=3, label=str(status), marker="D" if status is Status.DIVERGES else "o",
        )  # fmt: skip
    introduced = [
        min(r.introduced.max_abs, LARGEST) if r.introduced and r.introduced.max_abs > 0 else np.nan for r in shown
    ]
    if any(r.status is Status.PROPAGATES for r in shown):
        axes.plot(xs, introduced, "x", color="#1565c0", markersize=4, label="introduced by the layer alone", zorder=2)
    axes.set_yscale("log")


def _carried(values: list[float]) -> NDArray[np.float64]:
    """A line without gaps: a layer without a number of its own is drawn level with the one before it."""
    return np.asarray(pd.Series(values, dtype=float).ffill().bfill().clip(upper=LARGEST), dtype=np.float64)


def _name_divergences(axes: Axes, report: Report, shown: list[LayerResult]) -> None:
    for number, divergence in enumerate(report.divergences[:4]):
        at = next((i for i, r in enumerate(shown) if (r.layer, r.call) == (divergence.layer, divergence.call)), None)
        if at is None:
            continue
        colour, first, on_left = COLOURS[Status.DIVERGES], number == 0, at >= len(shown) * 0.7
        axes.axvline(at, color=colour, linewidth=1.2 if first else 0.7, linestyle="-" if first else ":", zorder=1)
        text = _plain(layer_name(divergence.layer)) + (
            f"\n{_plain(divergence.type)}, first divergence" if first else ""
        )
        axes.annotate(
            text, (at, 0.98 - 0.07 * number), xycoords=("data", "axes fraction"), textcoords="offset points",
            xytext=(-6 if on_left else 6, 0), va="top", ha="right" if on_left else "left", color=colour,
            fontsize=10 if first else 8, weight="bold" if first else "normal",
        )  # fmt: skip


def _dress(axes: Axes, report: Report, shown: list[LayerResult]) -> None:
    step = max(1, len(shown) // 60)
    ticks = list(range(0, len(shown), step))
    axes.set_xticks(ticks, [_plain(layer_name(shown[i].layer)) for i in ticks], rotation=90, fontsize=6)
    axes.set_xlim(-1, max(1, len(shown)))
    axes.set_ylabel(f"max-abs error against {_plain(report.environment.get('reference_kind', 'PyTorch'))}")
    axes.grid(axis="y", alpha=0.25)
    numbers = [x for r in shown for x in (_error(r), r.noise.max_abs if r.noise else 0.0) if SMALLEST < x < np.inf]
    if numbers:
        axes.set_ylim(min(numbers) / 20, min(max(numbers), LARGEST) * 30)


def _title(report: Report) -> str:
    if report.network_agrees:
        return f"{_plain(both_sides(report))} agree: {report.coverage.compared} module calls compared"
    first = report.first_divergence
    if first is None and all(output.agrees for output in report.outputs):
        return "The outputs agree on some samples only"
    return "The outputs differ" if first is None else f"First divergence: {_plain(layer_name(first.layer))}"


def _plain(text: str) -> str:
    """A text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")
