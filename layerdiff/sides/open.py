"""From what was handed in to the side it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import torch

from layerdiff.backends import OnnxRuntime
from layerdiff.errors import InputError
from layerdiff.sides.exported import module_of
from layerdiff.sides.onnx_candidate import OnnxCandidate
from layerdiff.sides.onnx_reference import OnnxReference
from layerdiff.sides.torch_reference import TorchReference

if TYPE_CHECKING:
    from layerdiff.backends import Backend
    from layerdiff.sides.base import CandidateSide, ReferenceSide


def open_reference(reference: Any) -> ReferenceSide:
    """The reference side of what was handed in.

    Raises
    ------
    InputError
        It is nothing that can be a reference.

    """
    if isinstance(reference, torch.export.ExportedProgram):
        module, notes = module_of(reference)
        return TorchReference(module, "ExportedProgram", notes)
    if isinstance(reference, torch.nn.Module):
        return TorchReference(reference, type(reference).__name__)
    source = getattr(reference, "model_proto", reference)
    if isinstance(source, (str, Path, onnx.ModelProto)):
        return OnnxReference(source)
    raise InputError(
        "reference: wanted a torch.nn.Module, an ExportedProgram, or an ONNX model (the path of an .onnx file or a "
        f"ModelProto), got a {type(reference).__name__}; pass the model itself"
    )


def open_candidate(candidate: Any, backend: Backend | None) -> CandidateSide:
    """The candidate side of what was handed in.

    Raises
    ------
    InputError
        It is nothing that can be a candidate, or a backend was given for what needs none.

    """
    source: Any = getattr(candidate, "model_proto", candidate)  # torch.onnx.export(dynamo=True) returns a program
    return OnnxCandidate(source, backend or OnnxRuntime())
