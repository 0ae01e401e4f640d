"""The tables of the benchmark, as text."""

from __future__ import annotations

import pandas as pd

from benchmarks.faults import Category
from benchmarks.judging import HEALTHY, RIGHT

OUTCOMES = ["exact", "neighbour", "wrong", "silent", "crashed"]


def tables(frame: pd.DataFrame) -> str:
    """Healthy exports in a line, the categories, the breakdowns, and every miss by name."""
    healthy = frame[frame.category == HEALTHY]
    faulty = frame[frame.category != HEALTHY]
    parts = []
    if len(healthy):
        parts.append(_quiet(healthy))
    if len(faulty):
        parts.append(by_category(faulty).to_string())
        parts += [_counts(faulty, by).to_string() for by in ("treatment", "exporter", "model")]
        single = faulty[~faulty.kind.str.contains("+", regex=False)]
        parts.append(_counts(single, "kind").to_string())
        parts.append(f"{single.kind.nunique()} kinds; {faulty.seconds.median():.2f} s a trace (median)")
    parts.append(_misses(frame))
    return "\n\n".join(parts)


def by_category(faulty: pd.DataFrame) -> pd.DataFrame:
    """The table that counts: one row a category, and their sum."""
    order = [category.value for category in Category if category.value in set(faulty.category)]
    counts = _counts(faulty, "category").reindex(order)
    both = faulty[faulty.both.notna()].groupby("category").both.apply(lambda column: int(column.astype(bool).sum()))
    counts.loc["all"] = counts.sum()
    right = counts.exact + counts.neighbour
    counts["right %"] = (100 * right / counts.cases).round(1)
    counts["cause %"] = _share(faulty, "cause_right")
    counts["verified %"] = _share(faulty, "verified")
    tried = faulty[faulty.repaired.notna()].groupby("category").repaired.agg(["sum", "count"])
    tried.loc["all"] = tried.sum()
    shown = tried.apply(lambda row: f"{int(row['sum'])} of {int(row['count'])}", axis=1) if len(tried) > 1 else ""
    counts["repaired"] = shown if isinstance(shown, str) else shown.reindex(counts.index).fillna("")
    counts["both found"] = both.reindex(counts.index).map(lambda n: "" if pd.isna(n) else str(int(n)))
    return counts


def _share(faulty: pd.DataFrame, column: str) -> pd.Series:
    """The share of cases for which something is so, in percent, by category and over all."""
    said = faulty[column] == True  # noqa: E712  None is neither
    shares = said.groupby(faulty.category).mean()
    shares.loc["all"] = said.mean()
    return (100 * shares).round(1)


def _quiet(healthy: pd.DataFrame) -> str:
    alarms = int((healthy.outcome != "quiet").sum())
    said = int((healthy.cause != "").sum())
    return (
        f"healthy exports: {len(healthy)}, false alarms: {alarms}, diagnoses: {said}, "
        f"modules not covered: {healthy.uncompared.sum()}"
    )


def _counts(rows: pd.DataFrame, by: str) -> pd.DataFrame:
    counts = pd.crosstab(rows[by], rows.outcome).reindex(columns=OUTCOMES, fill_value=0)
    counts.insert(0, "cases", counts.sum(axis=1))
    for column in ("told", "healed", "cause_right", "verified"):
        counts[column] = rows.groupby(by)[column].apply(lambda values: int((values == True).sum()))  # noqa: E712
    counts.columns.name = None
    return counts


def _misses(frame: pd.DataFrame) -> str:
    missed = frame[~frame.outcome.isin(RIGHT) | (frame.both == False)]  # noqa: E712  None is neither
    words = missed.outcome.where(~missed.outcome.isin(RIGHT), "one of two")
    told = zip(words, missed.case, missed.truth, missed.named, strict=True)
    lines = [f"{word}: {case}: truth {truth}; named {named or 'nothing'}" for word, case, truth, named in told]
    unhealed = frame[(frame.category != HEALTHY) & frame.outcome.isin(RIGHT) & (frame.healed != True)]  # noqa: E712
    lines += [f"not healed: {m.case}: truth {m.truth}; named {m.named}" for m in unhealed.itertuples()]
    wrong = frame[(frame.category != HEALTHY) & (frame.cause_right == False)]  # noqa: E712
    lines += [
        f"cause{' (claimed as verified)' if m.verified else ''}: {m.case}: {m.kind}; named {m.cause or 'nothing'}"
        for m in wrong.itertuples()
    ]
    return "\n".join(lines) or "no misses"
