"""Feature maps of both sides beside each other, with their difference."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.files import need_folder
from layerdiff.report.plot import Picture
from layerdiff.stages.values import BothSides, result_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from layerdiff.report import Report

    Array = np.ndarray[Any, Any]


def plot_feature_maps(report: Report, layer: str, *, channels: int = 6, path: str | Path | None = None) -> Figure:
    """Three rows (expected, actual, their difference) of the channels of a layer that differ most.

    Both sides run again on the report's sample: a report that was loaded or copied has no models, and cannot. Values
    that are no images (tokens, vectors) are drawn as rows.

    Raises
    ------
    InputError
        No such layer, one that was not compared, or a report without models.

    """
    result = result_of(report, layer)
    if report.live is None:
        raise InputError("feature maps: this report was loaded or copied, or its candidate is no file; trace again")
    sides = BothSides.of(report.live.runner, report.live.sample)
    expected, actual = sides.expected(result), sides.actual(result)
    if expected is None or actual is None or expected.size != actual.size:
        raise InputError(f"layer {layer!r}: its two values cannot be laid over each other")
    maps = _maps(expected), _maps(actual.reshape(expected.shape))
    figure = _drawn(*maps, _worst_channels(*maps, channels))
    figure.suptitle(f"{layer}: channels that differ most, {result.status}", x=0.01, ha="left", fontsize=11)
    if path is not None:
        need_folder(Path(path))
        figure.savefig(path, dpi=150)
    return figure


def _maps(values: Array) -> Array:
    """The first sample as (channels, height, width), in float64."""
    found = values.astype(np.float64)
    found = found[0] if found.ndim > 1 else found
    if found.ndim == 1:
        return found[None, None]
    return found[None] if found.ndim == 2 else found.reshape(-1, *found.shape[-2:])


def _worst_channels(expected: Array, actual: Array, count: int) -> list[int]:
    with np.errstate(invalid="ignore"):
        apart = np.nan_to_num(np.abs(actual - expected), nan=np.inf).max((1, 2))
    return sorted(int(n) for n in np.argsort(-apart, kind="stable")[: max(1, count)])


def _drawn(expected: Array, actual: Array, chosen: list[int]) -> Figure:
    figure = Picture(figsize=(1.6 * len(chosen) + 1.2, 5.4), layout="constrained")
    axes = figure.subplots(3, len(chosen), squeeze=False)
    for column, channel in enumerate(chosen):
        e, a = expected[channel], actual[channel]
        both = np.concatenate([e[np.isfinite(e)], a[np.isfinite(a)]])
        low, high = (float(both.min()), float(both.max())) if both.size else (0.0, 1.0)
        with np.errstate(invalid="ignore"):
            gap = a - e
        reach = float(np.abs(gap[np.isfinite(gap)]).max(initial=0.0)) or 1.0
        for row, (values, limits, colours) in enumerate(
            ((e, (low, high), "viridis"), (a, (low, high), "viridis"), (gap, (-reach, reach), "coolwarm"))
        ):
            axis = axes[row][column]
            axis.imshow(values, vmin=limits[0], vmax=limits[1], cmap=colours, aspect="auto", interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            if column == 0:
                axis.set_ylabel(("expected", "actual", "difference")[row], fontsize=9)
        axes[0][column].set_title(f"channel {channel}", fontsize=8)
        axes[2][column].set_xlabel(f"max {reach:.2g}", fontsize=8)
    return figure
