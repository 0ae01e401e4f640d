"""What a trace does: judge every sample, examine the one that shows most (expose, align, walk back, heal, explain)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from layerdiff.align import align
from layerdiff.alike import with_alike
from layerdiff.amplified import amplified
from layerdiff.attribute import Blame
from layerdiff.audit import audit
from layerdiff.autopsy import Autopsy, locate
from layerdiff.cases import case_of
from layerdiff.diagnose import Stretch, explain_all, inputs_exchanged, other_branch, outputs_exchanged, ranked
from layerdiff.environment import environment
from layerdiff.errors import (
    BackendError,
    FixedShapeError,
    LayerdiffError,
    RuntimeDiedError,
)
from layerdiff.findings import Finding, diffuse, finding, layout_diagnoses
from layerdiff.graph import load
from layerdiff.judging import Judge
from layerdiff.layers import Accused, LayerBook, coverage
from layerdiff.limits import limits_for
from layerdiff.live import Live
from layerdiff.observer import Observed, fusion_diagnosis, observe
from layerdiff.own_runs import own_runs
from layerdiff.pairs import doubts, resolved, still_there
from layerdiff.proof import prove, sites_of
from layerdiff.reconsider import Located, located
from layerdiff.report import Report
from layerdiff.samples import how_many, samples
from layerdiff.settle import settle
from layerdiff.several import size_diagnosis
from layerdiff.stability import random_diagnosis

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.diagnose import Explained
    from layerdiff.judging import Judged
    from layerdiff.limits import Limit
    from layerdiff.live import Case
    from layerdiff.localise import Origin
    from layerdiff.model import Diagnosis, Divergence, Healed, SampleResult
    from layerdiff.outputs import OutputPairs
    from layerdiff.progress import Progress
    from layerdiff.proof import Proven
    from layerdiff.runner import Runner
    from layerdiff.samples import Sample


STOPPED = "stopped while the cause was looked for: what diverges is located and proven, its cause is not named"


@dataclass(frozen=True, slots=True)
class Job:
    """What stays the same from sample to sample: both sides, the rows that are wanted, the pairs that are given."""

    runner: Runner
    granularity: str
    pairs: Mapping[str, str]

    def run(self, inputs: Any, bar: Progress) -> Report:
        """The report on the sample that shows most, with the judgement of all; one sample is kept at a time."""
        judge = Judge(self.runner, may_do_without_twin=self.runner.may_do_without_twin and not self.pairs)
        shown: Judged | None = None
        told: list[SampleResult] = []
        refusal: tuple[LayerdiffError, Sample] | None = None
        stopped: tuple[str, ...] = ()
        bar.samples(how_many(inputs))
        try:
            for index, sample in enumerate(samples(inputs, self.runner.reference.device)):
                try:
                    found = judge.sample(index, sample, bar)
                except (BackendError, FixedShapeError) as error:
                    refusal = refusal or (error, sample)
                    told.append(judge.refused(sample, error))
                else:
                    told.append(found.told)
                    shown = found if shown is None or found.rank() > shown.rank() else shown
                bar.sample_done()
        except KeyboardInterrupt:
            if shown is None:
                raise
            stopped = (f"stopped after {len(told)} samples: nothing is known of the others",)
        if shown is None:
            assert refusal is not None  # there is at least one sample
            judge.place(*refusal)
            raise refusal[0]
        report = self._examined(shown, told, bar)
        return replace(report, warnings=stopped + report.warnings)

    def _examined(self, shown: Judged, told: Sequence[SampleResult], bar: Progress) -> Report:
        death = shown.death
        if death is None:
            try:
                return self.examine(shown, told, bar)
            except RuntimeDiedError as error:
                death = error
        bar.stage("looking for the node at which the runtime dies")
        return self.fallen(shown, told, death)

    def examine(self, shown: Judged, told: Sequence[SampleResult], bar: Progress) -> Report:
        """The report on one sample."""
        outputs, reference, floor, run = shown.outputs, shown.reference, shown.floor, self.runner
        observed = observe(shown.candidate, outputs, shown.results)
        bar.stage("aligning layers")
        place, lost = self._located(shown, observed)
        bar.stage("proving the accusation")
        alignment, origins, rounded = place.alignment, place.origins, place.rounded
        proven = prove(alignment, origins, outputs, shipped_agrees=all(result.agrees for result in shown.results))
        bar.stage("naming the cause")

        def look(origin: Origin, healed: Healed | None) -> Finding:
            return finding(alignment, origin, floor, run.tolerance, healed)

        named = _named(alignment, proven, look, outputs, guilty=bool(observed.guilty))
        proven, found, explained, cases = named.proven, named.found, named.explained, named.cases
        confined = [look(origin, healed) for origin, healed in proven.confined]
        crossed = _crossed(observed.candidate, outputs, explained, reference.calls[0].type)
        if crossed is None and found:
            crossed = self._other_branch(shown, [f.divergence for f in found])
        if crossed is not None:
            found, explained, cases = [Finding(Blame(0, None), crossed[0])], [crossed[1]], ()
        divergences = tuple(f.divergence for f in found)
        bar.stage("writing the report")
        accused = Accused(
            sites_of([f.blame.call for f in found], proven.diverging),
            sites_of([f.blame.call for f in confined], proven.confined),
            harmless=proven.harmless,
        )
        book = LayerBook(alignment, floor, accused, rounded)
        own = own_runs(run, shown, divergences, [e.diagnosis for e in explained])
        calls = book.calls()
        return Report(
            divergences=divergences,
            diagnoses=(
                *own.first,
                *_diagnoses(observed, divergences, alignment, told, explained),
                *own.last,
            ),
            diffuse=None if proven.harmless else diffuse(alignment, rounded, outputs),
            outputs=shown.results,
            layers=calls if self.granularity == "module" else book.operators(),
            coverage=coverage(calls, reference.uncalled),
            environment=environment(run.reference, run.candidate),
            warnings=named.stopped
            + observed.warnings
            + run.reference.warnings
            + own.warnings
            + outputs.warnings()
            + lost
            + doubts(alignment)
            + alignment.candidate.warnings,
            confined=tuple(f.divergence for f in confined),
            sample=shown.index,
            samples=tuple(told),
            live=None
            if run.source is None
            else Live(run.source, shown.sample, cases, observed.level, run, alignment.candidate.layout),
            weights=audit(alignment),
        )

    def _other_branch(self, shown: Judged, accused: Sequence[Divergence]) -> tuple[Divergence, Explained] | None:
        """The finding that an If of the file takes its other branch."""
        run = self.runner
        if run.source is None:
            return None
        opened = partial(run.another, sample=shown.sample)
        return other_branch(load(run.source), opened, shown.outputs, accused)

    def _located(self, shown: Judged, observed: Observed) -> tuple[Located, tuple[str, ...]]:
        """Where it goes wrong in what is examined, and the pairs of the user that are not in that."""
        reference, outputs = shown.reference, shown.outputs
        given, lost = still_there(resolved(self.pairs, reference, shown.candidate, outputs), observed.candidate)

        def aligned(stricter: dict[int, Limit]) -> Alignment:
            limits = limits_for(reference, shown.floor, self.runner.tolerance) | stricter
            return align(reference, observed.candidate, outputs.everywhere(), limits, given=given)

        place = shown.place or located(aligned({}), outputs)
        if not place.origins and not place.rounded and (stricter := amplified(place.alignment, outputs)):
            place = located(aligned(stricter), outputs)
        return place, lost

    def fallen(self, shown: Judged, told: Sequence[SampleResult], death: RuntimeDiedError) -> Report:
        """The report on a runtime that died; where the model that ships did run, that says whether it agrees."""
        run, reference = self.runner, shown.reference
        found = Autopsy(shown.candidate, locate(shown.candidate, death), reference, shown.floor, run.tolerance)
        ran = all(output.actual_shape is not None for output in shown.results)
        divergence, diagnosis, layers = found.divergence(), found.diagnosis(), found.layers()
        while_examined = f"the model ran as it ships, but not while its layers were examined: {diagnosis.summary}"
        return Report(
            divergences=() if ran or divergence is None else (divergence,),
            diagnoses=() if ran else (diagnosis,),
            outputs=shown.results,
            layers=layers,
            coverage=coverage(layers, reference.uncalled),
            environment=environment(run.reference, run.candidate),
            warnings=((while_examined,) if ran else ()) + run.reference.warnings + shown.outputs.warnings(),
            sample=shown.index,
            samples=tuple(told),
        )


@dataclass(frozen=True, slots=True)
class _Named:
    """The origins with what is reported of each; without causes where another run has told the cause."""

    proven: Proven
    found: list[Finding]
    explained: list[Explained]
    cases: tuple[Case, ...]
    stopped: tuple[str, ...]


def _named(
    alignment: Alignment,
    proven: Proven,
    look: Callable[[Origin, Healed | None], Finding],
    outputs: OutputPairs,
    *,
    guilty: bool,
) -> _Named:
    """What is found at each origin, its cause, and what has the same cause."""
    found = [look(origin, healed) for origin, healed in proven.diverging]
    stretches = [Stretch(alignment, o, f.divergence) for (o, _), f in zip(proven.diverging, found, strict=True)]
    explained, stopped = ([], ()) if guilty else _explained(stretches)
    if not explained:
        return _Named(proven, found, explained, (), stopped)
    proven, found, explained = with_alike(alignment, proven, list(zip(found, explained, strict=True)), look, outputs)
    origins = [origin for origin, _ in proven.diverging]
    found = settle(alignment, origins, found, explained)
    explained = [e.of(f.divergence.layer) for e, f in zip(explained, found, strict=True)]
    stretches = [Stretch(alignment, o, f.divergence) for o, f in zip(origins, found, strict=True)]
    cases = tuple(case_of(s, e) for s, e in zip(stretches, explained, strict=True))
    return _Named(proven, found, explained, cases, stopped)


def _crossed(
    candidate: Candidate, outputs: OutputPairs, explained: Sequence[Explained], root_type: str
) -> tuple[Divergence, Explained] | None:
    """The finding that outputs or inputs are taken for each other."""
    found = outputs_exchanged(candidate, outputs, root_type)
    return inputs_exchanged(candidate, outputs, explained, root_type) if found is None else found


def _explained(stretches: Sequence[Stretch]) -> tuple[list[Explained], tuple[str, ...]]:
    """The causes; none where the user has had enough, and a sentence that says so."""
    try:
        return explain_all(stretches), ()
    except KeyboardInterrupt:
        return [], (STOPPED,)


def _diagnoses(
    observed: Observed,
    found: Sequence[Divergence],
    alignment: Alignment,
    told: Sequence[SampleResult],
    explained: Sequence[Explained],
) -> tuple[Diagnosis, ...]:
    first = found[0] if found else None
    around = (
        fusion_diagnosis(observed, first.layer if first is not None else ""),
        random_diagnosis(observed.candidate, first) if found or observed.warnings else None,
        *(layout_diagnoses(alignment, first.layer) if first is not None else ()),
    )
    sizes = size_diagnosis(told, first, alignment)
    return ranked([d for d in around if d is not None], sizes, [e.diagnosis for e in explained])
