"""What a trace says of one case, against the truth that was made with it."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import layerdiff
from benchmarks.faults import Category
from benchmarks.faults.causes import causes_of
from layerdiff.errors import LayerdiffError

if TYPE_CHECKING:
    import torch

    from benchmarks.faults import Fault, FaultyCase, FaultyPair
    from benchmarks.healthy import HealthyCase
    from layerdiff import Report
    from layerdiff.model import Divergence

HEALTHY = "healthy"
RIGHT = ("exact", "neighbour", "quiet")
"""The outcomes that are no miss."""
MOST_TOLD = 4
"""Among how many layers, named as equally possible in one report, the planted one still counts as told."""


@dataclass(frozen=True)
class Row:
    """What became of one case.

    `outcome`: exact, neighbour, wrong, silent or crashed; quiet or alarm for a healthy export. `told`: the planted
    layer is the accused one, or one of the few that the report says could be meant as well. `both` is about pairs.
    `cause` is the first diagnosis; it is right when it is one that the planted kind may be called. `repaired` tells
    whether the corrected file agrees, of the cases for which one was asked for.
    """

    case: str
    category: str
    kind: str
    model: str
    exporter: str
    treatment: str
    outcome: str
    healed: bool | None = None
    both: bool | None = None
    origins: int = 0
    uncompared: int = 0
    truth: str = ""
    named: str = ""
    seconds: float = 0.0
    cause: str = ""
    cause_right: bool | None = None
    verified: bool | None = None
    repaired: bool | None = None
    told: bool | None = None


def judged(case: FaultyCase | FaultyPair | HealthyCase, *, repair: bool = False) -> Row:
    """The outcome of one case, and of its repair if asked for; whatever the trace raises is one, too."""
    faults = faults_of(case)
    facts = (
        case.name,
        case.category.value if isinstance(case.category, Category) else HEALTHY,
        " + ".join(fault.kind for fault in faults) or HEALTHY,
        case.subject,
        case.exporter.value,
        case.treatment.value,
    )
    truth = " + ".join(_place(fault.layer, fault.call) for fault in faults)
    start = time.perf_counter()
    try:
        report = layerdiff.trace(case.model, case.proto, case.inputs, progress=False)
    except Exception as error:  # noqa: BLE001  a trace that raises is a result like any other
        return Row(*facts, "crashed", truth=truth, named=f"{type(error).__name__}: {error}")
    seconds = time.perf_counter() - start
    last = report.divergences[-1].healed if report.divergences else None
    cause = report.diagnoses[0] if report.diagnoses else None
    return Row(
        *facts,
        outcome(report, faults),
        healed=None if last is None else last.agrees,
        both=all(_found(report, fault) for fault in faults) if len(faults) > 1 else None,
        origins=len(report.divergences),
        uncompared=uncovered(report, case.model),
        truth=truth,
        named=" + ".join(_place(d.layer, d.call if _calls_matter(faults) else None) for d in report.divergences),
        seconds=seconds,
        cause="" if cause is None else cause.cause,
        cause_right=None if not faults else cause is not None and cause.cause in causes_of(faults[0]),
        verified=None if not faults else cause is not None and cause.verified,
        repaired=repaired(report) if repair and faults else None,
        told=told(report, faults[0]) if faults else None,
    )


def repaired(report: Report) -> bool:
    """Whether the corrected file could be written, and agrees."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return report.repair(Path(folder) / "fixed.onnx").agrees
        except LayerdiffError:
            return False


def faults_of(case: FaultyCase | FaultyPair | HealthyCase) -> tuple[Fault, ...]:
    """What was planted, in the order in which torch runs into it."""
    fault = getattr(case, "fault", None)
    return getattr(case, "faults", ()) if fault is None else (fault,)


def outcome(report: Report, faults: tuple[Fault, ...]) -> str:
    """One word for what the report names first, against what goes wrong first."""
    first = report.first_divergence
    if not faults:
        return "quiet" if report.agrees and first is None else "alarm"
    if first is None or report.agrees:
        return "silent"
    if not _accepts(faults[0], first):
        return "wrong"
    return "exact" if first.layer == faults[0].layer else "neighbour"


def told(report: Report, fault: Fault) -> bool:
    """Whether the layer of the first fault is named: as the accused one, or among the few that could be meant."""
    first = report.first_divergence
    if first is None or report.agrees:
        return False
    exact = first.layer == fault.layer and fault.accepts(first.layer, first.call)
    return exact or (fault.layer in first.also_possible and len(first.also_possible) < MOST_TOLD)


def uncovered(report: Report, model: torch.nn.Module) -> int:
    """How many modules the report neither compares, nor folds, nor leaves out for a reason of the model's own."""
    told = {result.layer for result in report.layers} | {*report.coverage.unmatched, *report.coverage.containers}
    silent = {name for name, _ in model.named_modules(remove_duplicate=False)} - told
    lost = [why for why in report.coverage.unmatched.values() if why.startswith("no tensor of the graph")]
    return len(silent) + len(lost)


def _found(report: Report, fault: Fault) -> bool:
    return any(_accepts(fault, divergence) for divergence in report.divergences)


def _accepts(fault: Fault, divergence: Divergence) -> bool:
    return fault.accepts(divergence.layer, divergence.call)


def _calls_matter(faults: tuple[Fault, ...]) -> bool:
    return any(fault.call is not None for fault in faults)


def _place(layer: str, call: int | None) -> str:
    return repr(layer) if call is None else f"{layer!r} call {call}"
