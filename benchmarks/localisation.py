"""How often the right layer is named: healthy exports must be quiet, planted faults must be found.

`make bench-faults`, or `python -m benchmarks.localisation --count 300 --seed 1`. Prints one table and writes every
case to benchmarks/out/localisation.csv.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

import layerdiff
from benchmarks.faults.cases import Foundry
from tests.zoo import MODELS
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, export, treat

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.faults import FaultyCase
    from layerdiff import Report

OUT = Path(__file__).parent / "out"


@dataclass(frozen=True)
class Row:
    """What became of one case. `outcome`: exact, neighbour, wrong, silent; quiet or alarm for a healthy export."""

    case: str
    kind: str
    model: str
    exporter: str
    treatment: str
    outcome: str
    healed: bool | None
    origins: int
    uncompared: int
    truth: str | None
    named: str | None
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="faulty cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--models", nargs="*", choices=list(MODELS))
    parser.add_argument("--no-healthy", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(stderr=True)
    rows = [] if options.no_healthy else list(track(healthy(options.models), "healthy exports", console=console))
    foundry = Foundry(options.seed, options.models)
    cases = track(foundry.cases(options.count), "faulty exports", total=options.count, console=console)
    rows += [judged(case) for case in cases]
    OUT.mkdir(exist_ok=True)
    frame = pd.DataFrame(map(asdict, rows))
    frame.to_csv(OUT / "localisation.csv", index=False)
    print_tables(frame)


def healthy(models: list[str] | None) -> Iterator[Row]:
    """Every model, exporter and treatment without a fault."""
    for name, exporter in ((m, e) for m in models or MODELS for e in Exporter):
        sample = MODELS[name]()
        exported = export(sample.model, sample.inputs, exporter)
        for treatment in Treatment:
            if (name, exporter, treatment) in UNSUPPORTED:
                continue
            proto = treat(exported, treatment)
            start = time.perf_counter()
            report = layerdiff.trace(sample.model, proto, sample.inputs, progress=False)
            outcome = "quiet" if report.agrees and not report.divergences else "alarm"
            yield row(f"{name}-{exporter.value}-{treatment.value}", "healthy", outcome, report, sample.model, start)


def judged(case: FaultyCase) -> Row:
    """What the trace says of a faulty export, against what was planted."""
    start = time.perf_counter()
    report = layerdiff.trace(case.model, case.proto, case.inputs, progress=False)
    first = report.first_divergence
    named = None if first is None else first.layer
    if named == case.fault.layer:
        outcome = "exact"
    elif case.fault.accepts(named):
        outcome = "neighbour"
    else:
        outcome = "silent" if report.agrees else "wrong"
    return row(case.name, case.fault.kind, outcome, report, case.model, start, case.fault.layer)


def uncovered(report: Report, model: torch.nn.Module) -> int:
    """How many modules the report neither compares, nor folds, nor leaves out for a reason of the model's own."""
    told = {result.layer for result in report.layers} | {*report.coverage.unmatched, *report.coverage.containers}
    silent = {name for name, _ in model.named_modules(remove_duplicate=False)} - told
    lost = [why for why in report.coverage.unmatched.values() if why.startswith("no tensor of the graph")]
    return len(silent) + len(lost)


def row(
    case: str, kind: str, outcome: str, report: Report, model: torch.nn.Module, start: float, truth: str | None = None
) -> Row:
    """The facts of a report that the tables need."""
    parts = case.split("-")
    parts = parts[1:] if parts[0].isdigit() else parts
    last = report.divergences[-1].healed if report.divergences else None
    first = report.first_divergence
    return Row(
        case,
        kind,
        parts[0],
        parts[-2],
        parts[-1],
        outcome,
        None if last is None else last.agrees,
        len(report.divergences),
        uncovered(report, model),
        truth,
        None if first is None else first.layer,
        time.perf_counter() - start,
    )


def print_tables(frame: pd.DataFrame) -> None:
    quiet = frame[frame["kind"] == "healthy"]
    faulty = frame[frame["kind"] != "healthy"]
    if len(quiet):
        alarms = int((quiet.outcome == "alarm").sum())
        print(f"\nhealthy exports: {len(quiet)}, false alarms: {alarms}, modules not covered: {quiet.uncompared.sum()}")
    if not len(faulty):
        return
    for by in ("treatment", "exporter", "model", "kind"):
        counts = pd.crosstab(faulty[by], faulty.outcome)
        counts["healed"] = faulty.groupby(by).healed.apply(lambda column: int(column.fillna(value=False).sum()))
        print(f"\n{counts.to_string()}")
    shares = faulty.outcome.value_counts(normalize=True)
    healed = faulty.healed.fillna(value=False).mean()
    print(
        f"\n{len(faulty)} faulty exports: "
        + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
        + f"; healed {healed:.1%}; {faulty.seconds.median():.2f} s a trace (median)"
    )
    for miss in faulty[faulty.outcome.isin(["wrong", "silent"])].itertuples():
        print(f"  {miss.outcome}: {miss.case}: {miss.truth!r}, named {miss.named!r}")


if __name__ == "__main__":
    main()
