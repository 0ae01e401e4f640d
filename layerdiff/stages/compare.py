"""compare_pipelines(): run both, isolate every stage, name what differs, prove it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerdiff.errors import StageError
from layerdiff.pipeline.compare import compare_detections, match_detections
from layerdiff.stages.gap import gap, is_detections, of_detections
from layerdiff.stages.given import images_of
from layerdiff.stages.name import Shown, name_mismatches, traced
from layerdiff.stages.pipeline import aligned, read_stages
from layerdiff.stages.result import PipelineComparison, StageGap, StageResult, StageStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerdiff.pipeline.detection_model import DetectionComparison
    from layerdiff.report import Report
    from layerdiff.stages.pipeline import Step
    from layerdiff.stages.result import StageMismatch

# A convention (BGR until the channels are swapped, say) is given up after so many stages.
LONGEST_CONVENTION = 4
# A stage that mirrors every second image at random gives one result in six runs three times in a hundred.
RUNS = 6


def compare_pipelines(reference: Any, candidate: Any, images: Any) -> PipelineComparison:
    """Which stage of a pipeline diverges first, and which setting of it.

    Both pipelines run on every image. Then each stage of the candidate is fed what the reference's stage was fed, so
    that what it introduces is told apart from what it inherits. A stage counts when the final results differ with that
    stage alone taken from the candidate.

    Parameters
    ----------
    reference, candidate
        Named stages in order: a dict of callables, a list of pairs of name and callable, or an object whose ``stages``
        is one of these or lists its methods. Stages of one name are compared; those that only one side has count with
        the next that both have. A stage is called with what the stage before returned (the first with an image), and,
        if it takes a second argument, with a dict of what all stages before returned. `layerdiff.stages` has
        ready-made ones. Modules and ONNX files inside stages are traced when the network diverges.
    images
        Paths or arrays, one or several. They are handed to the first stage as they are.

    Raises
    ------
    InputError
        The sides have no stages in common, or an image cannot be read as one.
    StageError
        A stage of the reference raised.

    """
    steps = aligned(read_stages(reference, "reference"), read_stages(candidate, "candidate"))
    job = _Job(steps)
    count = 0
    for count, image in enumerate(images_of(images), 1):  # noqa: B007  the count is read after the loop
        job.run(image)
    return job.compared(count)


@dataclass(slots=True)
class _Seen:
    """What is known about one stage over all images."""

    accumulated: list[StageGap | None] = field(default_factory=list)
    introduced: list[StageGap | None] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)
    alone: list[bool | None] = field(default_factory=list)
    convention: bool = False
    unstable: str = ""
    shown: Shown | None = None
    found: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(slots=True)
class _Job:
    """Both pipelines as steps that end at shared stages, and what was seen of each."""

    steps: Sequence[tuple[Step, Step]]
    seen: list[_Seen] = field(default_factory=list)
    kept: list[tuple[Any, list[Any], list[dict[str, Any]]]] = field(default_factory=list)
    final: list[tuple[Any, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.seen = [_Seen() for _ in self.steps]

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
            self.seen[at].accumulated.append(gap(values[at], value, number))
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

    def healed(self, replaced: Iterable[int]) -> bool | None:
        """Whether the candidate with some stages of the reference gives the reference's results."""
        chosen = set(replaced)
        if not chosen:
            return None
        agrees = True
        for image, values, _ in self.kept:
            value, seen = image, dict[str, Any]()
            try:
                for at, pair in enumerate(self.steps):
                    side = at not in chosen
                    value = pair[side].run(copy.deepcopy(value), seen, ("reference", "candidate")[side])
            except StageError:
                return None
            agrees = agrees and gap(values[-1], value).agrees
        return agrees

    def compared(self, images: int) -> PipelineComparison:
        """Everything that was found."""
        detections = self.detections()
        last = self.seen[-1].accumulated
        agrees = all(one is not None and one.agrees for one in last) if detections is None else detections.agrees
        statuses = [self.status(at, agrees=agrees) for at in range(len(self.steps))]
        if not agrees and StageStatus.DIVERGES not in statuses:  # none is enough alone: together they are
            statuses = [StageStatus.DIVERGES if s is StageStatus.HARMLESS else s for s in statuses]
        stages = tuple(self.result(at, status) for at, status in enumerate(statuses))
        diverging = [at for at, status in enumerate(statuses) if status is StageStatus.DIVERGES]
        return PipelineComparison(
            stages, agrees, images, self.healed(diverging), detections, self.network(diverging), self.untested(statuses)
        )

    def detections(self) -> DetectionComparison | None:
        """The final results of all images, where they are detections."""
        if not all(is_detections(e) and is_detections(a) for e, a in self.final):
            return None
        return compare_detections([e for e, _ in self.final], [a for _, a in self.final])

    def status(self, at: int, *, agrees: bool) -> StageStatus:
        """The status of one stage."""
        known = self.seen[at]
        seen = [one for one in known.introduced if one is not None]
        if not seen:
            return StageStatus.UNCOMPARED
        if all(one.agrees for one in seen):
            if _all_agree(known.accumulated):
                return StageStatus.AGREES
            undone = any(_all_agree(later.accumulated) for later in self.seen[at + 1 :])
            return StageStatus.CONVENTION if undone else StageStatus.PROPAGATES
        if known.convention or (agrees and not all(known.alone)):
            return StageStatus.CONVENTION
        return StageStatus.HARMLESS if all(known.alone) else StageStatus.DIVERGES

    def result(self, at: int, status: StageStatus) -> StageResult:
        """What is told about one stage."""
        known, (reference, candidate) = self.seen[at], self.steps[at]
        named = status in (StageStatus.DIVERGES, StageStatus.HARMLESS)
        apart = _worst(known.introduced)
        if known.found and apart is not None and not apart.agrees and is_detections(known.found[0][0]):
            apart = of_detections(match_detections(*(list(side) for side in zip(*known.found, strict=True))))
        mismatches: tuple[StageMismatch, ...] = ()
        if named and known.shown is not None:
            raw = [_head(values, self.steps) for _, values, _ in self.kept]
            mismatches = name_mismatches(reference, candidate, known.shown, known.found, raw, known.unstable)
        alone = None if not known.alone or None in known.alone else all(known.alone)
        return StageResult(
            reference.name, status, _worst(known.accumulated), apart, mismatches, alone, _reason(known, status)
        )

    def network(self, diverging: Sequence[int]) -> Report | None:
        """The trace of the first diverging stage that holds a model on both sides."""
        for at in diverging:
            shown = self.seen[at].shown
            report = None if shown is None else traced(*self.steps[at], shown)
            if report is not None:
                return report
        return None

    def untested(self, statuses: Sequence[StageStatus]) -> tuple[str, ...]:
        """Settings that differ without an effect on these images."""
        from layerdiff.stages.name import differing_settings

        told = []
        for (reference, candidate), status in zip(self.steps, statuses, strict=True):
            names = differing_settings(reference.stage, candidate.stage)
            names.pop("library", None)  # two libraries that come to the same are no finding
            if names and status in (StageStatus.AGREES, StageStatus.PROPAGATES):
                listed = ", ".join(f"{name} ({e!r} against {a!r})" for name, (e, a) in names.items())
                told.append(f"{reference.name}: {listed} differ without an effect on these images.")
        return tuple(told)


def _all_agree(gaps: Sequence[StageGap | None]) -> bool:
    return all(one is not None and one.agrees for one in gaps)


def _worst(gaps: Sequence[StageGap | None]) -> StageGap | None:
    known = [one for one in gaps if one is not None]
    bad = [one for one in known if not one.agrees]
    return max(bad or known, key=lambda one: one.max_abs if one.max_abs == one.max_abs else 0.0, default=None)


def _reason(known: _Seen, status: StageStatus) -> str:
    if status is StageStatus.UNCOMPARED:
        return known.reasons[0] if known.reasons else "it could not be run on what the reference is fed"
    if status is StageStatus.CONVENTION:
        return "another convention: with the stages that follow the candidate comes to the same"
    if status is StageStatus.HARMLESS:
        return "differs by too little to change the final results"
    return ""


def _head(values: Sequence[Any], steps: Sequence[tuple[Step, Step]]) -> Any:
    """The reference's raw head, where a stage returns one."""
    import numpy as np

    from layerdiff.stages.gap import array

    for (step, _), value in zip(steps, values, strict=True):
        found = array(value)
        if step.name in ("head", "raw", "network") and isinstance(found, np.ndarray) and found.ndim == 3:
            return found
    return None
