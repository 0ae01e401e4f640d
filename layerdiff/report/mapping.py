"""Which tensor holds which layer's result, as a YAML file that people edit and `trace(pairs=…)` reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from layerdiff.files import write_text
from layerdiff.model import Evidence, Status

if TYPE_CHECKING:
    from layerdiff.model import LayerResult
    from layerdiff.report.record import Report

_HEAD = """\
# Which ONNX tensor holds which layer's result. Read by layerdiff.trace(pairs="this file") and layerdiff trace --pairs.
#
# Write a tensor's name behind a layer to settle a pair. A line without one says nothing, and neither does a comment.
# "act#1" is the second call of a layer, "lstm[1]" the second tensor that it returns, "(root)" the model itself.
"""


def write_pairs(report: Report, path: str | Path) -> Path:
    """Write the mapping file of a report; a file that is already there is replaced in one step."""
    target = Path(path)
    rows = {row.key: row for row in report.layers if row.key}
    given = [row for row in rows.values() if row.evidence is Evidence.GIVEN]
    open_rows = [row for row in rows.values() if row.status is Status.UNMATCHED]
    folded = [row for row in rows.values() if row.status is Status.FOLDED]
    matched = [row for row in rows.values() if row.onnx_tensor is not None and row not in given]
    sections = (
        ("Given before.", [_line(row.key, row.onnx_tensor) for row in given]),
        ("Without a counterpart.", [line for row in open_rows for line in _asked(row, _line(row.key, None))]),
        (
            "Folded into others, as exporters do; remove the # where a layer has a tensor of its own.",
            [line for row in folded for line in _asked(row, f"# {_line(row.key, None)}")],
        ),
        (
            "Paired, with the reason; remove the # and change the tensor where a pair is wrong.",
            [f"# {_line(row.key, row.onnx_tensor)}  # {row.evidence}, {row.status}" for row in matched],
        ),
    )
    text = "".join(f"\n# {title}\n" + "".join(f"{line}\n" for line in lines) for title, lines in sections if lines)
    write_text(target, _HEAD + text)
    return target


def _asked(row: LayerResult, line: str) -> list[str]:
    shape = "" if row.shape is None else f" {row.shape}"
    could = f"; could be {', '.join(row.suggestions)}" if row.suggestions else "; no free tensor has its size"
    return [f"# {' '.join(f'{row.type}{shape}: {row.reason}{could}'.split())}", line]


def _line(key: str, tensor: str | None) -> str:
    """One pair as YAML, quoted where that is needed."""
    text = yaml.safe_dump({key: tensor or ""}, width=float("inf"), allow_unicode=True).strip()
    if "\n" in text:  # a long name, or one with a line break
        text = f"{json.dumps(key)}: {json.dumps(tensor) if tensor else ''}".rstrip()
    return text if tensor else text.removesuffix("''").rstrip()
