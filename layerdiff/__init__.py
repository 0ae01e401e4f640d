"""layerdiff: which layer of an ONNX export diverges first from its PyTorch model."""

from layerdiff.errors import (
    AlignmentError,
    BackendError,
    FixedShapeError,
    InputError,
    LayerdiffError,
    ModelFileError,
    ReferenceFailedError,
    RepairError,
    ReproduceError,
    SampleError,
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
from layerdiff.report import Report, load
from layerdiff.simplifiers import guilty_passes
from layerdiff.trace import trace
from layerdiff.weights import WeightResult

__version__ = "0.1.0"

__all__ = [
    "AlignmentError",
    "BackendError",
    "Coverage",
    "Diagnosis",
    "Diffuse",
    "Divergence",
    "FixedShapeError",
    "InputError",
    "LayerResult",
    "LayerdiffError",
    "Metrics",
    "ModelFileError",
    "OutputResult",
    "ReferenceFailedError",
    "Repair",
    "RepairError",
    "Report",
    "ReproduceError",
    "RoundedLayer",
    "SampleError",
    "SampleResult",
    "Status",
    "Tolerance",
    "Unrepaired",
    "WeightResult",
    "guilty_passes",
    "load",
    "trace",
]
