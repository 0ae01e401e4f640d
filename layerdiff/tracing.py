"""trace(): what is asked of a comparison, and its answer. The steps themselves are in job.py."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from layerdiff.errors import (
    InputError,
)
from layerdiff.job import Job
from layerdiff.judging import Judge
from layerdiff.memory import kept_bytes, limit_bytes
from layerdiff.model import Tolerance
from layerdiff.pairs import read_pairs
from layerdiff.preprocessing.compare import compare_inputs
from layerdiff.preprocessing.fed import preprocessing, shown, unpaired
from layerdiff.progress import Progress
from layerdiff.runner import Runner
from layerdiff.samples import samples
from layerdiff.sides import isolation_of, open_candidate, open_reference
from layerdiff.store import Store

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import onnx
    from torch import nn
    from torch.export import ExportedProgram
    from torch.onnx import ONNXProgram

    from layerdiff.backends import Backend, Isolation
    from layerdiff.preprocessing.comparison import InputComparison
    from layerdiff.report import Report


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

    Ctrl-C ends a stream of samples with a report on those before, and the search for a cause with a report without one.

    Parameters
    ----------
    reference
        What is right: a module, the ``ExportedProgram`` that torch.export.export made of it, or an ONNX model (a path
        or a ``ModelProto``). A module runs as it is (train or eval), but computes float32 in full, and is left exactly
        as it was.
    candidate
        What is judged: an exported model (a path, a ``ModelProto``, or the ``ONNXProgram`` that torch.onnx.export
        returns), or another module or program. It is never modified.
    inputs
        What the model is called with: a tensor, an array, a tuple of positional arguments, a dict of keyword
        arguments, an ``.npy`` or ``.npz`` path, or an iterable of those for several samples. Arrays are put on the
        device of the reference, tensors stay where they are. Every sample is judged; the first that disagrees (else
        the one with the largest error) is examined layer by layer. A size that the runtime refuses while another
        agrees is a finding, not an error. An `InputPair` (or several) holds what each side is fed in practice: the two
        are compared first (`Report.inputs`), and both sides then run with the expected one, so that the network is
        judged apart from what is around it.
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
            report = Job(runner, granularity, read_pairs(pairs)).run(inputs, bar)
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
    runner = Runner(*sides, fixed, None)
    judge = Judge(runner, may_do_without_twin=runner.may_do_without_twin)
    try:
        with Progress(enabled=False) as bar:
            every = enumerate(samples(inputs, sides[0].device))
            return all(judge.sample(index, sample, bar).told.agrees for index, sample in every)
    finally:
        runner.rest()


def _check_options(tolerance: object, granularity: object) -> None:
    if not isinstance(tolerance, Tolerance) and tolerance != "auto":
        raise InputError(f'tolerance: wanted "auto" or a Tolerance(rtol, atol), got {tolerance!r}')
    if granularity not in ("module", "op"):
        raise InputError(f'granularity: wanted "module" or "op", got {granularity!r}')
