"""Several samples in words."""

from __future__ import annotations

from textwrap import shorten
from typing import TYPE_CHECKING

from layerdiff.several import labels, sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.model import SampleResult
    from layerdiff.report.record import Report


def which(report: Report) -> str:
    """Which sample a sentence is about; nothing when there is one only."""
    count = len(report.samples)
    if count < 2:
        return ""
    place = f"sample {report.sample + 1} of {count}"
    return f" on all {count} samples (worst: {place})" if report.agrees else f" ({place})"


def lead(samples: Sequence[SampleResult]) -> tuple[str, ...]:
    """What the samples tell together: that size decides, or how many agree; nothing when they are of one mind."""
    found = sizes(samples)
    if found is not None:
        return (str(found),)
    agreeing = sum(sample.agrees for sample in samples)
    if not 0 < agreeing < len(samples):
        return ()
    return (f"{agreeing} of {len(samples)} samples {'agrees' if agreeing == 1 else 'agree'}.",)


def sample_lines(samples: Sequence[SampleResult]) -> list[str]:
    """One line for each sample, when there are several."""
    return [": ".join(cells) for cells in sample_rows(samples)]


def sample_rows(samples: Sequence[SampleResult]) -> list[tuple[str, str]]:
    """A name for each sample, with its size where sizes differ, and how it was judged."""
    if len(samples) < 2:
        return []
    return [
        (f"sample {number}" + (f" ({label})" if label else ""), _judgement(sample))
        for number, (sample, label) in enumerate(zip(samples, labels(samples), strict=True), 1)
    ]


def _judgement(sample: SampleResult) -> str:
    if sample.refused:
        return f"refused, {shorten(sample.refused, 110, placeholder=' …')}"
    error = "shapes differ" if sample.max_abs is None else f"max-abs {sample.max_abs:.2g}"
    return f"{'agrees' if sample.agrees else 'diverges'}, {error}"
