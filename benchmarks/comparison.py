"""layerdiff and what people use today, on the same exports in the same run, scored by the same rule.

`make bench-rivals`, or `python -m benchmarks.comparison --count 120 --seed 1 --every 3`. Prints two tables and writes
every answer to benchmarks/out/comparison.csv.
"""

from __future__ import annotations

import argparse
import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

import layerdiff
from benchmarks.faults import FaultyCase, Foundry
from benchmarks.healthy import HealthyCase, Variant
from benchmarks.rivals import RIVALS, NotApplicable, Rival, Verdict, fresh_export
from tests.zoo import MODELS
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, export, quiet, treat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    import onnx
    from torch import Tensor, nn

    from benchmarks.faults import Fault
    from benchmarks.rivals import Fresh

OUT = Path(__file__).parent / "out"
LIMIT_SECONDS = 60
FOUND = ("exact", "neighbour", "wrong", "unnamed", "silent")
REFUSED = ("not applicable", "crashed", "timed out")


@dataclass(frozen=True)
class Answer:
    """What one tool said of one export.

    `outcome` is one of FOUND or REFUSED; for a healthy export "quiet", "alarm" or one of REFUSED.
    """

    tool: str
    case: str
    healthy: bool
    exporter: str
    treatment: str
    outcome: str
    truth: str | None
    named: str | None
    reason: str
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=120, help="faulty cases")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=3, help="take one of so many healthy exports, in random order")
    parser.add_argument("--models", nargs="*", choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    healthy = healthy_cases(options.models, options.seed, options.every)
    faulty = track(
        Foundry(options.seed, options.models).cases(options.count),
        "faulty exports",
        total=options.count,
        console=Console(stderr=True),
    )
    frame = compare(faulty, healthy)
    OUT.mkdir(exist_ok=True)
    frame.to_csv(OUT / "comparison.csv", index=False)
    print_tables(frame)


def healthy_cases(models: list[str] | None, seed: int, every: int) -> Iterator[HealthyCase]:
    """One of every so many models, exporters and treatments, drawn at random."""
    ways = [(m, e, t) for m in models or MODELS for e in Exporter for t in Treatment if (m, e, t) not in UNSUPPORTED]
    for name, exporter, treatment in random.Random(seed).sample(ways, len(ways))[::every]:
        sample = MODELS[name]()
        proto = treat(export(sample.model, sample.inputs, exporter), treatment)
        title = f"{name}-{exporter.value}-{treatment.value}"
        yield HealthyCase(title, sample.model, sample.inputs, proto, exporter, treatment, Variant.PLAIN, name)


def compare(
    cases: Iterable[FaultyCase], healthy: Iterable[HealthyCase], tools: Mapping[str, Rival] | None = None
) -> pd.DataFrame:
    """One row per tool and export: what it said, and how that is scored."""
    tools = {"layerdiff": by_layerdiff, **RIVALS} if tools is None else tools
    answers = [
        answer(name, tool, case, fresh)
        for group in (healthy, cases)
        for case in group
        for fresh in [fresh_export(case.model, case.inputs, case.exporter)]
        for name, tool in tools.items()
    ]
    return pd.DataFrame(map(asdict, answers))


def by_layerdiff(model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], _fresh: Fresh) -> Verdict:
    """The layer of the first divergence; the new export is not looked at."""
    report = layerdiff.trace(model, proto, inputs, progress=False)
    first = report.first_divergence
    return Verdict(report.agrees and first is None, None if first is None else first.layer)


def answer(name: str, tool: Rival, case: FaultyCase | HealthyCase, fresh: Fresh) -> Answer:
    """What the tool says, or why it says nothing."""
    fault = case.fault if isinstance(case, FaultyCase) else None
    verdict, refusal, reason = None, "", ""
    start = time.perf_counter()
    try:
        verdict = within_limit(lambda: tool(case.model, case.proto, case.inputs, fresh))
    except NotApplicable as error:
        refusal, reason = "not applicable", str(error)
    except TimeoutError:
        refusal = "timed out"
    except Exception as error:  # noqa: BLE001  a tool that crashes has given its answer
        refusal, reason = "crashed", f"{type(error).__name__}: {error}".splitlines()[0]
    return Answer(
        name,
        case.name,
        fault is None,
        case.exporter.value,
        case.treatment.value,
        refusal if verdict is None else score(verdict, fault),
        None if fault is None else fault.layer,
        None if verdict is None else verdict.layer,
        reason,
        time.perf_counter() - start,
    )


def score(verdict: Verdict, fault: Fault | None) -> str:
    """The outcome of a verdict: the rule that layerdiff's own benchmark uses, for everybody."""
    if fault is None:
        return "quiet" if verdict.agrees else "alarm"
    if verdict.agrees:
        return "silent"
    if verdict.layer is None:
        return "unnamed"
    if verdict.layer == fault.layer:
        return "exact"
    return "neighbour" if fault.accepts(verdict.layer) else "wrong"


def within_limit(call: Callable[[], Verdict]) -> Verdict:
    """What the call gives; TimeoutError when it takes longer than LIMIT_SECONDS, nothing of what it prints."""

    def stop(_signal: int, _frame: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT_SECONDS)
    try:
        with quiet():
            return call()
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """One row per tool: shares of the faulty exports in percent, false alarms among the healthy ones it took."""
    rows = {}
    for tool, answers in frame.groupby("tool", sort=False):
        faulty, good = answers[~answers.healthy], answers[answers.healthy]
        shares = 100 * faulty.outcome.value_counts(normalize=True)
        taken = good[~good.outcome.isin(REFUSED)]
        rows[tool] = {name: round(shares.get(name, 0.0), 1) for name in FOUND + REFUSED}
        rows[tool]["false alarms"] = f"{(taken.outcome == 'alarm').sum()} of {len(taken)}"
        rows[tool]["seconds"] = round(answers[~answers.outcome.isin(REFUSED)].seconds.median(), 2)
    return pd.DataFrame.from_dict(rows, orient="index")


def accepted(frame: pd.DataFrame) -> pd.DataFrame:
    """Percent exact or neighbour, for each tool, exporter and treatment."""
    faulty = frame[~frame.healthy]
    right = faulty.assign(right=100 * faulty.outcome.isin(["exact", "neighbour"]))
    table = right.pivot_table("right", "tool", ["exporter", "treatment"], sort=False)
    return table.round(0).astype(int).sort_index(axis="columns")


def print_tables(frame: pd.DataFrame) -> None:
    cases = frame.drop_duplicates("case")
    print(f"\n{(~cases.healthy).sum()} faulty and {cases.healthy.sum()} healthy exports\n")
    with pd.option_context("display.width", 200, "display.max_columns", None):
        print(f"{summary(frame).to_string()}\n\n{accepted(frame).T.to_string()}")
    reasons = frame[frame.reason != ""].groupby(["tool", "outcome", "reason"]).size()
    print(f"\n{reasons.to_string()}")


if __name__ == "__main__":
    main()
