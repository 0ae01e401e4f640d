"""From what was handed in to the side it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from layerdiff.backends import Isolated, Isolation, OnnxRuntime
from layerdiff.capture import type_of
from layerdiff.errors import InputError
from layerdiff.sides.exported import module_of
from layerdiff.sides.onnx_candidate import OnnxCandidate
from layerdiff.sides.onnx_reference import OnnxReference
from layerdiff.sides.torch_candidate import TorchCandidate, plain
from layerdiff.sides.torch_reference import TorchReference

if TYPE_CHECKING:
    from layerdiff.backends import Backend
    from layerdiff.sides.base import CandidateSide, ReferenceSide
    from layerdiff.store import Store


def isolation_of(isolate: Any) -> Isolation | None:
    """How runtimes are kept apart; None where they run in this process.

    Raises
    ------
    InputError
        It is no way to isolate.

    """
    if isolate == "none":
        return None
    if isolate == "process":
        return Isolation()
    if isinstance(isolate, Isolation):
        return isolate
    raise InputError(f'isolate: wanted "none", "process" or an Isolation(time_limit_seconds=…), got {isolate!r}')


def open_reference(reference: Any, isolation: Isolation | None = None, store: Store | None = None) -> ReferenceSide:
    """The reference side of what was handed in; its activations are kept in the store.

    Raises
    ------
    InputError
        It is nothing that can be a reference.

    """
    if isinstance(reference, torch.export.ExportedProgram):
        module, notes = module_of(reference)
        return TorchReference(module, "ExportedProgram", notes, store)
    if isinstance(reference, torch.nn.Module):
        module = plain(reference)
        _check_weights(module, "reference")
        return TorchReference(module, type_of(module), store=store)
    source = getattr(reference, "model_proto", reference)
    if isinstance(source, (str, Path, onnx.ModelProto)):
        own, twin = _apart(OnnxRuntime(), isolation), _apart(OnnxRuntime(threads=1), isolation)
        return OnnxReference(source, own, twin, store)
    raise InputError(
        "reference: wanted a torch.nn.Module, an ExportedProgram, or an ONNX model (the path of an .onnx file or a "
        f"ModelProto), got a {type(reference).__name__}; pass the model itself"
    )


def open_candidate(
    candidate: Any, backend: Backend | None, isolation: Isolation | None = None, store: Store | None = None
) -> CandidateSide:
    """The candidate side of what was handed in; its activations are kept in the store.

    Raises
    ------
    InputError
        It is nothing that can be a candidate, or a backend was given for what needs none.

    """
    if isinstance(candidate, (torch.nn.Module, torch.export.ExportedProgram)):
        if backend is not None:
            raise InputError("backend: runs ONNX candidates; a torch candidate runs itself, so leave it out")
        if isinstance(candidate, torch.export.ExportedProgram):
            return TorchCandidate(module_of(candidate)[0], "ExportedProgram", store)
        _check_weights(plain(candidate), "candidate")
        return TorchCandidate(candidate, type_of(plain(candidate)), store)
    source: Any = getattr(candidate, "model_proto", candidate)  # torch.onnx.export(dynamo=True) returns a program
    if not isinstance(source, (str, Path, onnx.ModelProto)):
        raise InputError(
            "candidate: wanted the path of an .onnx file, an onnx.ModelProto, an ONNXProgram, a torch.nn.Module or an "
            f"ExportedProgram, got {type(source).__name__}"
        )
    return OnnxCandidate(source, _apart(backend or OnnxRuntime(), isolation), store)


def _check_weights(module: torch.nn.Module, side: str) -> None:
    """Refuse a module that has no numbers yet: lazy, or on the meta device."""
    for path, inner in module.named_modules():
        for name, tensor in (*inner.named_parameters(recurse=False), *inner.named_buffers(recurse=False)):
            where = f"{side}: {path or 'the model itself'} ({type_of(inner)})"
            if torch.nn.parameter.is_lazy(tensor):
                raise InputError(
                    f"{where} is lazy and has no {name} yet; call it once with an example before it is traced"
                )
            if tensor.is_meta:
                raise InputError(
                    f"{where} has its {name} on the meta device, which keeps no numbers; load the weights first "
                    "(model.to_empty(device='cpu'), then load_state_dict)"
                )


def _apart(backend: Backend, isolation: Isolation | None) -> Backend:
    return backend if isolation is None else Isolated(backend, isolation)
