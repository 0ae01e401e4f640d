"""Outputs that the file gives in another order than the model returns them, and outputs that are fixed in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.diagnose.prove import Explained
from layerdiff.diagnose.weights import in_what_way
from layerdiff.model import Diagnosis, Divergence, Healed, Kind

if TYPE_CHECKING:
    from layerdiff.candidate import Candidate
    from layerdiff.diagnose.stretch import Stretch
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
        "", 0, root_type, None, (), (), given[0], None, None, Kind.EXCHANGED, text, Healed(before, after, agrees=True)
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


def fixed_output(stretch: Stretch) -> Explained | None:
    """The cause, where a constant of the file is given out that the model computes or holds otherwise."""
    name, wanted, got = stretch.origin.slot.tensor, stretch.expected, stretch.actual
    if name not in stretch.alignment.candidate.graph.constant or wanted is None or got is None:
        return None
    evidence = {"output": name}
    if not stretch.alignment.reference.values[stretch.value].constant:
        cause, text = "baked-constant", f"The output {name} is a constant of the file; the model computes it."
    elif wanted.shape != got.shape:
        cause, text = "weights", f"The output {name} is a constant of shape {got.shape}; the model's is {wanted.shape}."
    else:
        said, found = in_what_way(stretch, f"The output {name}, a constant of the file,", wanted, got)
        cause, text, evidence = "weights", said, evidence | found
    healed = stretch.divergence.healed
    remedy = "export again from the model that is meant to ship"
    verified = healed is not None and healed.agrees
    return Explained(Diagnosis(cause, stretch.divergence.layer, text, evidence, remedy, verified=verified), None)
