"""A comparison of pipelines as words and as a table."""

from __future__ import annotations

from enum import Enum
from html import escape
from typing import TYPE_CHECKING, Any

from layerdiff.stages.result import StageStatus

if TYPE_CHECKING:
    import pandas as pd

    from layerdiff.stages.result import PipelineComparison, StageMismatch, StageResult


def verdict(compared: PipelineComparison) -> str:
    """What was found, in a few sentences."""
    count = "1 image" if compared.images == 1 else f"{compared.images} images"
    if compared.agrees:
        told = [f"The pipelines agree on {count}."]
    elif compared.first_divergence is None:
        told = [f"The final results differ on {count}, but no stage could be accused."]
    else:
        first, *others = compared.divergences
        told = [f"{first.stage} is the first stage that diverges: {_cause(first)}."]
        told += [f"{other.stage} diverges, too, independently: {_cause(other)}." for other in others]
        if compared.proven is not None:
            which = "that stage" if not others else "those stages"
            words = "give" if compared.proven else "still do not give"
            told.append(f"With {which} of the reference the candidate's other stages {words} the reference's results.")
    harmless = [stage.stage for stage in compared.stages if stage.status is StageStatus.HARMLESS]
    if harmless:
        told.append(f"{', '.join(harmless)}: differs by too little to change the final results.")
    if compared.network is not None and not compared.network.agrees:
        told.append(f"In the network: {compared.network.verdict}")
    return " ".join([*told, *compared.notes])


def _cause(stage: StageResult) -> str:
    if not stage.mismatches:
        return stage.introduced.detail if stage.introduced is not None else stage.reason
    return "; ".join(_mismatch(mismatch) for mismatch in stage.mismatches)


def _mismatch(mismatch: StageMismatch) -> str:
    known = mismatch.expected is not None or mismatch.actual is not None
    sides = [_shown(mismatch.setting, value) for value in (mismatch.expected, mismatch.actual)]
    pair = f" {sides[0]} against {sides[1]}" if known else ""
    detail = f" ({mismatch.detail})" if mismatch.detail else ""
    proof = ", verified by running the stage with it corrected" if mismatch.verified else ""
    return f"{mismatch.setting}{pair}{detail}{proof}"


def _shown(setting: str, value: Any) -> str:
    if value is None:
        return "no limit" if setting == "max_det" else "none"
    return str(value) if isinstance(value, Enum) else repr(value)


def summary(compared: PipelineComparison) -> str:
    """The verdict, and one line per stage."""
    width = max((len(stage.stage) for stage in compared.stages), default=5)
    lines = [verdict(compared)]
    for stage in compared.stages:
        gap = stage.introduced or stage.accumulated
        lines.append(f"{stage.stage:{width}}  {stage.status:11}  {stage.reason or (gap.detail if gap else '')}")
    return "\n".join(lines)


def to_frame(compared: PipelineComparison) -> pd.DataFrame:
    """One row per stage."""
    import pandas as pd

    rows = [
        {
            "stage": stage.stage,
            "status": str(stage.status),
            "accumulated": stage.accumulated.detail if stage.accumulated else "",
            "introduced": stage.introduced.detail if stage.introduced else "",
            "settings": "; ".join(_mismatch(mismatch) for mismatch in stage.mismatches),
            "reason": stage.reason,
        }
        for stage in compared.stages
    ]
    return pd.DataFrame(rows, columns=["stage", "status", "accumulated", "introduced", "settings", "reason"])


def fragment(compared: PipelineComparison) -> str:
    """The verdict and the table, for a notebook cell."""
    colour = "#2e7d32" if compared.agrees else "#c62828"
    table = to_frame(compared).to_html(index=False, escape=True)
    return f'<div style="border-left: 5px solid {colour}; padding: 8px 12px">{escape(verdict(compared))}</div>{table}'
