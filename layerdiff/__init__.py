"""layerdiff: which layer of an ONNX export diverges first from its PyTorch model."""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

from layerdiff.errors import (
    AlignmentError,
    BackendError,
    FixedShapeError,
    InputError,
    LayerdiffError,
    MissingExtraError,
    ModelFileError,
    ReferenceFailedError,
    RepairError,
    ReproduceError,
    RuntimeDiedError,
    SampleError,
    SpillError,
    StageError,
)
from layerdiff.model import (
    Coverage,
    Diagnosis,
    Diffuse,
    Divergence,
    LayerResult,
    Metrics,
    OutputResult,
    Repair,
    RoundedLayer,
    SampleResult,
    Status,
    Tolerance,
    Unrepaired,
)
from layerdiff.pipeline.detection_model import DetectionComparison, DetectionMatch, Reason, UnmatchedDetection
from layerdiff.preprocessing.comparison import InputComparison, InputMismatch, InputPair
from layerdiff.report import Report, load
from layerdiff.weights import WeightResult

if TYPE_CHECKING:
    from layerdiff.backends import Isolation
    from layerdiff.pipeline.compare import compare_detections
    from layerdiff.preprocessing.compare import compare_inputs
    from layerdiff.simplifiers import guilty_passes
    from layerdiff.stages.compare import compare_pipelines
    from layerdiff.stages.result import PipelineComparison, StageMismatch, StageResult, StageStatus
    from layerdiff.tracing import trace

__version__ = "0.1.0"

# What needs torch, onnx or a runtime is loaded when it is first used: a saved report opens without them.
_LATER = {
    "Isolation": "layerdiff.backends",
    "compare_detections": "layerdiff.pipeline.compare",
    "compare_inputs": "layerdiff.preprocessing.compare",
    "compare_pipelines": "layerdiff.stages.compare",
    "guilty_passes": "layerdiff.simplifiers",
    "trace": "layerdiff.tracing",
    "PipelineComparison": "layerdiff.stages.result",
    "StageMismatch": "layerdiff.stages.result",
    "StageResult": "layerdiff.stages.result",
    "StageStatus": "layerdiff.stages.result",
}

__all__ = [
    "AlignmentError",
    "BackendError",
    "Coverage",
    "DetectionComparison",
    "DetectionMatch",
    "Diagnosis",
    "Diffuse",
    "Divergence",
    "FixedShapeError",
    "InputComparison",
    "InputError",
    "InputMismatch",
    "InputPair",
    "Isolation",
    "LayerResult",
    "LayerdiffError",
    "Metrics",
    "MissingExtraError",
    "ModelFileError",
    "OutputResult",
    "PipelineComparison",
    "Reason",
    "ReferenceFailedError",
    "Repair",
    "RepairError",
    "Report",
    "ReproduceError",
    "RoundedLayer",
    "RuntimeDiedError",
    "SampleError",
    "SampleResult",
    "SpillError",
    "StageError",
    "StageMismatch",
    "StageResult",
    "StageStatus",
    "Status",
    "Tolerance",
    "UnmatchedDetection",
    "Unrepaired",
    "WeightResult",
    "compare_detections",
    "compare_inputs",
    "compare_pipelines",
    "guilty_passes",
    "load",
    "trace",
]


def __getattr__(name: str) -> Any:
    """A public name whose module was not loaded yet.

    A library that is loaded with it draws from Python's generator: that is left where the caller had it.
    """
    if name == "backends":
        return import_module("layerdiff.backends")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    state = random.getstate()
    try:
        found = globals()[name] = getattr(import_module(_LATER[name]), name)
    finally:
        random.setstate(state)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
