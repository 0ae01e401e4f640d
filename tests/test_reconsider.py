"""Pairs that rest on structure alone accuse nobody when the final outputs contradict them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest

from layerdiff.localise import Origin, Slot
from layerdiff.model import Evidence, Pair
from layerdiff.proof import prove
from layerdiff.reconsider import Located, doubted

if TYPE_CHECKING:
    from collections.abc import Mapping


class Outputs:
    """Final outputs that agree for the given sets of healed tensors, and for no others."""

    def __init__(self, *agreeing: str) -> None:
        self.agreeing = {frozenset(names) for names in agreeing}

    def all_agree(self, arrays: Mapping[str, Any]) -> bool:
        return frozenset(arrays) in self.agreeing


def located(tensors: str) -> Located:
    """One origin for each letter, each at the tensor that was proposed for its value."""
    origins = [Origin(i, Slot(name), (i,), (i,)) for i, name in enumerate(tensors)]
    alignment = SimpleNamespace(
        proposed={i: Pair(i, name, Evidence.STRUCTURE) for i, name in enumerate(tensors)},
        forced=dict,
        isolated={},
        reference=SimpleNamespace(values=[SimpleNamespace(array=None)] * len(tensors)),
        expected_for=lambda _tensor, _value, _axes: np.zeros(1),
        candidate=SimpleNamespace(
            tapped={"": 0}, graph=None, outputs_with=lambda injections: dict.fromkeys(i.tensor for i in injections)
        ),
    )
    return Located(alignment, origins, [])  # type: ignore[arg-type]


CASES = [
    pytest.param("qvg", ("qvg", "vg", "g"), {0}, id="a factor and its inverse beside a fault"),
    pytest.param("ab", ("ab",), set(), id="two faults"),
    pytest.param("ab", ("ab", "b", "a"), set(), id="either of two"),
    pytest.param("ab", (), set(), id="what no healing cures"),
    pytest.param("a", ("a",), set(), id="one fault"),
]


@pytest.mark.parametrize(("tensors", "agreeing", "expected"), CASES)
def test_a_pair_is_doubted_when_healing_it_alone_breaks_outputs_that_agree(
    tensors: str, agreeing: tuple[str, ...], expected: set[int]
) -> None:
    assert doubted(located(tensors), Outputs(*agreeing)) == expected  # type: ignore[arg-type]


class Healing:
    """Outputs that agree once the tensor `a` is healed, and how often they were asked for."""

    tensors: ClassVar[dict[int, str]] = {}
    masks: ClassVar[dict[int, Any]] = {}

    def __init__(self) -> None:
        self.runs = 0

    def all_agree(self, arrays: Mapping[str, Any]) -> bool:
        return "a" in arrays

    def measured(self, arrays: Mapping[str, Any]) -> dict[int, Any]:
        self.runs += 1
        return {0: SimpleNamespace(agrees="a" in arrays)}

    def unmoved(self, *_: Any) -> bool:
        return False

    def worst(self, metrics: Mapping[int, Any]) -> float:
        return float(not metrics[0].agrees)


def test_of_very_many_origins_as_many_are_healed_as_it_takes() -> None:
    few, many = (Healing(), Healing())
    letters = "abcdefghijklmnopqrstuvwxyz"
    found = prove(*healing(letters[:4]), few, shipped_agrees=False)  # type: ignore[arg-type]
    assert [origin.slot.tensor for origin, _ in found.diverging] == ["a"]
    assert few.runs == 1 + 4  # to see which of them matter, each is healed
    found = prove(*healing("z" + letters), many, shipped_agrees=False)  # type: ignore[arg-type]
    assert [origin.slot.tensor for origin, _ in found.diverging] == ["z", "a"]
    assert many.runs == 1 + 2


def healing(tensors: str) -> tuple[Any, list[Origin]]:
    """An alignment and one origin for each letter."""
    found = located(tensors)
    return found.alignment, found.origins
