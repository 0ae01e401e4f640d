"""Pairs that rest on structure alone accuse nobody when the final outputs contradict them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from layerdiff.localise import Origin, Slot
from layerdiff.model import Evidence, Pair
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
