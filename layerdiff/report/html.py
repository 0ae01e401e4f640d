"""The report as HTML: a fragment for notebooks and a self-contained page. What comes from a model is escaped."""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from layerdiff.files import write_text
from layerdiff.model import Status
from layerdiff.report.causes import diagnoses
from layerdiff.report.plot import plot
from layerdiff.report.samples import sample_rows
from layerdiff.report.text import layer_name, repair_lines, verdict
from layerdiff.report.weights import headline, wrong_weights

if TYPE_CHECKING:
    from layerdiff.model import LayerResult, Metrics
    from layerdiff.report.record import Report

_STYLE = """
.layerdiff {font: 14px/1.45 system-ui, sans-serif; color: #212121; background: #fff; max-width: 1100px; padding: 4px}
.layerdiff .verdict {border-left: 5px solid #c62828; background: #fbe9e7; padding: 10px 14px; margin: 8px 0}
.layerdiff .verdict.agrees {border-color: #2e7d32; background: #e8f5e9}
.layerdiff .warning {border-left: 5px solid #f9a825; background: #fff8e1; padding: 6px 14px; margin: 8px 0}
.layerdiff .scroll {max-height: 420px; overflow: auto; border: 1px solid #e0e0e0}
.layerdiff table {border-collapse: collapse; font-size: 12px; width: 100%; color: #212121; background: #fff}
.layerdiff th {position: sticky; top: 0; background: #eceff1; text-align: left}
.layerdiff th, .layerdiff td {padding: 3px 8px; white-space: nowrap; text-align: left}
.layerdiff td.number {text-align: right; font-variant-numeric: tabular-nums}
.layerdiff tr.diverges {background: #ffcdd2; font-weight: 600}
.layerdiff tr.propagates, .layerdiff tr.drifts {background: #fff3e0}
.layerdiff tr.confined {background: #ede7f6}
.layerdiff tr.folded, .layerdiff tr.unmatched {color: #757575}
.layerdiff .cause {border: 1px solid #cfd8dc; border-radius: 4px; padding: 8px 14px; margin: 8px 0}
.layerdiff .cause .slug {font-weight: 600; margin-right: 8px}
.layerdiff .cause .proof {border-radius: 9px; padding: 1px 8px; font-size: 12px; background: #eceff1}
.layerdiff .cause .proof.verified {background: #c8e6c9}
.layerdiff .cause code {display: block; white-space: pre-wrap; background: #f5f5f5; padding: 4px 8px; margin: 4px 0}
.layerdiff details {margin: 4px 0} .layerdiff summary {cursor: pointer; color: #455a64}
.layerdiff ul {margin: 4px 0 4px 20px; padding: 0} .layerdiff .weights {margin: 8px 0}
.layerdiff img {max-width: 100%}
"""


def fragment(report: Report) -> str:
    """The verdict, the plot and the layers, for a notebook cell."""
    kind = "verdict agrees" if report.agrees else "verdict"
    told = (*report.warnings, *repair_lines(report))
    warnings = "".join(f'<div class="warning">{escape(text)}</div>' for text in told)
    return (
        f'<style>{_STYLE}</style><div class="layerdiff"><div class="{kind}">{escape(verdict(report))}</div>{warnings}'
        f"{diagnoses(report)}{_weights(report)}{_samples(report)}"
        f'<img alt="error of every layer in execution order" src="{_picture(report)}">{_table(report)}</div>'
    )


def write_html(report: Report, path: str | Path) -> Path:
    """One page without outside resources, with the environment at its end."""
    target = Path(path)
    facts = "".join(f"<tr><td>{escape(k)}</td><td>{escape(v)}</td></tr>" for k, v in report.environment.items())
    write_text(
        target,
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>layerdiff report</title></head><body>'
        f'{fragment(report)}<div class="layerdiff"><h3>Environment</h3><table>{facts}</table></div></body></html>',
    )
    return target


def _picture(report: Report) -> str:
    buffer = BytesIO()
    plot(report).savefig(buffer, format="png", dpi=110)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _weights(report: Report) -> str:
    """What became of the parameters: one line, and a table to open."""
    if not report.weights:
        return ""
    wrong = "".join(f"<li>{escape(text)}</li>" for text in wrong_weights(report.weights))
    cells = "".join(
        f'<tr class="{"agrees" if str(w.verdict) == "agrees" else "diverges"}">'
        + "".join(f"<td>{escape(text)}</td>" for text in (w.parameter, str(w.verdict), str(w.how), w.initializer or ""))
        + f'<td class="number">{"" if w.max_abs is None else f"{w.max_abs:.2g}"}</td><td>{escape(w.note)}</td></tr>'
        for w in report.weights
    )
    heads = "".join(f"<th>{h}</th>" for h in ("parameter", "verdict", "form", "initializer", "max-abs", "note"))
    return (
        f'<div class="weights">{escape(headline(report.weights))}{f"<ul>{wrong}</ul>" if wrong else ""}'
        f'<details><summary>every parameter</summary><div class="scroll"><table><tr>{heads}</tr>{cells}</table></div>'
        "</details></div>"
    )


def _samples(report: Report) -> str:
    """How each sample was judged; nothing when there is one only."""
    rows = sample_rows(report.samples)
    cells = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in rows)
    return f"<table>{cells}</table>" if rows else ""


def _table(report: Report) -> str:
    heads = (
        "layer",
        "type",
        "status",
        "introduced",
        "accumulated",
        "cosine",
        "noise",
        "ONNX tensor",
        "evidence",
        "why",
    )
    rows = "".join(_row(result) for result in report.layers)
    return f'<div class="scroll"><table><tr>{"".join(f"<th>{h}</th>" for h in heads)}</tr>{rows}</table></div>'


def _row(result: LayerResult) -> str:
    def number(metrics: Metrics | None, name: str) -> str:
        return "" if metrics is None else f"{getattr(metrics, name):.3g}"

    numbers = (
        number(result.introduced, "max_abs"),
        number(result.accumulated, "max_abs"),
        number(result.accumulated, "cosine"),
        "" if result.noise is None else f"{'≲' if result.noise.assumed else ''}{result.noise.max_abs:.2g}",
    )
    name = layer_name(result.layer) + (f" #{result.call}" if result.call else "")
    texts = (name, result.op or result.type, str(result.status))
    ends = (result.onnx_tensor or "", str(result.evidence or ""), result.reason)
    cells = "".join(f"<td>{escape(text)}</td>" for text in texts)
    cells += "".join(f'<td class="number">{text}</td>' for text in numbers)
    cells += "".join(f"<td>{escape(text)}</td>" for text in ends)
    mark = escape(str(result.status)) if result.status is not Status.AGREES else "agrees"
    return f'<tr class="{mark}">{cells}</tr>'
