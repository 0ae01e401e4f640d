"""trace(): capture, expose, align, walk back, heal, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from layerdiff.align import align
from layerdiff.attribute import Blame
from layerdiff.audit import audit
from layerdiff.autopsy import Autopsy, locate
from layerdiff.cases import case_of
from layerdiff.diagnose import Stretch, explain_all, inputs_exchanged, ranked
from layerdiff.environment import environment
from layerdiff.errors import (
    BackendError,
    FixedShapeError,
    InputError,
    LayerdiffError,
    ReferenceFailedError,
    RuntimeDiedError,
)
from layerdiff.findings import Finding, diffuse, finding, layout_diagnoses
from layerdiff.layers import Accused, LayerBook, coverage
from layerdiff.live import Live
from layerdiff.localise import find_origins
from layerdiff.measure import limits_for
from layerdiff.memory import kept_bytes, limit_bytes
from layerdiff.model import SampleResult, Tolerance
from layerdiff.observer import Observed, fusion_diagnosis, observe
from layerdiff.pairs import doubts, read_pairs, resolved, still_there
from layerdiff.preprocessing.compare import compare_inputs
from layerdiff.preprocessing.fed import preprocessing, shown, unpaired
from layerdiff.progress import Progress
from layerdiff.proof import prove, sites_of
from layerdiff.report import Report
from layerdiff.runner import Runner
from layerdiff.samples import samples
from layerdiff.settle import settle
from layerdiff.several import judged, size_diagnosis
from layerdiff.sides import isolation_of, open_candidate, open_reference
from layerdiff.stability import random_diagnosis, reference_random
from layerdiff.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx
    from torch import nn
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

    from layerdiff.align import Alignment
    from layerdiff.backends import Backend, Isolation
    from layerdiff.candidate import Candidate
    from layerdiff.diagnose import Explained
    from layerdiff.model import Diagnosis, Divergence, Noise, OutputResult, Reference
    from layerdiff.outputs import OutputPairs
    from layerdiff.preprocessing.comparison import InputComparison
    from layerdiff.samples import Sample


def trace(  # noqa: PLR0913  the one function that may have more than five parameters
    reference: nn.Module | ExportedProgram | str | Path | onnx.ModelProto,
    candidate: str | Path | onnx.ModelProto | ONNXProgram | nn.Module | ExportedProgram,
    inputs: Any,
    *,
    tolerance: Literal["auto"] | Tolerance = "auto",
    backend: Backend | None = None,
    isolate: Literal["none", "process"] | Isolation = "none",
    granularity: Literal["module", "op"] = "module",
    valid: Mapping[str, Any] | str | Sequence[Mapping[str, Any] | str] | None = None,
    pairs: Mapping[str | tuple[str, int], str] | str | Path | None = None,
    memory_limit: int | None = None,
    progress: bool = True,
) -> Report:
    """The first layer at which a model disagrees with the one it was made from, with proof.

    Parameters
    ----------
    reference
        What is right: a module, the ``ExportedProgram`` that torch.export.export made of it, or an ONNX model (a path
        or a ``ModelProto``). A module runs as it is (train or eval) and is left exactly as it was.
    candidate
        What is judged: an exported model (a path, a ``ModelProto``, or the ``ONNXProgram`` that torch.onnx.export
        returns), or another module or program. It is never modified.
    inputs
        What the model is called with: a tensor, an array, a tuple of positional arguments, a dict of keyword
        arguments, an ``.npy`` or ``.npz`` path, or an iterable of those for several samples. Every sample is judged;
        the first that disagrees (else the one with the largest error) is examined layer by layer. A size that the
        runtime refuses while another agrees is a finding, not an error. An `InputPair` (or several) holds what each
        side is fed in practice: the two are compared first (`Report.inputs`), and both sides then run with the
        expected one, so that the network is judged apart from what is around it.
    tolerance
        "auto" judges every layer by its noise floor, the distance to its float64 twin; or a fixed `Tolerance`.
    backend
        What runs an ONNX candidate; ONNX Runtime on the CPU by default.
    isolate
        "process" runs ONNX models in a worker process. A runtime that crashes, hangs or runs out of memory is then a
        finding, with the layer that it had reached, and this process lives on. ``layerdiff.Isolation`` sets the limits
        of time and memory. "none" runs them here.
    granularity
        Report one result per module call, or one per operator.
    valid
        Masks of what counts, by output or input name: True where a position matters. A mask of an input (an attention
        mask of shape (batch, length), say) is used for every output that begins with its dimensions. The name alone,
        ``valid="attention_mask"``, takes that input of each sample as the mask; a list holds one item for each sample.
        Differences anywhere else, and layers whose differences no output that counts depends on, do not fail the
        verdict: see `Report.confined`.
    pairs
        Which tensor holds a layer's result, where that is known: ``{"layer1.0.conv": "/conv1/Conv_output_0"}``, or the
        YAML file that `Report.write_pairs` writes. ``"act#1"`` or ``("act", 1)`` is the second call of a layer,
        ``"lstm[1]"`` the second tensor of a tuple, ``"block:aten.add.Tensor"`` an operator in a layer's own forward.
    memory_limit
        How much memory, in bytes, the trace may take besides what the process holds when it begins; half of what is
        free by default. Activations beyond a quarter of it go to temporary files (see TMPDIR), and the graph runs in
        portions; the answer is the same. One run of each side as it ships, with its weights, must fit.
    progress
        Show a progress bar on stderr.

    Raises
    ------
    InputError
        A side, a sample, a mask or a pair cannot be used.
    ReferenceFailedError
        The reference module raised.
    BackendError
        The runtime refused the graph, or the candidate module raised.
    SpillError
        What `memory_limit` keeps out of memory cannot be written to disk.
    AlignmentError
        No output of the reference could be paired with one of the candidate.

    """
    _check_options(tolerance, granularity)
    inputs, fed = unpaired(inputs)
    compared = tuple(compare_inputs(pair.expected, pair.actual, image=pair.image) for pair in fed)
    isolation, store = isolation_of(isolate), Store(kept_bytes(limit_bytes(memory_limit)))
    expected = open_reference(reference, isolation, store)
    actual = open_candidate(candidate, backend, isolation, store)
    fixed = None if isinstance(tolerance, str) else tolerance
    runner = Runner(expected, actual, fixed, valid)
    options: dict[str, Any] = {"tolerance": tolerance, "backend": backend, "granularity": granularity, "valid": valid}
    again = partial(trace, reference, **options, isolate=isolate, memory_limit=memory_limit, progress=False)
    kept = None if isinstance(inputs, Iterator) else inputs  # an iterator is used up
    try:
        with store, Progress(enabled=progress) as bar:
            report = _Job(runner, granularity, read_pairs(pairs)).run(inputs, bar)
    finally:
        runner.rest()
    report = replace(report, live=None if report.live is None else replace(report.live, again=again, inputs=kept))
    return _with_inputs(report, shown(compared))


def _with_inputs(report: Report, found: InputComparison | None) -> Report:
    """The report with what was found of the inputs of both sides, before all that is said of the network."""
    if found is None:
        return report
    cause = preprocessing(found, network_agrees=report.network_agrees)
    return replace(report, inputs=found, diagnoses=(*(() if cause is None else (cause,)), *report.diagnoses))


def outputs_agree(
    reference: Any,
    candidate: Any,
    inputs: Any,
    *,
    tolerance: Literal["auto"] | Tolerance = "auto",
    isolate: Literal["none", "process"] | Isolation = "none",
) -> bool:
    """Whether the final outputs agree on every sample; nothing between them is looked at."""
    fixed, isolation = None if isinstance(tolerance, str) else tolerance, isolation_of(isolate)
    sides = open_reference(reference, isolation), open_candidate(candidate, None, isolation)
    job = _Job(Runner(*sides, fixed, None), "module", {})
    try:
        with Progress(enabled=False) as bar:
            return all(job.judge(index, sample, bar).told.agrees for index, sample in enumerate(samples(inputs)))
    finally:
        job.runner.rest()


@dataclass(frozen=True, slots=True)
class _Judged:
    """One sample that ran on both sides, and how its outputs were judged."""

    index: int
    sample: Sample
    candidate: Candidate
    reference: Reference
    floor: Mapping[int, Noise]
    outputs: OutputPairs
    results: tuple[OutputResult, ...]
    told: SampleResult
    death: RuntimeDiedError | None = None  # the runtime did not survive it

    def rank(self) -> tuple[bool, bool, float]:
        """The higher, the more there is to see; the first sample that disagrees comes before all others."""
        seen = [o.everywhere or o.shipped for o in self.results]
        return (
            self.death is not None,
            not self.told.agrees,
            max((m.times_limit for m in seen if m and self.told.agrees), default=0.0),
        )


@dataclass(frozen=True, slots=True)
class _Job:
    """What stays the same from sample to sample."""

    runner: Runner
    granularity: str
    pairs: Mapping[str, str]

    def run(self, inputs: Any, bar: Progress) -> Report:
        """The report on the sample that shows most, with the judgement of all; one sample is kept at a time."""
        shown: _Judged | None = None
        told: list[SampleResult] = []
        refusal: LayerdiffError | None = None
        for index, sample in enumerate(samples(inputs)):
            try:
                found = self.judge(index, sample, bar)
            except (BackendError, FixedShapeError) as error:
                refusal = refusal or error
                told.append(self.refused(sample, error))
                continue
            told.append(found.told)
            shown = found if shown is None or found.rank() > shown.rank() else shown
        if shown is None:
            assert refusal is not None  # there is at least one sample
            raise refusal
        death = shown.death
        if death is None:
            try:
                return self.examine(shown, told, bar)
            except RuntimeDiedError as error:
                death = error
        bar.stage("looking for the node at which the runtime dies")
        return self.fallen(shown, told, death)

    def judge(self, index: int, sample: Sample, bar: Progress) -> _Judged:
        """Run one sample on both sides and compare the outputs."""
        run = self.runner
        candidate = run.fed(sample)
        bar.stage("running the reference")
        try:
            reference, floor = run.recorded(sample)
        except RuntimeDiedError as error:
            raise ReferenceFailedError(f"the reference {run.reference.label} cannot be run: {error}") from error
        bar.stage("running the candidate")
        outputs = run.paired(reference, floor, candidate.graph, index)
        shipped, tapped, death = _ran(candidate)
        results = outputs.results(shipped, tapped)
        told = judged(run.shapes(sample), results)
        told = told if shipped or death is None else replace(told, refused=str(death))
        return _Judged(index, sample, candidate, reference, floor, outputs, results, told, death)

    def refused(self, sample: Sample, error: LayerdiffError) -> SampleResult:
        """What is told of a sample that the runtime refuses; the error itself when the model cannot run it either."""
        try:
            self.runner.reference.capture(sample)
        except ReferenceFailedError:
            raise error from None
        return SampleResult(self.runner.shapes(sample), agrees=False, refused=str(error))

    def examine(self, shown: _Judged, told: Sequence[SampleResult], bar: Progress) -> Report:
        """The report on one sample."""
        outputs, reference, floor, run = shown.outputs, shown.reference, shown.floor, self.runner
        observed = observe(shown.candidate, outputs, shown.results)
        bar.stage("aligning layers")
        limits = limits_for(reference, floor, run.tolerance)
        given = resolved(self.pairs, reference, shown.candidate, outputs)
        given, lost = still_there(given, observed.candidate)
        alignment = align(reference, observed.candidate, outputs.everywhere(), limits, given)
        bar.stage("proving the accusation")
        origins, rounded = find_origins(alignment)
        proven = prove(alignment, origins, outputs, shipped_agrees=all(result.agrees for result in shown.results))
        found = [finding(alignment, o, floor, run.tolerance, h) for o, h in proven.diverging]
        confined = [finding(alignment, o, floor, run.tolerance, h) for o, h in proven.confined]
        bar.stage("naming the cause")
        stretches = [Stretch(alignment, o, f.divergence) for (o, _), f in zip(proven.diverging, found, strict=True)]
        explained = [] if observed.guilty else explain_all(stretches)
        if explained:
            found = settle(alignment, [origin for origin, _ in proven.diverging], found, explained)
            stretches = [replace(s, divergence=f.divergence) for s, f in zip(stretches, found, strict=True)]
            explained = [e.of(f.divergence.layer) for e, f in zip(explained, found, strict=True)]
        cases = tuple(case_of(s, e) for s, e in zip(stretches, explained, strict=False))
        crossed = inputs_exchanged(observed.candidate, outputs, explained, reference.calls[0].type)
        if crossed is not None:
            found, explained, cases = [Finding(Blame(0, None), crossed[0])], [crossed[1]], ()
        divergences = tuple(f.divergence for f in found)
        bar.stage("writing the report")
        accused = Accused(
            sites_of([f.blame.call for f in found], proven.diverging),
            sites_of([f.blame.call for f in confined], proven.confined),
            harmless=proven.harmless,
        )
        book = LayerBook(alignment, floor, run.tolerance, accused, rounded)
        calls = book.calls()
        return Report(
            divergences=divergences,
            diagnoses=(
                *_drawn(run, shown, divergences),
                *_diagnoses(observed, divergences, alignment, told, explained),
            ),
            diffuse=None if proven.harmless else diffuse(alignment, rounded, outputs),
            outputs=shown.results,
            layers=calls if self.granularity == "module" else book.operators(),
            coverage=coverage(calls, reference.uncalled),
            environment=environment(run.reference, run.candidate),
            warnings=observed.warnings
            + run.reference.warnings
            + outputs.warnings()
            + lost
            + doubts(alignment)
            + alignment.candidate.warnings,
            confined=tuple(f.divergence for f in confined),
            sample=shown.index,
            samples=tuple(told),
            live=None if run.source is None else Live(run.source, shown.sample, cases, observed.level, run),
            weights=audit(alignment),
        )

    def fallen(self, shown: _Judged, told: Sequence[SampleResult], death: RuntimeDiedError) -> Report:
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


def _drawn(run: Runner, shown: _Judged, found: Sequence[Divergence]) -> tuple[Diagnosis, ...]:
    """That the reference draws at random, where it does and something diverges."""
    if not found:
        return ()
    cause = reference_random(shown.reference, run.reference.unstable(shown.sample, shown.reference), found[0])
    return () if cause is None else (cause,)


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


def _check_options(tolerance: object, granularity: object) -> None:
    if not isinstance(tolerance, Tolerance) and tolerance != "auto":
        raise InputError(f'tolerance: wanted "auto" or a Tolerance(rtol, atol), got {tolerance!r}')
    if granularity not in ("module", "op"):
        raise InputError(f'granularity: wanted "module" or "op", got {granularity!r}')
