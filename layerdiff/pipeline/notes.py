"""What else two sets of detections tell: classes renumbered, scores under another formula, boxes not in raw."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from layerdiff.pipeline.coordinates import Relation
    from layerdiff.pipeline.detection_model import DetectionComparison
    from layerdiff.pipeline.heads import Head
    from layerdiff.pipeline.reconcile import Reconciled

    Floats = NDArray[np.float64]

# What a score can have been turned into by one step too many or too few.
SCORE_STEPS: dict[str, Callable[[Floats], Floats]] = {
    "a second sigmoid": lambda s: 1 / (1 + np.exp(-s)),
    "a missing sigmoid": lambda s: np.log(np.clip(s, 1e-12, 1) / np.clip(1 - s, 1e-12, 1)),
    "per cent": lambda s: 100 * s,
    "a square root": np.sqrt,
    "a square": np.square,
}
LEAST_PAIRS = 3


def notes(
    compared: DetectionComparison,
    relations: Sequence[Relation],
    found: Reconciled | None,
    heads: tuple[Sequence[Head] | None, Sequence[Head] | None],
) -> tuple[str, ...]:
    """One sentence for each thing that is to be known besides."""
    told = dict.fromkeys(relation.detail for relation in relations if relation.detail)
    found_notes = [f"{detail[0].upper()}{detail[1:]}." for detail in told]
    more = (_classes(compared), _scores(compared), _other_score(compared, heads), _lost(found, compared))
    return (*found_notes, *filter(None, more), *_odd(compared), *_holes(heads))


def _classes(compared: DetectionComparison) -> str:
    """Classes that are renumbered throughout."""
    pairs = {(match.expected_class, match.actual_class) for match in compared.matches}
    if not compared.flips or len(pairs) < 2 or len({a for a, _ in pairs}) != len(pairs):
        return ""
    if all(isinstance(a, int) and isinstance(b, int) for a, b in pairs) and len({b - a for a, b in pairs}) == 1:
        return f"Every class number is {next(b - a for a, b in pairs):+d} on the actual side."
    if len(compared.flips) == len(compared.matches) and len({b for _, b in pairs}) == len(pairs):
        listed = ", ".join(f"{a} → {b}" for a, b in sorted(pairs, key=str)[:6])
        return f"Every class is renumbered: {listed}."
    return ""


def _scores(compared: DetectionComparison) -> str:
    """A function that turns the scores of one side into those of the other."""
    same = [m for m in compared.matches if m.same_class and np.isfinite([m.score, m.score_shift]).all()]
    if len(same) < LEAST_PAIRS:
        return ""
    e = np.array([m.score for m in same])
    a = e + np.array([m.score_shift for m in same])
    if np.ptp(e) < 0.01 or np.all(np.abs(a - e) <= compared.tolerance_score):
        return ""
    for name, step in SCORE_STEPS.items():
        for one, other, which in ((e, a, "actual"), (a, e, "expected")):
            if one.min() < 0 or one.max() > 1:
                continue
            gap = np.abs(step(one) - other)
            if np.all(gap <= 1e-3 * max(1.0, float(np.abs(other).max()))):
                return f"The {which} scores are those of the other side after {name}."
    return ""


def _other_score(compared: DetectionComparison, heads: tuple[Sequence[Head] | None, Sequence[Head] | None]) -> str:
    """Scores that are the class score or the objectness alone, told from the raw head."""
    for side, (every, images) in enumerate(zip(heads, (compared.expected, compared.actual), strict=True)):
        if every is None or not every or every[0].objectness is None:
            continue
        scores = np.concatenate([image.scores for image in images])
        scores = scores[np.isfinite(scores)]
        if len(scores) < LEAST_PAIRS:
            continue
        columns: dict[str, list[Any]] = {"product": [], "the class score alone": [], "the objectness alone": []}
        for head in every:
            assert head.objectness is not None
            columns["product"].append(head.scores.ravel())
            columns["the class score alone"].append(head.classes.ravel())
            columns["the objectness alone"].append(head.objectness)
        known = {name: _share(scores, np.concatenate(parts)) for name, parts in columns.items()}
        best = max(known, key=lambda name: known[name])
        if best != "product" and known[best] > 0.9 and known["product"] < 0.5:
            return (
                f"The {('expected', 'actual')[side]} scores are {best}; YOLOv5 multiplies objectness and class score."
            )
    return ""


def _share(scores: Floats, column: Floats) -> float:
    """How many of the scores stand in a column."""
    ordered = np.sort(column[np.isfinite(column)])
    if not len(ordered):
        return 0.0
    at = (
        np.clip(np.searchsorted(ordered, scores), 1, len(ordered) - 1)
        if len(ordered) > 1
        else np.zeros(len(scores), int)
    )
    gap = np.minimum(np.abs(ordered[at] - scores), np.abs(ordered[at - 1] - scores))
    return float(np.mean(gap < 1e-6))


def _lost(found: Reconciled | None, compared: DetectionComparison) -> str:
    if found is None or found.wrong == (0, 0) or not compared.from_raw:
        return ""
    one, other = found.wrong
    return (
        f"With these settings {one} boxes of the expected and {other} of the actual side do not come out as they are."
    )


def _odd(compared: DetectionComparison) -> list[str]:
    """Boxes that are no boxes."""
    told = []
    for name, images in (("expected", compared.expected), ("actual", compared.actual)):
        wrong = sum(int(np.count_nonzero(~image.finite)) for image in images)
        if wrong:
            told.append(f"{wrong} boxes or scores of the {name} side are not finite.")
        with np.errstate(invalid="ignore"):
            flat = sum(int(np.count_nonzero(np.any(i.boxes[:, 2:] - i.boxes[:, :2] <= 0, 1))) for i in images)
        if flat:
            told.append(f"{flat} boxes of the {name} side have no area.")
    return told


def _holes(heads: tuple[Sequence[Head] | None, Sequence[Head] | None]) -> list[str]:
    """Raw output that is not finite: nothing that follows it can be right."""
    counts = [sum(head.holes for head in every or ()) for every in heads]
    return [
        f"The raw output of the {side} side holds {count} numbers that are not finite: look at the network first."
        for side, count in zip(("expected", "actual"), counts, strict=True)
        if count
    ]
