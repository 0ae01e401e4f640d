"""Exporters, and what people do to a file after exporting it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import onnx
import onnxruntime
import torch

from tests.zoo.scramble import scrambled

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from torch.onnx import ONNXProgram


class Exporter(str, Enum):
    TORCHSCRIPT = "torchscript"
    DYNAMO = "dynamo"


class Treatment(str, Enum):
    RAW = "raw"
    ONNXSIM = "onnxsim"
    ONNXSLIM = "onnxslim"
    ORT_BASIC = "ort_basic"
    ORT_EXTENDED = "ort_extended"
    SCRAMBLED = "scrambled"


_ORT_CLASH = (
    "ONNX Runtime's MatMulAddFusion names its shape initializers `gemm_input_shape` without looking whether the file "
    "has them from an earlier pass, and so refuses the file it optimised (`Attempt to replace the existing tensor`)"
)

UNSUPPORTED: dict[tuple[str, Exporter, Treatment], str] = {
    ("bert", Exporter.TORCHSCRIPT, Treatment.ORT_BASIC): _ORT_CLASH,
    ("bert", Exporter.DYNAMO, Treatment.ORT_BASIC): _ORT_CLASH,
}
"""What cannot be made or run for a model of the zoo, and why."""


OPSETS = {Exporter.TORCHSCRIPT: 17, Exporter.DYNAMO: 18}


def export(model: nn.Module, inputs: tuple[Tensor, ...], exporter: Exporter, **options: Any) -> onnx.ModelProto:
    """The model as the exporter writes it, in OPSETS unless the options for torch.onnx.export say otherwise."""
    options = {"opset_version": OPSETS[exporter], **options}
    with quiet(), torch.no_grad():
        if exporter is Exporter.TORCHSCRIPT:
            file = io.BytesIO()
            torch.onnx.export(model, inputs, file, dynamo=False, **options)
            return onnx.load_from_string(file.getvalue())
        return _program(model, inputs, **options).model_proto


def program(model: nn.Module, inputs: tuple[Tensor, ...]) -> ONNXProgram:
    """What the dynamo exporter returns: the file of `export` together with the graph that it was made from."""
    with quiet(), torch.no_grad():
        return _program(model, inputs, opset_version=OPSETS[Exporter.DYNAMO])


def _program(model: nn.Module, inputs: tuple[Tensor, ...], **options: Any) -> ONNXProgram:
    return torch.onnx.export(model, inputs, dynamo=True, verbose=False, **options)


def treat(proto: onnx.ModelProto, treatment: Treatment) -> onnx.ModelProto:
    """A copy of the model after the treatment."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with quiet():
        return _TREATMENTS[treatment](copy)


def _onnxsim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim

    simplified, valid = onnxsim.simplify(proto)
    if not valid:
        raise RuntimeError("onnxsim says that its own result is not equal to what it was given")
    return simplified


def _onnxslim(proto: onnx.ModelProto) -> onnx.ModelProto:
    import onnxslim

    return onnxslim.slim(proto)


def _optimized(level: onnxruntime.GraphOptimizationLevel) -> Callable[[onnx.ModelProto], onnx.ModelProto]:
    def optimize(proto: onnx.ModelProto) -> onnx.ModelProto:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimized.onnx"
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = level
            options.optimized_model_filepath = str(path)
            options.log_severity_level = 4
            options.intra_op_num_threads = 1
            onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
            return onnx.load(path)

    return optimize


_TREATMENTS: dict[Treatment, Callable[[onnx.ModelProto], onnx.ModelProto]] = {
    Treatment.RAW: lambda proto: proto,
    Treatment.ONNXSIM: _onnxsim,
    Treatment.ONNXSLIM: _onnxslim,
    Treatment.ORT_BASIC: _optimized(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC),
    Treatment.ORT_EXTENDED: _optimized(onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED),
    Treatment.SCRAMBLED: scrambled,
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Warnings, log records and what Python or C++ writes to the terminal go nowhere."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), _muted(sys.stdout, 1), _muted(sys.stderr, 2):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def _muted(stream: TextIO, descriptor: int) -> Iterator[None]:
    """The descriptor points at nothing: redirect_stdout does not reach the exporters' C++."""
    stream.flush()
    saved = os.dup(descriptor)
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, descriptor)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)
        os.close(nothing)
