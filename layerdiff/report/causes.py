"""The diagnoses as HTML: cause, proof and remedy at a glance, numbers and what was ruled out on request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from layerdiff.report.text import how_certain, layer_name

if TYPE_CHECKING:
    from layerdiff.model import Diagnosis
    from layerdiff.report.record import Report

_SEPARATE = ("ruled_out", "failed", "error_after")


def diagnoses(report: Report) -> str:
    """One box for each diagnosis; nothing where there is none."""
    return _inputs(report) + "".join(_box(d) for d in report.diagnoses if d.cause != "preprocessing")


def _inputs(report: Report) -> str:
    """What differs in what both sides are fed, one item each, and the code that corrects it."""
    found = report.inputs
    if found is None or found.agrees:
        return ""
    proof, mark = ("verified", "proof verified") if found.verified else ("not verified", "proof")
    items = "".join(f"<li><b>{escape(m.kind)}</b> {escape(m.summary)}</li>" for m in found.mismatches)
    code = f"<div>Remedy:<code>{escape(found.code.strip())}</code></div>" if found.code else ""
    numbers = [f"{m.kind}: {_shown(m.parameters)}" for m in found.mismatches]
    return (
        f'<div class="cause"><span class="slug">preprocessing</span>of the input <span class="{mark}">{proof}</span>'
        f"<ul>{items}</ul>{code}{_folded_away('settings', numbers)}{_folded_away('notes', found.notes)}</div>"
    )


def _box(diagnosis: Diagnosis) -> str:
    proof, mark = ("verified", "proof verified") if diagnosis.verified else ("not verified", "proof")
    remedy = f"<div>Remedy:<code>{escape(diagnosis.remedy)}</code></div>" if diagnosis.remedy else ""
    numbers = {name: value for name, value in diagnosis.evidence.items() if name not in _SEPARATE}
    return (
        f'<div class="cause"><span class="slug">{escape(diagnosis.cause)}</span>in '
        f'{escape(layer_name(diagnosis.layer))} <span class="{mark}">{proof}</span>'
        f"<div>{escape(' '.join([diagnosis.summary, how_certain(diagnosis)]).strip())}</div>{remedy}"
        f"{_folded_away('evidence', [f'{name}: {_shown(value)}' for name, value in numbers.items()])}"
        f"{_folded_away('ruled out', diagnosis.evidence.get('ruled_out', ()))}"
        f"{_folded_away('could not be tried', diagnosis.evidence.get('failed', ()))}</div>"
    )


def _folded_away(title: str, lines: Sequence[str]) -> str:
    if not lines:
        return ""
    items = "".join(f"<li>{escape(str(line))}</li>" for line in lines)
    return f"<details><summary>{title} ({len(lines)})</summary><ul>{items}</ul></details>"


def _shown(value: Any) -> str:
    """Evidence as a reader wants it: numbers short, nested things in a row."""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(item)}" for name, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_shown(item) for item in value[:16]) + (" …" if len(value) > 16 else "")
    return str(value)
