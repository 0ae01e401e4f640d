"""Faulty exports with a known truth, spread evenly over models, kinds, exporters and treatments."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from benchmarks.faults.fault import FaultyCase
from benchmarks.faults.first_difference import first_difference
from benchmarks.faults.forwards import SEAMS
from benchmarks.faults.fusion import fused_with
from benchmarks.faults.registry import KINDS, plant
from benchmarks.faults.survey import Survey, survey
from benchmarks.faults.workpiece import Workpiece
from tests.zoo import MODELS, Sample
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, export, treat
from tests.zoo.healthy import relative_gap, run_onnx, run_torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx

    from benchmarks.faults.fault import Fault

T = TypeVar("T")

MIN_EFFECT = 1e-4
"""Smallest change of the model's output, relative to its largest value, that counts as a fault."""
MAX_EXPORT_GAP = 1e-3
"""Largest distance between the broken copy and its export."""
ATTEMPTS = 5
"""Draws of one kind in one model before another model is taken."""


class Rejected(Exception):  # noqa: N818  not an error: the next draw follows
    """A planting that makes no case; the text says why."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model of the zoo, what it computes, and the calls it makes."""

    name: str
    sample: Sample
    expected: np.ndarray
    survey: Survey


@dataclasses.dataclass(frozen=True)
class Order:
    """What the next case should be."""

    kind: str
    subject: Subject
    exporter: Exporter
    treatment: Treatment


class Foundry:
    """Makes cases and keeps count of what was made and what was rejected."""

    def __init__(self, seed: int, models: Sequence[str] | None = None) -> None:
        self._rng = random.Random(seed)
        self._subjects = [_subject(name) for name in models or MODELS]
        self._seen: set[tuple[str, ...]] = set()
        self.made: Counter[str] = Counter()
        self.rejected: Counter[tuple[str, str]] = Counter()
        self._barren: set[tuple[str, str]] = set()

    def cases(self, count: int) -> Iterator[FaultyCase]:
        """`count` cases, or fewer if no kind fits any of the models any more."""
        for number in range(count):
            case = self._next(number)
            if case is None:
                return
            yield case

    def _next(self, number: int) -> FaultyCase | None:
        for kind in self._by_use("kind", list(KINDS)):
            for subject in self._by_use("model", self._subjects, kind):
                for _ in range(ATTEMPTS):
                    if (kind, subject.name) in self._barren:
                        break
                    order = Order(kind, subject, *self._way(subject.name))
                    try:
                        case = self._make(number, order)
                    except Rejected as reason:
                        self.rejected[kind, str(reason)] += 1
                        continue
                    self._count(order)
                    return case
        return None

    def _make(self, number: int, order: Order) -> FaultyCase:
        sample = order.subject.sample
        piece = Workpiece(copy.deepcopy(sample.model), order.subject.survey)
        fault = plant(order.kind, piece, self._rng)
        if fault is None:
            self._barren.add((order.kind, order.subject.name))
            raise Rejected("no place in this model")
        way = (order.exporter.value, order.treatment.value)
        key = (order.subject.name, fault.kind, fault.layer, fault.detail, *way)
        if key in self._seen:
            raise Rejected("made before")
        _check_place(piece, order, fault)
        proto = _exported(piece, order)
        self._seen.add(key)
        name = f"{number:04d}-{order.subject.name}-{fault.kind}-{order.exporter.value}-{order.treatment.value}"
        if order.treatment is Treatment.ORT_EXTENDED:
            healthy = Workpiece(sample.model, order.subject.survey)
            also = dict.fromkeys((*fault.also_ok, *fused_with(healthy, fault.layer)))
            fault = dataclasses.replace(fault, also_ok=tuple(also))
        model = copy.deepcopy(sample.model)
        return FaultyCase(name, model, sample.inputs, proto, fault, order.exporter, order.treatment)

    def _way(self, model: str) -> tuple[Exporter, Treatment]:
        ways = [way for way in itertools.product(Exporter, Treatment) if (model, *way) not in UNSUPPORTED]
        return self._by_use("way", ways)[0]

    def _by_use(self, what: str, choices: list, within: str = "") -> list:
        """The choices, least used first, ties in random order."""
        shuffled = self._rng.sample(choices, len(choices))
        return sorted(shuffled, key=lambda choice: self._uses(what, choice, within))

    def _uses(self, what: str, choice: object, within: str) -> tuple[int, int]:
        if isinstance(choice, Subject):
            return self.made[f"model {choice.name}"], self.made[f"{within} in {choice.name}"]
        return self.made[f"{what} {_text(choice)}"], 0

    def _count(self, order: Order) -> None:
        model = order.subject.name
        self.made[f"kind {order.kind}"] += 1
        self.made[f"model {model}"] += 1
        self.made[f"{order.kind} in {model}"] += 1
        self.made[f"way {_text((order.exporter, order.treatment))}"] += 1


def generate(count: int, seed: int, models: Sequence[str] | None = None) -> Iterator[FaultyCase]:
    """`count` faulty exports of models of the zoo, the same ones for the same arguments."""
    return Foundry(seed, models).cases(count)


def _subject(name: str) -> Subject:
    sample = MODELS[name]()
    expected = run_torch(sample.model, sample.inputs)
    return Subject(name, sample, expected, survey(sample.model, sample.inputs, SEAMS))


def _check_place(piece: Workpiece, order: Order, fault: Fault) -> None:
    """The broken copy first computes something else, from the same inputs, where the fault says."""
    sample = order.subject.sample
    found = _attempt("the broken copy does not run", lambda: first_difference(sample.model, piece.model, sample.inputs))
    if found is None:
        raise Rejected("no effect at any layer")
    if found != fault.layer:
        raise Rejected("the first effect is at another layer")


def _exported(piece: Workpiece, order: Order) -> onnx.ModelProto:
    """The treated export of the broken copy, once it is sure that it carries the fault and no other."""
    healthy, inputs = order.subject.expected, order.subject.sample.inputs
    broken = _attempt("the broken copy does not run", lambda: run_torch(piece.model, inputs))
    if broken.shape != healthy.shape or not np.all(np.isfinite(broken)):
        raise Rejected("other shape or not finite")
    if not relative_gap(healthy, broken) >= MIN_EFFECT:
        raise Rejected("no effect on the output")
    raw = _attempt(f"{order.exporter.value} fails", lambda: export(piece.model, inputs, order.exporter))
    proto = _attempt(f"{order.treatment.value} fails", lambda: treat(raw, order.treatment))
    actual = _attempt("ONNX Runtime fails", lambda: run_onnx(proto, inputs))
    fidelity = relative_gap(broken, actual)
    if not fidelity <= MAX_EXPORT_GAP:
        raise Rejected(f"the {order.exporter.value} export disagrees with the broken copy")
    if not relative_gap(healthy, actual) >= max(MIN_EFFECT, 2 * fidelity):
        raise Rejected("the export lost the fault")
    return proto


def _attempt(failure: str, step: Callable[[], T]) -> T:
    """What the step gives; whatever it raises is a reason to draw again."""
    try:
        return step()
    except Exception as error:
        raise Rejected(f"{failure}: {type(error).__name__}") from error


def _text(choice: object) -> str:
    return "/".join(part.value for part in choice) if isinstance(choice, tuple) else str(choice)
