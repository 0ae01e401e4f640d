"""compare_pipelines(): run both, isolate every stage, name what differs, prove it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.compare import compare_detections, match_detections
from layerdiff.stages.cancel import without_conventions
from layerdiff.stages.gap import array, is_detections, of_detections
from layerdiff.stages.given import images_of
from layerdiff.stages.name import differing_settings, name_mismatches, traced
from layerdiff.stages.pipeline import aligned, read_stages
from layerdiff.stages.result import PipelineComparison, StageResult, StageStatus
from layerdiff.stages.runs import Runs

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.pipeline.detection_model import DetectionComparison
    from layerdiff.report import Report
    from layerdiff.stages.pipeline import Step
    from layerdiff.stages.result import StageGap, StageMismatch
    from layerdiff.stages.runs import Seen


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
    runs = Runs(steps)
    count = 0
    for count, image in enumerate(images_of(images), 1):  # noqa: B007  the count is read after the loop
        runs.run(image)
    return _Judge(runs, steps, runs.seen).compared(count)


@dataclass(frozen=True, slots=True)
class _Judge:
    """What follows from the runs."""

    runs: Runs
    steps: Sequence[tuple[Step, Step]]
    seen: Sequence[Seen]

    def compared(self, images: int) -> PipelineComparison:
        """Everything that was found."""
        detections = self.detections()
        last = self.seen[-1].accumulated
        agrees = all(one is not None and one.agrees for one in last) if detections is None else detections.agrees
        statuses = [self.status(at, agrees=agrees) for at in range(len(self.steps))]
        if not agrees and StageStatus.DIVERGES not in statuses:  # none is enough alone: together they are
            statuses = [StageStatus.DIVERGES if s is StageStatus.HARMLESS else s for s in statuses]
        told = [self.result(at, status) for at, status in enumerate(statuses)]
        accused = [at for at, status in enumerate(statuses) if status is StageStatus.DIVERGES]
        stages = without_conventions(self.runs, told)
        diverging = [at for at in accused if stages[at].status is StageStatus.DIVERGES]
        return PipelineComparison(
            stages,
            agrees,
            images,
            self.runs.healed(accused),
            detections,
            self.network(diverging),
            self.untested(statuses),
        )

    def detections(self) -> DetectionComparison | None:
        """The final results of all images, where they are detections."""
        if not all(is_detections(e) and is_detections(a) for e, a in self.runs.final):
            return None
        return compare_detections([e for e, _ in self.runs.final], [a for _, a in self.runs.final])

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
            raw = [_head(values, self.steps) for _, values, _ in self.runs.kept]
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


def _reason(known: Seen, status: StageStatus) -> str:
    if status is StageStatus.UNCOMPARED:
        return known.reasons[0] if known.reasons else "it could not be run on what the reference is fed"
    if status is StageStatus.CONVENTION:
        return "another convention: with the stages that follow the candidate comes to the same"
    if status is StageStatus.HARMLESS:
        return "differs by too little to change the final results"
    return ""


def _head(values: Sequence[Any], steps: Sequence[tuple[Step, Step]]) -> Any:
    """The reference's raw head, where a stage returns one."""
    for (step, _), value in zip(steps, values, strict=True):
        found = array(value)
        if step.name in ("head", "raw", "network") and isinstance(found, np.ndarray) and found.ndim == 3:
            return found
    return None
