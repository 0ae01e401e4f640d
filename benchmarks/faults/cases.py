"""Faulty exports with a known truth, spread evenly over models, kinds, exporters and treatments."""

from __future__ import annotations

import copy
import dataclasses
import random
from collections import Counter
from typing import TYPE_CHECKING

from benchmarks.faults.category import Category, kinds_of, subjects
from benchmarks.faults.fault import FaultyCase, FaultyPair
from benchmarks.faults.fusion import fused_with
from benchmarks.faults.pairs import Planting, make_pair
from benchmarks.faults.proof import Rejected, check_place, exported, output_of
from benchmarks.faults.registry import IN_SEVERAL_LAYERS, Plant, plant
from benchmarks.faults.workpiece import Workpiece
from tests.zoo.exports import Treatment

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from benchmarks.faults.fault import Fault
    from benchmarks.faults.subject import Subject, Way

ATTEMPTS = 5
"""Draws of one kind in one model before another model is taken."""
GIVE_UP = 3
"""Rounds of so many draws without a single case after which a kind is no longer tried in a model."""


class Foundry:
    """Makes cases and keeps count of what was made and what was rejected.

    `models` are names from MODELS or CONTROL_FLOW_MODELS. Models and kinds are those of the category if not given.
    """

    def __init__(
        self,
        seed: int,
        models: Sequence[str] | None = None,
        kinds: Mapping[str, tuple[Plant, ...]] | None = None,
        category: Category = Category.SINGLE,
    ) -> None:
        self._rng = random.Random(seed)
        self._category = category
        self._kinds = kinds_of(category) if kinds is None else kinds
        self._subjects = subjects(category, models)
        self._seen: set[tuple[str, ...]] = set()
        self.made: Counter[str] = Counter()
        self.rejected: Counter[tuple[str, str]] = Counter()
        self._failed: Counter[tuple[str, str]] = Counter()
        self._barren: set[tuple[str, str]] = set()

    def cases(self, count: int, start: int = 0) -> Iterator[FaultyCase]:
        """`count` cases, numbered from `start`, or fewer if no kind fits any of the models any more."""
        for number in range(start, start + count):
            case = self._next(number)
            if case is None:
                return
            yield case

    def pairs(self, count: int, start: int = 0) -> Iterator[FaultyPair]:
        """`count` exports with two faults each, numbered from `start`, or fewer if none can be found any more."""
        for number in range(start, start + count):
            pair = self._next_pair(number)
            if pair is None:
                return
            yield pair

    def _next(self, number: int) -> FaultyCase | None:
        for kind in self._by_use("kind", list(self._kinds)):
            for target in self._by_use("model", self._subjects, kind):
                if self._failed[kind, target.name] >= GIVE_UP and not self.made[f"{kind} in {target}"]:
                    continue
                for _ in range(ATTEMPTS):
                    if (kind, target.name) in self._barren:
                        break
                    way = self._way(target)
                    try:
                        case = self._make(number, kind, target, way)
                    except Rejected as reason:
                        self.rejected[kind, str(reason)] += 1
                        continue
                    self._count((kind,), target, way)
                    return case
                self._failed[kind, target.name] += 1
        return None

    def _make(self, number: int, kind: str, target: Subject, way: Way) -> FaultyCase:
        piece = target.piece()
        fault = plant(self._kinds, kind, piece, self._rng)
        if fault is None:
            self._barren.add((kind, target.name))
            raise Rejected("no place in this model")
        key = (target.name, fault.kind, fault.layer, fault.detail, *(part.value for part in way))
        if key in self._seen:
            raise Rejected("made before")
        check_place(target, piece, fault)
        proto = exported(target, piece, way, output_of(target, piece), target.expected)
        self._seen.add(key)
        name = _name(number, self._category, target, (fault,), way)
        fault = _in_file(target, fault, way)
        return FaultyCase(name, *_original(target), proto, fault, *way, self._category, target.name)

    def _next_pair(self, number: int) -> FaultyPair | None:
        every = [kind for kind in self._kinds if kind not in IN_SEVERAL_LAYERS]
        for first in self._by_use("kind", every):
            for target in self._by_use("model", self._subjects, first):
                for _ in range(ATTEMPTS):
                    kinds = (first, self._rng.choice(every))
                    way = self._way(target)
                    try:
                        pair = self._make_pair(number, kinds, target, way)
                    except Rejected as reason:
                        self.rejected[first, str(reason)] += 1
                        continue
                    self._count(kinds, target, way)
                    return pair
        return None

    def _make_pair(self, number: int, kinds: tuple[str, str], target: Subject, way: Way) -> FaultyPair:
        one, two = (Planting(self._kinds, kind, self._rng.getrandbits(63)) for kind in kinds)
        (first, second), proto = make_pair(target, (one, two), way)
        faults = (_in_file(target, first, way), _in_file(target, second, way))
        name = _name(number, Category.PAIR, target, faults, way)
        return FaultyPair(name, *_original(target), proto, faults, *way, Category.PAIR, target.name)

    def _way(self, target: Subject) -> Way:
        way: Way = self._by_use("way", list(target.ways))[0]
        return way

    def _by_use(self, what: str, choices: list, within: str = "") -> list:
        """The choices, least used first, ties in random order."""
        shuffled = self._rng.sample(choices, len(choices))
        return sorted(shuffled, key=lambda choice: self._uses(what, choice, within))

    def _uses(self, what: str, choice: object, within: str) -> tuple[int, int]:
        return self.made[f"{what} {_text(choice)}"], self.made[f"{within} in {_text(choice)}"]

    def _count(self, kinds: tuple[str, ...], target: Subject, way: Way) -> None:
        for kind in kinds:
            self.made[f"kind {kind}"] += 1
            self.made[f"{kind} in {target}"] += 1
        self.made[f"model {target}"] += 1
        self.made[f"way {_text(way)}"] += 1


def generate(count: int, seed: int, models: Sequence[str] | None = None) -> Iterator[FaultyCase]:
    """`count` faulty exports of models of the zoo, the same ones for the same arguments."""
    return Foundry(seed, models).cases(count)


def _original(target: Subject) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return copy.deepcopy(target.sample.model), target.sample.inputs


def _in_file(target: Subject, fault: Fault, way: Way) -> Fault:
    """The fault with the neighbours that the treatment makes one with its layer."""
    if way[1] is not Treatment.ORT_EXTENDED:
        return fault
    survey = target.survey if fault.call is None else target.survey.narrowed(fault.layer, fault.call)
    fused = fused_with(Workpiece(target.sample.model, survey), fault.layer)
    return dataclasses.replace(fault, also_ok=tuple(dict.fromkeys((*fault.also_ok, *fused))))


def _name(number: int, category: Category, target: Subject, faults: tuple[Fault, ...], way: Way) -> str:
    kinds = [fault.kind for fault in faults if fault.kind != category.value]
    parts = [f"{number:04d}", target.name, *kinds, *(part.value for part in way)]
    return "-".join(parts if category is Category.SINGLE else [category.value, *parts])


def _text(choice: object) -> str:
    return "/".join(part.value for part in choice) if isinstance(choice, tuple) else str(choice)
