"""What a report says about where it was made."""

from __future__ import annotations

import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from layerdiff.sides import CandidateSide, ReferenceSide

PACKAGES = ("layerdiff", "torch", "onnx", "onnxruntime", "numpy", "pandas", "matplotlib")

OPTIONAL = {
    "onnxscript": "torch.onnx.export(dynamo=True)",
    "onnxsim": "simplifying exports",
    "onnxslim": "simplifying exports",
    "scipy": "comparing detections",
    "pycocotools": "average precision",
    "opencv-python-headless": "images and stages of pipelines",
    "safetensors": "the demo's weights",
}


def environment(reference: ReferenceSide, candidate: CandidateSide) -> dict[str, str]:
    """Versions, runtime, optimisation level, seed and device of a trace."""
    backend = candidate.backend
    return {
        **package_versions(),
        **backend.describe(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "backend": backend.name,
        "optimisation": "outputs: all, as shipped; layers: none",
        "torch_seed": str(torch.initial_seed()),
        "torch_threads": str(torch.get_num_threads()),
        "reference": reference.label,
        "reference_kind": reference.kind,
        "candidate": candidate.label,
        "candidate_kind": candidate.kind,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of what layerdiff stands on; "missing" for what is not there."""
    return {name: installed(name) for name in PACKAGES}


@cache
def installed(package: str) -> str:
    """The installed version of a package, or "missing"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
