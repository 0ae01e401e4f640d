"""Both pipelines run on images: as they are, every stage of the candidate alone, and with stages exchanged."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerdiff.errors import StageError
from layerdiff.stages.gap import gap, is_detections
from layerdiff.stages.name import Shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerdiff.stages.pipeline import Step
    from layerdiff.stages.result import StageGap

# A convention (BGR until the channels are swapped, say) is given up after so many stages.
LONGEST_CONVENTION = 4
# A stage that mirrors every second image at random gives one result in six runs three times in a hundred.
RUNS = 6


@dataclass(slots=True)
class Seen:
    """What is known about one stage over all images."""

    accumulated: list[StageGap | None] = field(default_factory=list)
    introduced: list[StageGap | None] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    alone: list[bool | None] = field(default_factory=list)
    convention: bool = False
    unstable: str = ""
    shown: Shown | None = None
    found: list[tuple[Any, Any]] = field(default_factory=list)
    whole: tuple[Any, Any] | None = None


@dataclass(slots=True)
class Runs:
    """Both pipelines as steps that end at shared stages, what they made of every image, and what was seen of each."""

    steps: Sequence[tuple[Step, Step]]
    seen: list[Seen] = field(default_factory=list)
    kept: list[tuple[Any, list[Any], list[dict[str, Any]]]] = field(default_factory=list)
    final: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = [Seen() for _ in self.steps]

    def run(self, image: Any) -> None:
        """Run one image through both, and through every stage of the candidate alone."""
        values, before = self.reference(image)
        number = len(self.kept)
        self.kept.append((image, values, before))
        value, seen = image, dict[str, Any]()
        for at, (_, step) in enumerate(self.steps):
            try:
                value = step.run(copy.deepcopy(value), seen, "candidate")
            except StageError as error:
                for later in self.seen[at:]:
                    later.accumulated.append(None)
                    later.reasons.append(str(error))
                value = None
                break
            apart = gap(values[at], value, number)
            self.seen[at].accumulated.append(apart)
            if not apart.agrees and self.seen[at].whole is None:
                self.seen[at].whole = (values[at], value)
        self.final.append((values[-1], value))
        for at in range(len(self.steps)):
            self.isolate(at, number)

    def reference(self, image: Any) -> tuple[list[Any], list[dict[str, Any]]]:
        """The reference's value after every step, and what had been seen before each."""
        value, seen = image, dict[str, Any]()
        values, before = [], []
        for step, _ in self.steps:
            before.append(dict(seen))
            value = step.run(copy.deepcopy(value), seen, "reference")
            values.append(value)
        return values, before

    def isolate(self, at: int, number: int) -> None:
        """One stage of the candidate, fed what the reference's was fed."""
        image, values, before = self.kept[number]
        known, step = self.seen[at], self.steps[at][1]
        fed = image if at == 0 else values[at - 1]
        try:
            actual = step.run(copy.deepcopy(fed), dict(before[at]), "candidate")
        except StageError as error:
            known.introduced.append(None)
            known.alone.append(None)
            known.reasons.append(str(error))
            return
        apart = gap(values[at], actual, number)
        known.introduced.append(apart)
        if is_detections(values[at]) and is_detections(actual):
            known.found.append((values[at], actual))
        if apart.agrees:
            known.alone.append(True)
            return
        known.alone.append(self.finished(at, actual, number))
        if known.shown is None:
            known.shown = Shown(fed, before[at], values[at], actual, image)
            known.unstable = self.unstable(at, number)
            known.convention = self.is_convention(at, actual, number)

    def finished(self, at: int, value: Any, number: int) -> bool | None:
        """Whether the reference's remaining stages lead from a value to the reference's result."""
        _, values, before = self.kept[number]
        seen = {**before[at], self.steps[at][0].name: value}
        try:
            for step, _ in self.steps[at + 1 :]:
                value = step.run(copy.deepcopy(value), seen, "reference")
        except StageError:
            return None
        return gap(values[-1], value).agrees

    def is_convention(self, at: int, value: Any, number: int) -> bool:
        """Whether later stages of the candidate, and only those, make of the value what the reference has there."""
        _, values, before = self.kept[number]
        seen = {**before[at], self.steps[at][0].name: value}
        for later in range(at + 1, min(at + 1 + LONGEST_CONVENTION, len(self.steps))):
            try:
                value = self.steps[later][1].run(copy.deepcopy(value), seen, "candidate")
                alone = self.steps[later][1].run(copy.deepcopy(values[later - 1]), dict(before[later]), "candidate")
            except StageError:
                return False
            if gap(values[later], value).agrees:
                undone = not gap(values[later], alone).agrees
                if undone:
                    self.seen[later].convention = True
                return undone
        return False

    def unstable(self, at: int, number: int) -> str:
        """Which side gives another value when it is run again."""
        image, values, before = self.kept[number]
        fed = image if at == 0 else values[at - 1]
        for side, step in zip(("reference", "candidate"), self.steps[at], strict=True):
            first, *others = [step.run(copy.deepcopy(fed), dict(before[at]), side) for _ in range(RUNS)]
            if not all(gap(first, other).agrees for other in others):
                return side
        return ""

    def finals_agree(self, steps: Sequence[Step]) -> bool | None:
        """Whether these steps give the reference's result of every image; None where one of them raises."""
        for image, values, _ in self.kept:
            value, seen = image, dict[str, Any]()
            try:
                for step in steps:
                    value = step.run(copy.deepcopy(value), seen, "candidate")
            except StageError:
                return None
            if not gap(values[-1], value).agrees:
                return False
        return True

    def healed(self, replaced: Iterable[int]) -> bool | None:
        """Whether the candidate with some stages of the reference gives the reference's results."""
        chosen = set(replaced)
        return self.finals_agree([pair[at not in chosen] for at, pair in enumerate(self.steps)]) if chosen else None
