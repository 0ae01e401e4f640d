"""trace(): capture, expose, align, walk back, heal, report."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from layerdiff.align import align
from layerdiff.backends import OnnxRuntime
from layerdiff.candidate import Candidate
from layerdiff.capture import capture
from layerdiff.environment import environment
from layerdiff.errors import InputError
from layerdiff.findings import diffuse, finding, layout_diagnoses
from layerdiff.graph import Graph, load
from layerdiff.heal import heal
from layerdiff.layers import LayerBook, coverage
from layerdiff.localise import find_origins
from layerdiff.measure import limits_for
from layerdiff.model import Tolerance
from layerdiff.noise import noise_floor
from layerdiff.observer import Observed, fusion_diagnosis, observe
from layerdiff.outputs import OutputPairs, masks_for, pair_outputs
from layerdiff.progress import Progress
from layerdiff.report import Report, combine
from layerdiff.samples import feeds_for, samples
from layerdiff.stability import random_diagnosis

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx
    from torch import nn
    from torch.onnx import ONNXProgram

    from layerdiff.align import Alignment
    from layerdiff.backends import Backend
    from layerdiff.model import Diagnosis, Divergence
    from layerdiff.samples import Sample

log = logging.getLogger("layerdiff")


def trace(  # noqa: PLR0913  the one function that may have more than five parameters
    reference: nn.Module,
    candidate: str | Path | onnx.ModelProto | ONNXProgram,
    inputs: Any,
    *,
    tolerance: Literal["auto"] | Tolerance = "auto",
    backend: Backend | None = None,
    granularity: Literal["module", "op"] = "module",
    valid: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Report:
    """The first layer at which an ONNX export disagrees with the model it was made from, with proof.

    Parameters
    ----------
    reference
        The PyTorch model. It runs as it is (train or eval) and is left exactly as it was.
    candidate
        The exported model: a path, a ``ModelProto``, or the ``ONNXProgram`` that torch.onnx.export returns. It is never
        modified.
    inputs
        What the model is called with: a tensor, an array, a tuple of positional arguments, a dict of keyword
        arguments, an ``.npy`` or ``.npz`` path, or a list of those for several samples.
    tolerance
        "auto" judges every layer by its noise floor, the distance to its float64 twin; or a fixed `Tolerance`.
    backend
        What runs the candidate; ONNX Runtime on the CPU by default.
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
        The file or a sample cannot be used.
    ReferenceFailedError
        The model raised.
    BackendError
        The runtime refused the graph.
    AlignmentError
        No output of the model could be paired with one of the graph.

    """
    if not isinstance(reference, torch.nn.Module):
        raise InputError(
            f"reference: wanted a torch.nn.Module, got a {type(reference).__name__}; pass the model itself"
        )
    _check_options(tolerance, granularity)
    warnings = _training_warning(reference)
    source: Any = getattr(candidate, "model_proto", candidate)  # torch.onnx.export(dynamo=True) returns a program
    graph = Graph(load(source))
    fixed = None if isinstance(tolerance, str) else tolerance
    job = _Job(reference, source, graph, backend or OnnxRuntime(), fixed, granularity, warnings, valid)
    with Progress(enabled=progress) as bar:
        return combine([job.examine(sample, bar) for sample in samples(inputs)])


@dataclass(frozen=True, slots=True)
class _Job:
    """What stays the same from sample to sample."""

    model: nn.Module
    source: str | Path | onnx.ModelProto
    graph: Graph
    backend: Backend
    tolerance: Tolerance | None
    granularity: str
    warnings: tuple[str, ...]
    valid: Mapping[str, Any] | None

    def examine(self, sample: Sample, bar: Progress) -> Report:
        """The report on one sample."""
        candidate = Candidate(
            self.source, self.graph, self.backend, feeds_for(self.graph.inputs, sample, self.model)
        ).flat()
        bar.stage("running PyTorch")
        reference = capture(self.model, sample.args, sample.kwargs)
        bar.stage("measuring the noise floor")
        floor = noise_floor(self.model, sample.args, sample.kwargs, reference)
        limits = limits_for(reference, floor, self.tolerance)
        bar.stage("running the ONNX model")
        pairs = pair_outputs(reference, self.graph.outputs, hint=" ".join(self.warnings))
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
            diagnoses=_diagnoses(observed, found, alignment),
            diffuse=everywhere,
            outputs=results,
            layers=calls if self.granularity == "module" else book.operators(),
            coverage=coverage(calls, reference.uncalled),
            environment=environment(self.backend, self.source),
            warnings=observed.warnings + self.warnings + outputs.warnings() + alignment.candidate.warnings,
        )


def _diagnoses(
    observed: Observed, found: Sequence[tuple[int, Divergence]], alignment: Alignment
) -> tuple[Diagnosis, ...]:
    first = found[0][1] if found else None
    causes = (
        fusion_diagnosis(observed, first.layer if first is not None else ""),
        random_diagnosis(observed.candidate, first) if found else None,
        *(layout_diagnoses(alignment, first.layer) if first is not None else ()),
    )
    return tuple(cause for cause in causes if cause is not None)


def _check_options(tolerance: object, granularity: object) -> None:
    if not isinstance(tolerance, Tolerance) and tolerance != "auto":
        raise InputError(f'tolerance: wanted "auto" or a Tolerance(rtol, atol), got {tolerance!r}')
    if granularity not in ("module", "op"):
        raise InputError(f'granularity: wanted "module" or "op", got {granularity!r}')


def _training_warning(model: nn.Module) -> tuple[str, ...]:
    """What train mode does to the layers that behave differently in it."""
    norms = [n for n, m in model.named_modules() if m.training and isinstance(m, torch.nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
    drops = [n for n, m in model.named_modules() if m.training and isinstance(m, torch.nn.modules.dropout._DropoutNd)]  # noqa: SLF001
    if not norms and not drops:
        return ()
    effects = [f"{len(norms)} BatchNorm layers use the statistics of the batch"] if norms else []
    effects += [f"{len(drops)} Dropout layers drop at random"] if drops else []
    text = f"the reference is in train mode: {' and '.join(effects)}; call model.eval() first unless that is meant"
    log.warning(text)
    return (text,)
