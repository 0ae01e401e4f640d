"""Prove an accusation: put PyTorch's value in at the accused place and see whether the final outputs agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerdiff.graph import Injection
from layerdiff.model import Healed

if TYPE_CHECKING:
    from collections.abc import Sequence

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
        if outputs.tensors.get(origin.value) == origin.slot.tensor:  # an output is healed in the shape it should have
            expected = alignment.reference.values[origin.value].array
            assert expected is not None
            replaced[origin.slot.tensor] = expected
        metrics = outputs.measured(alignment.candidate.outputs_with(injections) | replaced)
        after = outputs.worst(metrics)
        agrees = all(m is not None and m.agrees for m in metrics.values())
        proofs.append(Healed(before, after, agrees=agrees))
        if agrees and not all_of_them:
            break
        before = after
    return proofs


def injection_at(alignment: Alignment, origin: Origin) -> Injection:
    """The right value, put in where an origin ends."""
    value = alignment.expected_for(origin.slot.tensor, origin.value, origin.slot.axes)
    return Injection(origin.slot.tensor, value, origin.slot.edges)
