"""One sample on both sides: run, and the final outputs compared."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from layerdiff.errors import LayerdiffError, ReferenceFailedError, RuntimeDiedError
from layerdiff.evident import evident, far_off
from layerdiff.model import SampleResult
from layerdiff.reconsider import Located
from layerdiff.several import judged
from layerdiff.sound import sound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.candidate import Candidate
    from layerdiff.model import Noise, OutputResult, Reference
    from layerdiff.outputs import OutputPairs
    from layerdiff.progress import Progress
    from layerdiff.runner import Runner
    from layerdiff.samples import Sample


@dataclass(frozen=True, slots=True)
class Judged:
    """One sample that ran on both sides, and how its outputs were judged."""

    index: int
    sample: Sample
    candidate: Candidate
    reference: Reference
    outputs: OutputPairs
    results: tuple[OutputResult, ...]
    told: SampleResult
    death: RuntimeDiedError | None = None  # the runtime did not survive it
    place: Located | None = None  # where it goes wrong, where that was found on the way: nowhere in a sound graph
    lacks_floor: bool = False  # whatever it is, the outputs are farther off

    @property
    def floor(self) -> Mapping[int, Noise]:
        """The noise floor of every value."""
        return self.outputs.floor

    def rank(self) -> tuple[bool, bool, float]:
        """The higher, the more there is to see; the first sample that disagrees comes before all others."""
        seen = [o.everywhere or o.shipped for o in self.results]
        return (
            self.death is not None,
            not self.told.agrees,
            max((m.times_limit for m in seen if m and self.told.agrees), default=0.0),
        )

    def judged_by(self, floor: Mapping[int, Noise], place: Located | None = None) -> Judged:
        """The same with the outputs judged by another noise floor."""
        outputs = replace(self.outputs, floor=floor)
        results = outputs.results(*_ran(self.candidate)[:2])
        return replace(self, outputs=outputs, results=results, place=place, lacks_floor=False)


@dataclass(frozen=True, slots=True)
class Judge:
    """Runs samples on both sides and compares their outputs."""

    runner: Runner
    may_do_without_twin: bool

    def sample(self, index: int, sample: Sample, bar: Progress) -> Judged:
        """Run one sample on both sides and compare the outputs."""
        run = self.runner
        candidate = run.fed(sample)
        bar.stage("running the reference")
        with _named(run):
            reference = run.reference.capture(sample)
        bar.stage("running the candidate")
        outputs = run.paired(reference, {}, candidate.graph, index)
        shipped, tapped, death = _ran(candidate)
        twinless = self.may_do_without_twin and death is None
        healthy = sound(reference, candidate, outputs) if twinless else None
        far = twinless and healthy is None and far_off(reference, candidate, outputs)
        if healthy is not None:
            outputs = replace(outputs, floor=healthy.floor)
        elif not far:
            outputs = replace(outputs, floor=self._twin(sample, reference, bar))
        results = outputs.results(shipped, tapped)
        told = judged(run.shapes(sample), results)
        told = told if shipped or death is None else replace(told, refused=str(death))
        place = None if healthy is None else Located(healthy.alignment, [], [])
        return Judged(index, sample, candidate, reference, outputs, results, told, death, place, far)

    def with_floor(self, shown: Judged, bar: Progress) -> Judged:
        """The same with a noise floor, where it could be told without one that the outputs disagree."""
        if not shown.lacks_floor:
            return shown
        found = evident(shown.reference, shown.candidate, shown.outputs)
        if found is not None:
            return shown.judged_by(found.floor, found.place)
        return shown.judged_by(self._twin(shown.sample, shown.reference, bar))

    def _twin(self, sample: Sample, reference: Reference, bar: Progress) -> Mapping[int, Noise]:
        bar.stage("running the reference in double precision")
        with _named(self.runner):
            return self.runner.reference.noise_floor(sample, reference)

    def refused(self, sample: Sample, error: LayerdiffError) -> SampleResult:
        """What is told of a sample that the runtime refuses; the error itself when the model cannot run it either."""
        try:
            self.runner.reference.capture(sample)
        except ReferenceFailedError:
            raise error from None
        return SampleResult(self.runner.shapes(sample), agrees=False, refused=str(error))


@contextmanager
def _named(run: Runner) -> Iterator[None]:
    """The death of a runtime that runs the reference is told as the reference's."""
    try:
        yield
    except RuntimeDiedError as error:
        raise ReferenceFailedError(f"the reference {run.reference.label} cannot be run: {error}") from error


def _ran(
    candidate: Candidate,
) -> tuple[Mapping[str, Any], Mapping[str, Any], RuntimeDiedError | None]:
    """What the candidate gives as it ships and with every tensor visible, up to where the runtime died."""
    shipped: Mapping[str, Any] = {}
    try:
        shipped = candidate.shipped
        tapped = candidate.tapped
    except RuntimeDiedError as death:
        return shipped, {}, death
    return shipped, tapped, None
