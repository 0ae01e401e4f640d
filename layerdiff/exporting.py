"""PyTorch's own exporters, run in silence; what they made of small modules is kept."""

from __future__ import annotations

import copy
import io
import logging
import os
import sys
import warnings
from collections import OrderedDict
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from enum import Enum
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import fx, nn

from layerdiff.alone import ALONE
from layerdiff.untouched import random_states_kept

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator


class Exporter(str, Enum):
    """PyTorch's two exporters."""

    TORCHSCRIPT = "torchscript"
    DYNAMO = "dynamo"


_kept: OrderedDict[Hashable, onnx.ModelProto | None] = OrderedDict()
_MOST_KEPT = 64
_SMALL = 1 << 20
"""Bytes of constants in a module whose export is kept."""


def exported(
    module: fx.GraphModule, args: tuple[torch.Tensor, ...], exporter: Exporter, opset: int
) -> onnx.ModelProto | None:
    """The module in ONNX; None where the exporter cannot express it.

    A fault that is in every block asks for the same few operators again and again: what they became is kept.
    """
    key = _content(module, args, exporter, opset)
    if key is not None and key in _kept:
        return copy.deepcopy(_kept[key])
    model = None
    try:
        model = _export(module, args, exporter, opset)
    except Exception as error:  # noqa: BLE001  exporters raise anything; another way is tried
        logging.getLogger("layerdiff").debug("%s cannot lower %s: %s", exporter.value, module, error)
    if key is not None:
        with ALONE:
            _kept[key] = copy.deepcopy(model)
            while len(_kept) > _MOST_KEPT:
                _kept.popitem(last=False)
    return model


def _content(module: fx.GraphModule, args: tuple[torch.Tensor, ...], exporter: Exporter, opset: int) -> Hashable | None:
    """All that an export depends on; None for what is large, or holds modules of its own."""
    constants = dict(module.named_buffers())
    if any(True for _ in module.children()) or sum(t.nbytes for t in constants.values()) > _SMALL:
        return None
    place = {node: f"#{i}" for i, node in enumerate(module.graph.nodes)}
    steps = []
    for node in module.graph.nodes:
        given = repr(fx.map_arg((node.args, node.kwargs), lambda other: place[other]))
        called = node.target if node.op == "call_function" else None
        steps.append((node.op, called, given, _bytes(constants[node.target]) if node.op == "get_attr" else None))
    return (*steps, *((tuple(x.shape), x.dtype) for x in args), exporter, opset)


def _bytes(tensor: torch.Tensor) -> Hashable:
    return tuple(tensor.shape), tensor.dtype, blake2b(tensor.contiguous().numpy().tobytes()).digest()


def _export(module: nn.Module, args: tuple[torch.Tensor, ...], exporter: Exporter, opset: int) -> onnx.ModelProto:
    with ALONE, random_states_kept(), _silent(), torch.no_grad():
        if exporter is Exporter.DYNAMO:
            program = torch.onnx.export(module, args, dynamo=True, opset_version=max(opset, 18), verbose=False)
            assert program is not None
            model = program.model_proto
            return model if opset >= 18 else onnx.version_converter.convert_version(model, opset)
        buffer: Any = io.BytesIO()  # torch's own annotation leaves buffers out
        with _no_native_output():
            torch.onnx.export(module, args, buffer, dynamo=False, opset_version=opset)
        return onnx.load_from_string(buffer.getvalue())


_TALKATIVE = ("torch.onnx", "onnxscript", "torch.export", "torch._dynamo", "torch._subclasses.fake_tensor")


@contextmanager
def _silent() -> Iterator[None]:
    """Exporters print, warn and log at length; their failures are answers here."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def _no_native_output() -> Iterator[None]:
    """The older exporter writes the graph that it could not express to the process's stdout, from C++."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # no stdout: nothing to silence
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)
