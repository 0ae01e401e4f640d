"""Outputs that the file gives in another order than the model returns them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.diagnose.prove import Explained
from layerdiff.model import Diagnosis, Divergence, Healed, Kind

if TYPE_CHECKING:
    from layerdiff.candidate import Candidate
    from layerdiff.outputs import OutputPairs


def outputs_exchanged(
    candidate: Candidate, outputs: OutputPairs, root_type: str
) -> tuple[Divergence, Explained] | None:
    """The finding that outputs stand in each other's place; None where they would not agree in another order."""
    belongs = _belongs(candidate, outputs)
    if belongs is None:
        return None
    before = outputs.worst(outputs.measured(candidate.tapped))
    after = outputs.worst({value: outputs.of(value, candidate.tapped[name]) for value, name in belongs.items()})
    wanted, given = list(belongs.values()), [outputs.tensors[value] for value in belongs]
    text = f"the file gives {', '.join(given)} where the model returns what {', '.join(wanted)} hold"
    divergence = Divergence(
        "", 0, root_type, None, (), (), given[0], None, None, Kind.COMPUTED, text, Healed(before, after, agrees=True)
    )
    diagnosis = Diagnosis(
        "order",
        "",
        f"The outputs {' and '.join(given)} stand in each other's place: read as {', '.join(wanted)} they agree.",
        {"file": given, "model": wanted, "error_before": before, "error_after": after},
        f"session.run({wanted!r}, inputs)  # or export again with output_names in the order in which forward returns",
        verified=True,
    )
    return divergence, Explained(diagnosis, None)


def _belongs(candidate: Candidate, outputs: OutputPairs) -> dict[int, str] | None:
    """For each output that is wrong the tensor of another that holds it, each of them once; None where that fails."""
    tapped = candidate.tapped
    wrong = [value for value, metrics in outputs.measured(tapped).items() if metrics is None or not metrics.agrees]
    free, found = {value: outputs.tensors[value] for value in wrong}, {}
    for value in wrong:
        holding = (
            other
            for other, name in free.items()
            if name in tapped and (metrics := outputs.of(value, tapped[name])) is not None and metrics.agrees
        )
        other = next(holding, None)
        if other is None:
            return None
        found[value] = free.pop(other)
    return found or None
