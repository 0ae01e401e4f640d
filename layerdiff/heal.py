"""Prove an accusation: put PyTorch's value in at the accused place and see whether the final outputs agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerdiff.graph import Injection
from layerdiff.model import Healed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]


def heal_alone(alignment: Alignment, tensor: str, value: int, outputs: OutputPairs) -> Healed:
    """The final error before and after one tensor, and nothing else, was given its expected value."""
    before = outputs.worst(outputs.measured(alignment.candidate.tapped))
    injection = Injection(tensor, alignment.expected_for(tensor, value))
    metrics = outputs.measured(alignment.candidate.outputs_with([injection]))
    agrees = all(m is not None and m.agrees for m in metrics.values())
    return Healed(before, outputs.worst(metrics), agrees)


def heal(
    alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs, *, all_of_them: bool = True
) -> list[Healed | None]:
    """For each origin the final error before and after it, too, was healed (in the order given).

    Each run feeds the expected value at one more origin, in the otherwise untouched graph: the difference between
    neighbours is what that origin was responsible for. None where no value of the right size can be put in. Unless
    `all_of_them` are wanted, it ends with the one after which the outputs agree.
    """
    proofs: list[Healed | None] = []
    before = outputs.worst(outputs.measured(alignment.candidate.tapped))
    injections: list[Injection] = []
    replaced: dict[str, Array] = {}
    for origin in origins:
        if not origin.provable:
            proofs.append(None)
            continue
        injections.append(injection_at(alignment, origin))
        replaced |= _replaced(alignment, origin, outputs)
        proof = _healed(alignment, injections, replaced, outputs, before)
        proofs.append(proof)
        if proof.agrees and not all_of_them:
            break
        before = proof.after
    return proofs


def heal_together(
    alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs, before: float
) -> Healed | None:
    """The final error after some origins were healed in one run; None where a value cannot be put in."""
    if not all(origin.provable for origin in origins):
        return None
    injections = [injection_at(alignment, origin) for origin in origins]
    replaced = {name: a for origin in origins for name, a in _replaced(alignment, origin, outputs).items()}
    return _healed(alignment, injections, replaced, outputs, before)


def _replaced(alignment: Alignment, origin: Origin, outputs: OutputPairs) -> dict[str, Array]:
    """An output that is healed, in the shape that it should have."""
    if outputs.tensors.get(origin.value) != origin.slot.tensor:
        return {}
    expected = alignment.reference.values[origin.value].array
    assert expected is not None
    return {origin.slot.tensor: expected}


def _healed(
    alignment: Alignment,
    injections: Sequence[Injection],
    replaced: Mapping[str, Array],
    outputs: OutputPairs,
    before: float,
) -> Healed:
    metrics = outputs.measured(alignment.candidate.outputs_with(injections) | dict(replaced))
    agrees = all(m is not None and m.agrees for m in metrics.values())
    return Healed(before, outputs.worst(metrics), agrees=agrees)


def injection_at(alignment: Alignment, origin: Origin) -> Injection:
    """The right value, put in where an origin ends."""
    value = alignment.expected_for(origin.slot.tensor, origin.value, origin.slot.axes)
    return Injection(origin.slot.tensor, value, origin.slot.edges)
