"""A comparison of detections as words, as a table and as plain data."""

from __future__ import annotations

import math
from collections import Counter
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from layerdiff.pipeline.detection_model import DetectionComparison, DetectionMatch, UnmatchedDetection

SHOWN_BOXES = 12


def verdict(compared: DetectionComparison) -> str:
    """What was found, in a few sentences."""
    if compared.agrees:
        text = f"Detections agree: {_boxes(len(compared.matches))} matched"
        lone = len(compared.missing) + len(compared.extra)
        return f"{text}; {lone} more lie on a threshold, where rounding decides." if lone else f"{text}."
    return " ".join([_counts(compared), *_settings(compared), *_apart(compared), *compared.notes])


def _counts(compared: DetectionComparison) -> str:
    text = f"Detections differ: {_boxes(len(compared.matches))} matched"
    for name, lone in (("missing", compared.missing), ("extra", compared.extra)):
        if lone:
            reasons = Counter(str(box.reason) for box in lone)
            text += f", {len(lone)} {name} ({', '.join(f'{reason} {n}' for reason, n in reasons.most_common())})"
    return f"{text}."


def _settings(compared: DetectionComparison) -> list[str]:
    if not compared.settings:
        return []
    listed = "; ".join(f"{name} {_shown(e)} against {_shown(a)}" for name, (e, a) in compared.settings.items())
    told = [f"Settings that differ (expected against actual): {listed}."]
    if compared.missing or compared.extra:
        where = "the raw output" if compared.from_raw else "the boxes of both sides"
        if compared.reconciled:
            told.append(f"Post-processing of {where} with these settings gives both sides.")
        else:
            told.append(f"Post-processing of {where} with these settings does not give all boxes of both sides.")
    return told


def _apart(compared: DetectionComparison) -> list[str]:
    told = []
    apart = [match for match in compared.matches if not compared.match_agrees(match)]
    edges = [abs(offset) for match in apart for offset in match.offset_px]
    if edges and max(edges) > compared.tolerance_px:
        shift = ", ".join(f"{edge:+.3g}" for edge in compared.shift_px)
        told.append(
            f"Box edges differ by up to {max(edges):.3g}; the median shift (left, top, right, bottom) is {shift}."
        )
    shifts = [match.score_shift for match in apart if math.isfinite(match.score_shift)]
    if shifts and max(map(abs, shifts)) > compared.tolerance_score:
        told.append(f"Scores differ by up to {max(map(abs, shifts)):.3g}, {compared.score_shift:+.3g} in the median.")
    if compared.flips:
        told.append(f"{_boxes(len(compared.flips))} have another class.")
    return told


def _boxes(count: int) -> str:
    return "1 box" if count == 1 else f"{count} boxes"


def _shown(value: Any) -> str:
    return "no limit" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def summary(compared: DetectionComparison) -> str:
    """The verdict, then what is missing and extra, box by box."""
    lines = [verdict(compared)]
    for name, lone in (("missing", compared.missing), ("extra", compared.extra)):
        lines += [f"{name:8} {_line(box)}" for box in lone[:SHOWN_BOXES]]
        if len(lone) > SHOWN_BOXES:
            lines.append(f"{name:8} … and {len(lone) - SHOWN_BOXES} more")
    return "\n".join(lines)


def _line(box: UnmatchedDetection) -> str:
    edges = ", ".join(f"{edge:.4g}" for edge in box.box)
    image = f"{box.image}: " if box.image else ""
    return f"{image}[{edges}] class {box.label} score {box.score:.3g}  {box.reason}: {box.detail}"


def to_frame(compared: DetectionComparison) -> pd.DataFrame:
    """One row per box."""
    import pandas as pd

    rows = [_matched_row(compared, match) for match in compared.matches]
    rows += [_lone_row("missing", box) for box in compared.missing]
    rows += [_lone_row("extra", box) for box in compared.extra]
    columns = [
        *("image", "status", "expected", "actual", "iou", "left", "top", "right", "bottom", "score", "score_shift"),
        *("expected_class", "actual_class", "reason", "detail"),
    ]
    return pd.DataFrame(rows, columns=columns)


def _matched_row(compared: DetectionComparison, match: DetectionMatch) -> dict[str, Any]:
    left, top, right, bottom = match.offset_px
    return {
        "image": match.image, "status": "agrees" if compared.match_agrees(match) else "differs",
        "expected": match.expected, "actual": match.actual, "iou": match.iou, "left": left, "top": top, "right": right,
        "bottom": bottom, "score": match.score, "score_shift": match.score_shift,
        "expected_class": match.expected_class, "actual_class": match.actual_class, "reason": "", "detail": "",
    }  # fmt: skip


def _lone_row(status: str, box: UnmatchedDetection) -> dict[str, Any]:
    side = "expected" if status == "missing" else "actual"
    return {
        "image": box.image, "status": status, side: box.index, "score": box.score, f"{side}_class": box.label,
        "reason": str(box.reason), "detail": box.detail,
    }  # fmt: skip


def to_dict(compared: DetectionComparison) -> dict[str, Any]:
    """Plain data, with NaN and Inf as strings."""
    from dataclasses import fields

    kept = {f.name: getattr(compared, f.name) for f in fields(compared) if f.name not in ("expected", "actual")}
    return {"agrees": compared.agrees, "verdict": verdict(compared), **{k: _plain(v) for k, v in kept.items()}}


def _plain(value: Any) -> Any:
    from dataclasses import fields, is_dataclass
    from enum import Enum

    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    return value


def fragment(compared: DetectionComparison) -> str:
    """The verdict and the table, for a notebook cell."""
    colour = "#2e7d32" if compared.agrees else "#c62828"
    table = to_frame(compared).head(200).to_html(index=False, float_format="{:.4g}".format, escape=True, na_rep="")
    return f'<div style="border-left: 5px solid {colour}; padding: 8px 12px">{escape(verdict(compared))}</div>{table}'
