"""Whether the scores of one side are shifted against those of the other."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from layerdiff.errors import MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure
    from numpy.typing import NDArray

    from layerdiff.pipeline.detection_model import DetectionComparison

# Below this a shift is called one: the usual level, with three tests made.
LEVEL = 0.01


@dataclass(frozen=True, slots=True)
class ConfidenceShift:
    """The two distributions of scores, and tests for a shift.

    `ks` and `mann_whitney` are p-values for all boxes of the two sides above `from_score`, the larger of their lowest
    scores: what one side's threshold cut off is no shift. `wilcoxon` is the p-value for the pairs that `matches` makes,
    which sees a small shift of every score that distributions hide. A p-value is NaN where there are too few boxes or
    pairs (fewer than 5), or no difference at all.
    """

    expected: tuple[int, float, float]
    actual: tuple[int, float, float]
    from_score: float
    ks_distance: float
    ks: float
    mann_whitney: float
    wilcoxon: float
    median_shift: float
    pairs: int
    scores: tuple[tuple[float, ...], tuple[float, ...]] = field(repr=False, compare=False, default=((), ()))

    @property
    def shifted(self) -> bool:
        """Whether any of the tests finds a shift, at the 1% level."""
        return any(p < LEVEL for p in (self.ks, self.mann_whitney, self.wilcoxon))

    @property
    def verdict(self) -> str:
        """One sentence."""
        tests = (
            f"Kolmogorov-Smirnov p {self.ks:.2g}, Mann-Whitney p {self.mann_whitney:.2g}, paired p {self.wilcoxon:.2g}"
        )
        medians = f"medians {self.expected[1]:.3f} and {self.actual[1]:.3f} above {self.from_score:.3g}"
        if self.shifted:
            shift = f"{self.median_shift:+.3g} in the median of {self.pairs} pairs"
            return f"Scores are shifted: {shift}; {medians} ({tests})."
        return f"No shift of the scores is found: {medians} ({tests})."

    def plot(self, path: str | Path | None = None) -> Figure:
        """Both distributions; written to `path` when one is given."""
        from layerdiff.pipeline.detection_picture import plot_scores

        return plot_scores(self, path)


def confidence_shift(compared: DetectionComparison) -> ConfidenceShift:
    """The distributions of both sides' scores, tested for a shift.

    Raises
    ------
    MissingExtraError
        scipy is not installed.

    """
    sides = [_finite([image.scores for image in images]) for images in (compared.expected, compared.actual)]
    least = max((float(side.min()) for side in sides if len(side)), default=0.0)
    cut = [side[side >= least] for side in sides]
    pairs = np.array([m.score_shift for m in compared.matches if m.same_class and np.isfinite(m.score_shift)])
    distance, ks, mann_whitney, wilcoxon = _tests(cut[0], cut[1], pairs)
    summary = [(len(side), _median(side), float(side.mean()) if len(side) else float("nan")) for side in cut]
    kept = (tuple(float(s) for s in sides[0]), tuple(float(s) for s in sides[1]))
    return ConfidenceShift(
        summary[0], summary[1], least, distance, ks, mann_whitney, wilcoxon, _median(pairs), len(pairs), kept
    )


def _tests(
    expected: NDArray[np.float64], actual: NDArray[np.float64], pairs: NDArray[np.float64]
) -> tuple[float, float, float, float]:
    try:
        from scipy import stats
    except ImportError as error:
        raise MissingExtraError("testing scores for a shift", "scipy") from error
    nan = float("nan")
    distance = ks = mann_whitney = wilcoxon = nan
    if min(len(expected), len(actual)) >= 5:
        found = stats.ks_2samp(expected, actual)
        distance, ks = float(found.statistic), float(found.pvalue)
        mann_whitney = float(stats.mannwhitneyu(expected, actual).pvalue)
    if np.count_nonzero(pairs) >= 5:
        wilcoxon = float(stats.wilcoxon(pairs).pvalue)
    return distance, ks, mann_whitney, wilcoxon


def _finite(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    every = np.concatenate(parts) if parts else np.zeros(0)
    return np.asarray(every[np.isfinite(every)], np.float64)


def _median(values: NDArray[np.float64]) -> float:
    return float(np.median(values)) if len(values) else float("nan")
