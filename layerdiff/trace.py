"""trace(): capture, expose, align, walk back, heal, report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from layerdiff.align import align
from layerdiff.environment import environment
from layerdiff.errors import InputError
from layerdiff.findings import diffuse, finding
from layerdiff.heal import heal
from layerdiff.layers import LayerBook, coverage
from layerdiff.localise import find_origins
from layerdiff.measure import limits_for
from layerdiff.model import Tolerance
from layerdiff.observer import Observed, fusion_diagnosis, observe
from layerdiff.outputs import OutputPairs, masks_for, pair_outputs
from layerdiff.progress import Progress
from layerdiff.report import Report, combine
from layerdiff.samples import samples
from layerdiff.sides import open_candidate, open_reference
from layerdiff.stability import random_diagnosis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx
    from torch import nn
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

    from layerdiff.backends import Backend
    from layerdiff.model import Diagnosis, Divergence
    from layerdiff.samples import Sample
    from layerdiff.sides import CandidateSide, ReferenceSide


def trace(  # noqa: PLR0913  the one function that may have more than five parameters
    reference: nn.Module | ExportedProgram | str | Path | onnx.ModelProto,
    candidate: str | Path | onnx.ModelProto | ONNXProgram | nn.Module | ExportedProgram,
    inputs: Any,
    *,
    tolerance: Literal["auto"] | Tolerance = "auto",
    backend: Backend | None = None,
    granularity: Literal["module", "op"] = "module",
    valid: Mapping[str, Any] | None = None,
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
        arguments, an ``.npy`` or ``.npz`` path, or a list of those for several samples.
    tolerance
        "auto" judges every layer by its noise floor, the distance to its float64 twin; or a fixed `Tolerance`.
    backend
        What runs an ONNX candidate; ONNX Runtime on the CPU by default.
    granularity
        Report one result per module call, or one per operator.
    valid
        Masks of what counts, by output or input name: True where a position matters. A mask of an input (an attention
        mask of shape (batch, length), say) is used for every output that begins with its dimensions. Differences
        anywhere else do not fail the verdict.
    progress
        Show a progress bar on stderr.

    Raises
    ------
    InputError
        A side or a sample cannot be used.
    ReferenceFailedError
        The reference module raised.
    BackendError
        The runtime refused the graph, or the candidate module raised.
    AlignmentError
        No output of the reference could be paired with one of the candidate.

    """
    _check_options(tolerance, granularity)
    expected, actual = open_reference(reference), open_candidate(candidate, backend)
    fixed = None if isinstance(tolerance, str) else tolerance
    job = _Job(expected, actual, fixed, granularity, valid)
    with Progress(enabled=progress) as bar:
        return combine([job.examine(sample, bar) for sample in samples(inputs)])


@dataclass(frozen=True, slots=True)
class _Job:
    """What stays the same from sample to sample."""

    reference: ReferenceSide
    candidate: CandidateSide
    tolerance: Tolerance | None
    granularity: str
    valid: Mapping[str, Any] | None

    def examine(self, sample: Sample, bar: Progress) -> Report:
        """The report on one sample."""
        candidate = self.candidate.fed(sample, self.reference.feeds(sample))
        bar.stage("running the reference")
        reference = self.reference.capture(sample)
        bar.stage("measuring the noise floor")
        floor = self.reference.noise_floor(sample, reference)
        limits = limits_for(reference, floor, self.tolerance)
        bar.stage("running the candidate")
        pairs = pair_outputs(reference, candidate.graph.outputs, hint=" ".join(self.reference.warnings))
        masks = masks_for(reference, pairs[0], self.valid)
        outputs = OutputPairs(reference, *pairs, floor, self.tolerance, masks)
        results = outputs.results(candidate.shipped, candidate.tapped)
        observed = observe(candidate, outputs, results)
        candidate = observed.candidate
        bar.stage("aligning layers")
        alignment = align(reference, candidate, outputs, limits)
        bar.stage("proving the accusation")
        origins, rounded = find_origins(alignment)
        proofs = heal(alignment, origins, outputs)
        found = [finding(alignment, o, floor, self.tolerance, h) for o, h in zip(origins, proofs, strict=True)]
        everywhere = diffuse(alignment, rounded, outputs)
        bar.stage("writing the report")
        accused = {call: origin.sites for (call, _), origin in zip(found, origins, strict=True)}
        book = LayerBook(alignment, floor, self.tolerance, accused, rounded)
        calls = book.calls()
        return Report(
            divergences=tuple(divergence for _, divergence in found),
            diagnoses=_diagnoses(observed, found),
            diffuse=everywhere,
            outputs=results,
            layers=calls if self.granularity == "module" else book.operators(),
            coverage=coverage(calls, reference.uncalled),
            environment=environment(self.reference, self.candidate),
            warnings=observed.warnings + self.reference.warnings + outputs.warnings(),
        )


def _diagnoses(observed: Observed, found: Sequence[tuple[int, Divergence]]) -> tuple[Diagnosis, ...]:
    first = found[0][1] if found else None
    causes = (
        fusion_diagnosis(observed, first.layer if first is not None else ""),
        random_diagnosis(observed.candidate, first) if found else None,
    )
    return tuple(cause for cause in causes if cause is not None)


def _check_options(tolerance: object, granularity: object) -> None:
    if not isinstance(tolerance, Tolerance) and tolerance != "auto":
        raise InputError(f'tolerance: wanted "auto" or a Tolerance(rtol, atol), got {tolerance!r}')
    if granularity not in ("module", "op"):
        raise InputError(f'granularity: wanted "module" or "op", got {granularity!r}')
