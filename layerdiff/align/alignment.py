"""What is known about which value of the reference is which tensor of the candidate."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.layout import turned
from layerdiff.align.structure import Families
from layerdiff.align.values import same_in, same_numbers
from layerdiff.model import Evidence, Pair
from layerdiff.shelf import Made, outline, size_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.align.weights import Tie
    from layerdiff.candidate import Candidate
    from layerdiff.layout import Axes
    from layerdiff.limits import Limit
    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]

RESEMBLANCE = 0.1


@dataclass(slots=True)
class Alignment:
    """Everything that is known about which value is which tensor.

    `added` is what one layer may add, where that is known apart from the limits: what is right to that in the normal
    run, and computed from what is, need not be run again from right inputs.
    """

    reference: Reference
    candidate: Candidate
    limits: Mapping[int, Limit]
    outputs: dict[int, str]
    matched: dict[int, list[str]]
    misshapen: dict[int, str] = field(default_factory=dict)
    constants: dict[int, list[str]] = field(default_factory=dict)
    proposed: dict[int, Pair] = field(default_factory=dict)
    isolated_matches: dict[int, list[str]] = field(default_factory=dict)
    isolated: Mapping[str, Array] = field(default_factory=dict)
    tied: dict[tuple[int, int], dict[str, Tie]] = field(default_factory=dict)
    families: Families[int] = field(default_factory=Families)
    tensor_families: Families[str] = field(default_factory=Families)
    unconfirmed: frozenset[int] = frozenset()
    added: Mapping[int, Limit] = field(default_factory=dict)

    @property
    def settled(self) -> bool:
        """Whether every output holds its value in the normal run."""
        return not self.misshapen and all(name in self.matched.get(value, ()) for value, name in self.outputs.items())

    def live(self, value: int) -> list[str]:
        """The live tensors that hold a value in the normal run."""
        return [name for name in self.matched.get(value, ()) if self.candidate.graph.is_live(name)]

    def pair(self, value: int) -> Pair | None:
        """The best counterpart of a value: one with the same numbers, else a proposal that runs confirmed.

        What holds for a value holds for all that are only reshapes of it.
        """
        given = self.proposed.get(value)
        if given is not None and given.evidence is Evidence.GIVEN:
            return given
        if value in self.outputs:
            return Pair(value, self.outputs[value], Evidence.OUTPUT)
        if value in self.constants:
            return Pair(value, self.constants[value][0], Evidence.VALUES)
        for names, evidence in ((self.live(value), Evidence.VALUES), (self.isolated_matches.get(value), None)):
            if names:
                return Pair(value, self._same_shape(value, names), evidence or Evidence.ISOLATED_VALUES)
        root = self.root(value)
        return self.proposed.get(value) or (None if root == value else self.pair(root))

    def _same_shape(self, value: int, names: list[str]) -> str:
        shape, arrays = self.reference.values[value].shape, self.candidate.tapped
        known = ((name, outline(arrays, name)) for name in names)
        return next((name for name, one in known if one is not None and one.shape == shape), names[0])

    def forced(self) -> dict[str, int]:
        """For each tensor that has a counterpart, the value it should hold."""
        found = {name: value for value in self.isolated_matches for name in self.isolated_matches[value]}
        found |= {pair.tensor: value for value, pair in self.proposed.items()}
        found |= {name: value for value in self.matched for name in self.live(value)}
        return found | {name: value for value, name in self.outputs.items()}

    def tensors_of(self, value: int) -> set[str]:
        """Every live tensor that is known to stand for a value."""
        found = {*self.live(value), *self.isolated_matches.get(value, ())}
        pair = self.proposed.get(value)
        return found | ({pair.tensor} if pair else set()) | ({self.outputs[value]} if value in self.outputs else set())

    def root(self, value: int) -> int:
        """The value that was computed, of all those that are only reshapes of it."""
        return self.families.root(value)

    def expected_for(self, tensor: str, value: int, axes: tuple[int, ...] | None = None) -> Array:
        """A reference value in the shape and type of a tensor, its axes permuted first where `axes` says so."""
        array, actual = self.reference.values[value].array, self.candidate.outline(tensor)
        assert array is not None
        moved = array if axes is None else array.transpose(axes)
        with np.errstate(over="ignore"):  # a value beyond the range of a half precision tensor is infinite in it
            typed = moved.astype(actual.dtype, copy=False)
        # Where the candidate computes another shape, it is fed the right one.
        return typed if moved.size != size_of(actual) else typed.reshape(actual.shape)

    def _takes(self, tensor: str, value: int) -> bool:
        """Whether a tensor can be fed a value: one of another size has to have as many axes, or no reader takes it."""
        shape, actual = self.reference.values[value].shape, self.candidate.outline(tensor).shape
        return len(shape) == len(actual) or math.prod(shape) == math.prod(actual)

    def holds(self, value: int, actual: Array | None) -> bool:
        """Whether an array holds the numbers of a value, in memory order."""
        array = self.reference.values[value].array
        if array is None or actual is None or array.size != actual.size:
            return False
        return same_numbers(array, actual, self.limits[value])

    def holds_in(self, run: Mapping[str, Array], value: int, tensor: str, limit: Limit | None = None) -> bool:
        """Whether a tensor of a run holds the numbers of a value, in memory order, within a limit of its own."""
        array, actual = self.reference.values[value].array, outline(run, tensor)
        if array is None or actual is None or array.size != size_of(actual):
            return False
        return same_in(run, tensor, value, array, limit or self.limits[value])

    def without(self, values: frozenset[int]) -> Alignment:
        """The same without the proposals for some values, and what every tensor is then from right inputs."""
        found = replace(self, proposed={value: pair for value, pair in self.proposed.items() if value not in values})
        found.isolate()
        return found

    def isolate(self) -> None:
        """Run the graph cut open at every tensor that has a counterpart: what each is from right inputs."""
        self.isolated = self.candidate.isolated(self.expected(), self._off() if self.added else None)

    def _off(self) -> list[str]:
        """The tensors that are off by more than one layer may add, and those that are computed from them."""
        forced, graph, tapped = self.forced(), self.candidate.graph, self.candidate.tapped
        off = {name for name, value in forced.items() if not self.holds_in(tapped, value, name, self.added[value])}
        behind: set[str] = set()
        for node in graph.nodes:
            if any(name in off or (name in behind and name not in forced) for name in node.reads):
                behind.update(node.outputs)
        return [name for name in graph.computed if name in off or name in behind]

    def turned(self) -> dict[str, Axes]:
        """The outputs that come out right from right inputs but for the order of their axes, with the axes to use."""
        found = {}
        for value, name in (self.outputs | self.misshapen).items():
            array, actual = self.reference.values[value].array, self.isolated.get(name)
            if array is not None and not (
                actual is not None and actual.shape == array.shape and self.holds(value, actual)
            ):
                axes = turned(array, actual, self.limits[value])
                if axes is not None:
                    found[name] = axes
        return found

    def resembles(self, value: int, tensor: str) -> bool:
        """Whether a tensor is, from right inputs, close enough to a value to be it.

        As what is computed less precisely is, or with a small fault.
        """
        array, actual = self.reference.values[value].array, self.isolated.get(tensor)
        if array is None or actual is None or array.size != actual.size:
            return False
        if self.holds_in(self.isolated, value, tensor):
            return True
        if array.dtype.kind != "f":
            return False
        e, a = (np.nan_to_num(x.reshape(-1).astype(np.float64), posinf=0.0, neginf=0.0) for x in (array, actual))
        return bool(np.linalg.norm(a - e) <= RESEMBLANCE * np.linalg.norm(e))

    def expected(self) -> Made[str]:
        """What each tensor with a counterpart should hold, without the graph's inputs; made when it is asked for."""
        inputs = {port.name for port in self.candidate.graph.inputs}
        pairs = {n: v for n, v in self.forced().items() if n not in inputs and self._takes(n, v)}
        return Made(pairs, lambda tensor: self.expected_for(tensor, pairs[tensor]))
