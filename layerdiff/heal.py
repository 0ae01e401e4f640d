"""Prove an accusation: put PyTorch's value in at the accused place and see whether the final outputs agree."""

from __future__ import annotations

from dataclasses import replace
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
    alignment: Alignment,
    origins: Sequence[Origin],
    outputs: OutputPairs,
    *,
    all_of_them: bool = True,
    at_once: int = 1,
) -> list[Healed | None]:
    """For each origin the final error before and after it, too, was healed (in the order given).

    Each run feeds the expected value at one more origin, in the otherwise untouched graph: the difference between
    neighbours is what that origin was responsible for. None where no value of the right size can be put in. Unless
    `all_of_them` are wanted, it ends with the one after which the outputs agree. Where several are healed `at_once`
    they share what that does.
    """
    proofs: list[Healed | None] = []
    before = outputs.worst(outputs.measured(alignment.candidate.tapped))
    healed: list[Origin] = []
    for begin in range(0, len(origins), at_once):
        group = origins[begin : begin + at_once]
        usable = [origin for origin in group if origin.provable]
        if not usable:
            proofs += [None] * len(group)
            continue
        proof = _put_in(alignment, [*healed, *usable], outputs, before)
        ends = proof.agrees and not all_of_them
        if ends and len(usable) > 1:
            usable = usable[: _fewest(alignment, healed, usable, outputs)]
            group = group[: group.index(usable[-1]) + 1]
        healed += usable
        for origin in group:
            last = origin is usable[-1]
            proofs.append(replace(proof, agrees=proof.agrees and last) if origin.provable else None)
        if ends:
            break
        before = proof.after
    return proofs


def _fewest(alignment: Alignment, healed: Sequence[Origin], origins: Sequence[Origin], outputs: OutputPairs) -> int:
    """How many of some origins, in their order, it takes besides those that are healed for the outputs to agree."""
    least, enough = 1, len(origins)
    while least < enough:
        middle = (least + enough) // 2
        if _put_in(alignment, [*healed, *origins[:middle]], outputs, 0.0).agrees:
            enough = middle
        else:
            least = middle + 1
    return enough


def heal_together(
    alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs, before: float
) -> Healed | None:
    """The final error after some origins were healed in one run; None where a value cannot be put in."""
    return _put_in(alignment, origins, outputs, before) if all(origin.provable for origin in origins) else None


def _replaced(alignment: Alignment, origin: Origin, outputs: OutputPairs) -> dict[str, Array]:
    """An output that is healed, in the shape that it should have."""
    if outputs.tensors.get(origin.value) != origin.slot.tensor:
        return {}
    expected = alignment.reference.values[origin.value].array
    assert expected is not None
    return {origin.slot.tensor: expected}


def _put_in(alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs, before: float) -> Healed:
    """The final error after the expected values were put in at some origins."""
    injections = [injection_at(alignment, origin) for origin in origins]
    replaced = {name: a for origin in origins for name, a in _replaced(alignment, origin, outputs).items()}
    metrics = outputs.measured(alignment.candidate.outputs_with(injections) | replaced)
    agrees = all(m is not None and m.agrees for m in metrics.values())
    return Healed(before, outputs.worst(metrics), agrees=agrees)


def injection_at(alignment: Alignment, origin: Origin) -> Injection:
    """The right value, put in where an origin ends."""
    value = alignment.expected_for(origin.slot.tensor, origin.value, origin.slot.axes)
    return Injection(origin.slot.tensor, value, origin.slot.edges)
