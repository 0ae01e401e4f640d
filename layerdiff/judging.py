"""One sample on both sides: run, and the final outputs compared."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from layerdiff.errors import BackendError, LayerdiffError, ReferenceFailedError, RuntimeDiedError
from layerdiff.evident import evident, far_off
from layerdiff.glance import glance
from layerdiff.limits import limits_for
from layerdiff.model import SampleResult
from layerdiff.reached import add_place
from layerdiff.reconsider import Located
from layerdiff.several import judged
from layerdiff.sound import sound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from layerdiff.candidate import Candidate
    from layerdiff.limits import Limit
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


class Judge:
    """Runs samples on both sides and compares their outputs."""

    def __init__(self, runner: Runner, *, may_do_without_twin: bool) -> None:
        self.runner = runner
        self._may_do_without_twin = may_do_without_twin
        self._knows_a_fault = False

    def sample(self, index: int, sample: Sample, bar: Progress) -> Judged:
        """Run one sample on both sides and compare the outputs."""
        run = self.runner
        candidate = run.fed(sample)
        bar.stage("running the reference")
        with _named(run):
            reference = run.reference.capture(sample)
        bar.stage("running the candidate")
        outputs = run.paired(reference, {}, candidate.graph, index)
        added = limits_for(reference, {}, None) if self._may_do_without_twin else {}
        looked = partial(glance, reference, candidate, outputs, added) if added else None
        shipped, tapped, death = _ran(candidate, looked)
        floor, place = None, None
        if self._may_do_without_twin and death is None:
            bar.stage("aligning layers")
            floor, place = self._without_twin(reference, candidate, outputs, added)
        if floor is None:
            floor = self._twin(sample, reference, bar)
        outputs = replace(outputs, floor=floor)
        results = outputs.results(shipped, tapped)
        told = judged(run.shapes(sample), results)
        told = told if shipped or death is None else replace(told, refused=str(death))
        return Judged(index, sample, candidate, reference, outputs, results, told, death, place)

    def _without_twin(
        self, reference: Reference, candidate: Candidate, outputs: OutputPairs, added: Mapping[int, Limit]
    ) -> tuple[Mapping[int, Noise] | None, Located | None]:
        """The noise floor, where it can be told without a twin, and where the graph goes wrong."""
        healthy = sound(reference, candidate, outputs, added)
        if healthy is not None:
            return healthy.floor, Located(healthy.alignment, [], [])
        if not far_off(reference, candidate, outputs):
            return None, None
        if self._knows_a_fault:  # the first sample that shows it is the one that is examined
            return {}, None
        found = evident(reference, candidate, outputs)
        self._knows_a_fault = found is not None
        return (None, None) if found is None else (found.floor, found.place)

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

    def place(self, error: LayerdiffError, sample: Sample) -> None:
        """Add to the error with which the runtime refused a sample where it does."""
        if type(error) is BackendError:
            add_place(error, self.runner.fed(sample), self.runner.reference.capture(sample))


@contextmanager
def _named(run: Runner) -> Iterator[None]:
    """The death of a runtime that runs the reference is told as the reference's."""
    try:
        yield
    except RuntimeDiedError as error:
        raise ReferenceFailedError(f"the reference {run.reference.label} cannot be run: {error}") from error


def _ran(
    candidate: Candidate, looked: Callable[[], None] | None
) -> tuple[Mapping[str, Any], Mapping[str, Any], RuntimeDiedError | None]:
    """What the candidate gives as it ships and with every tensor visible, up to where the runtime died."""
    shipped: Mapping[str, Any] = {}
    try:
        shipped = candidate.shipped
        if looked is not None:
            looked()
        tapped = candidate.tapped
    except RuntimeDiedError as death:
        return shipped, {}, death
    return shipped, tapped, None
