"""What layerdiff says of the faults from public reports: `python -m benchmarks.real_faults [NAME …] [--write]`."""

from __future__ import annotations

import argparse
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import layerdiff
from tests.realfaults import REAL_FAULTS, RealFault

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.report import Report

PAGE = Path(__file__).parent.parent / "docs" / "real-faults.md"


@dataclass(frozen=True)
class Row:
    """One fault and what was said of it and of its healthy twin."""

    fault: RealFault
    layers: int
    layer: str | None
    cause: str | None
    verified: bool
    summary: str
    quiet: bool

    @property
    def layer_right(self) -> bool:
        return self.layer == self.fault.layer

    @property
    def cause_right(self) -> bool:
        return self.cause in self.fault.causes


def measure(fault: RealFault) -> Row:
    """The fault and its twin, traced."""
    case = fault.build()
    layers = sum(1 for module in case.model.modules() if not list(module.children()))
    report = layerdiff.trace(case.model, case.faulty, case.inputs, progress=False)
    twin_inputs = case.inputs if case.twin_inputs is None else case.twin_inputs
    twin = layerdiff.trace(case.model, case.twin, twin_inputs, progress=False)
    first = report.first_divergence
    diagnosis = report.diagnoses[0] if report.diagnoses else None
    return Row(
        fault,
        layers,
        None if first is None else first.layer,
        None if diagnosis is None else diagnosis.cause,
        diagnosis is not None and diagnosis.verified,
        report.verdict if diagnosis is None else diagnosis.summary,
        is_quiet(twin, lossy=fault.lossy_twin),
    )


def is_quiet(twin: Report, *, lossy: bool) -> bool:
    """Whether nothing is accused; a file of a lower precision need not agree."""
    return not twin.divergences and not twin.diagnoses and (lossy or twin.agrees)


def page(rows: Sequence[Row]) -> str:
    """The documentation page."""
    right = sum(row.layer_right for row in rows)
    named = sum(row.cause_right for row in rows)
    proven = sum(row.cause_right and row.verified for row in rows)
    quiet = sum(row.quiet for row in rows)
    lines = [
        "# Real faults",
        "",
        "<!-- Written by `python -m benchmarks.real_faults --write`; edit tests/realfaults instead. -->",
        "",
        f"{len(rows)} faults from public bug reports, re-created from their facts inside networks of at least eight",
        "layers. The networks, the files and what is expected of layerdiff are in `tests/realfaults`; the expected",
        "layer and cause were written down before layerdiff was run. *Today* says whether the installed exporter or",
        "runtime still does it; otherwise the exported file was edited to compute what the report describes. Each",
        "fault has a healthy twin, a file of the same network without it.",
        "",
        f"The layer is right in {right}, the cause in {named}, and right and verified in {proven} of {len(rows)}.",
        f"Nothing is accused in {quiet} of the {len(rows)} twins.",
        "",
        "| report | what happened | network | today | layer named | cause named | verified |",
        "|---|---|---|---|---|---|---|",
        *(_line(row) for row in rows),
    ]
    misses = [row for row in rows if not (row.layer_right and row.cause_right and row.quiet)]
    if misses:
        lines += ["", "## Misses", ""]
        lines += [f"- **{row.fault.name}**: {_miss(row)}" for row in misses]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    links = ", ".join(_link(source) for source in row.fault.sources)
    cells = (
        links,
        row.fault.happened,
        f"{row.fault.network}, {row.layers} layers",
        "yes" if row.fault.alive else "no",
        _name(row.layer) + ("" if row.layer_right else " ✗"),
        f"{row.cause or 'none'}" + ("" if row.cause_right else " ✗"),
        "yes" if row.verified else "no",
    )
    return "| " + " | ".join(cells) + " |"


def _miss(row: Row) -> str:
    wanted = " or ".join(sorted(row.fault.causes))
    said = f"the layer is {_name(row.fault.layer)} and the cause {wanted}; said was: {row.summary}"
    return said if row.quiet else f"{said} The healthy twin is not quiet."


def _name(layer: str | None) -> str:
    return "none" if layer is None else f"`{layer}`" if layer else "the model itself"


def _link(source: str) -> str:
    repository, number = source.split("#")
    return f"[{source}](https://github.com/{repository}/issues/{number})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="faults to run; all without")
    parser.add_argument("--write", action="store_true", help="write docs/real-faults.md")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for name in arguments.names or REAL_FAULTS:
        row = measure(REAL_FAULTS[name])
        rows.append(row)
        marks = "".join("+" if good else "-" for good in (row.layer_right, row.cause_right, row.verified, row.quiet))
        print(f"{marks} {name}: {_name(row.layer)}, {row.cause}: {row.summary}", flush=True)
        if not (row.layer_right and row.cause_right):
            print(f"     wanted {_name(row.fault.layer)}, {' or '.join(sorted(row.fault.causes))}")
    if arguments.write:
        PAGE.write_text(page(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
