"""Two faults in one copy, neither of which hides, cancels or moves the other."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from benchmarks.faults.first_difference import Place, first_difference, healed
from benchmarks.faults.proof import Rejected, attempt, check_effect, check_place, exported, output_of
from benchmarks.faults.registry import Plant, plant
from tests.zoo.healthy import relative_gap

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx

    from benchmarks.faults.fault import Fault
    from benchmarks.faults.subject import Subject, Way
    from benchmarks.faults.workpiece import Workpiece

ALIKE = 1e-6
"""Distance from the healthy output, relative to its largest value, at which a healed copy counts as healthy."""


class Planting:
    """A fault of one kind that can be planted again: the same state of the generator plants the same fault."""

    def __init__(self, kinds: Mapping[str, tuple[Plant, ...]], kind: str, seed: int) -> None:
        self._kinds = kinds
        self._kind = kind
        self._seed = seed

    def into(self, piece: Workpiece) -> Fault:
        fault = plant(self._kinds, self._kind, piece, random.Random(self._seed))
        if fault is None:
            raise Rejected("no place in this model")
        return fault


class Alone:
    """A copy with one of the two faults: where it shows, what it does to the output."""

    def __init__(self, subject: Subject, planting: Planting) -> None:
        self.planting = planting
        self.piece = subject.piece()
        self.fault = planting.into(self.piece)
        self.place: Place = check_place(subject, self.piece, self.fault)
        self.output: np.ndarray = output_of(subject, self.piece)
        sample = subject.sample
        again = healed(sample.model, self.piece.model, sample.inputs, self.place)
        if not relative_gap(subject.expected, again.numpy()) <= ALIKE:
            raise Rejected("wrong in more than one call")

    def answers(self) -> set[str]:
        return {self.fault.layer, *self.fault.also_ok}


def make_pair(
    subject: Subject, plantings: tuple[Planting, Planting], way: Way
) -> tuple[tuple[Fault, Fault], onnx.ModelProto]:
    """The two faults in order of execution and the export that carries both, or Rejected."""
    one, two = (Alone(subject, planting) for planting in plantings)
    if one.answers() & two.answers():
        raise Rejected("one answer would be right for both")
    both = subject.piece()
    for alone in (one, two):
        beside = alone.planting.into(both)
        if (beside.layer, beside.detail) != (alone.fault.layer, alone.fault.detail):
            raise Rejected("planted elsewhere when beside the other")
    inputs = subject.sample.inputs

    def seen_from(reference: Workpiece) -> Place | None:
        return attempt("the broken copy does not run", lambda: first_difference(reference.model, both.model, inputs))

    if seen_from(one.piece) != two.place or seen_from(two.piece) != one.place:
        raise Rejected("one moves the other")
    healthy = subject.piece()
    first, second = (one, two) if seen_from(healthy) == one.place else (two, one)
    output = output_of(subject, both)
    for alone in (one, two):
        check_effect(alone.output, output)
    proto = exported(subject, both, way, output, subject.expected, one.output, two.output)
    return (first.fault, second.fault), proto
