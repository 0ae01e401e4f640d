"""What people may rely on."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import layerdiff

PUBLIC = [
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


def test_the_public_names_are_these() -> None:
    assert sorted(layerdiff.__all__) == PUBLIC
    assert all(hasattr(layerdiff, name) for name in PUBLIC)


def test_the_version_is_that_of_the_package() -> None:
    assert layerdiff.__version__ == version("layerdiff")


def test_trace_takes_reference_candidate_inputs_and_the_rest_by_keyword() -> None:
    parameters = inspect.signature(layerdiff.trace).parameters
    positional = [name for name, p in parameters.items() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    assert positional == ["reference", "candidate", "inputs"]
    assert {"tolerance", "backend", "granularity", "valid", "pairs", "progress"} <= set(parameters)
    assert parameters["tolerance"].default == "auto"
    assert parameters["granularity"].default == "module"


def test_a_report_has_the_views_that_are_promised() -> None:
    promised = (
        "agrees",
        "verdict",
        "first_divergence",
        "to_frame",
        "plot",
        "to_html",
        "to_dict",
        "save",
        "write_pairs",
        "repair",
        "reproduce",
    )
    assert all(hasattr(layerdiff.Report, name) for name in promised)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_and_method_is_documented(name: str) -> None:
    thing = getattr(layerdiff, name)
    assert inspect.getdoc(thing)
    members = vars(thing) if inspect.isclass(thing) else {}
    methods = [m for key, m in members.items() if not key.startswith("_") and (callable(m) or isinstance(m, property))]
    assert [m for m in methods if not inspect.getdoc(m)] == []


def test_records_are_frozen() -> None:
    tolerance = layerdiff.Tolerance(0.1, 0.2)
    with pytest.raises(AttributeError):
        tolerance.rtol = 0.3


def test_the_types_are_published() -> None:
    assert Path(layerdiff.__file__).with_name("py.typed").is_file()


def test_importing_prints_nothing_and_warns_of_nothing() -> None:
    command = [sys.executable, "-W", "error::DeprecationWarning:layerdiff", "-c", "import layerdiff"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_importing_loads_neither_torch_nor_a_runtime() -> None:
    """They are loaded by what needs them: `import layerdiff` stays under 0.3 seconds."""
    heavy = ("torch", "onnx", "onnxruntime", "numpy", "pandas", "matplotlib", "rich")
    code = f"import sys, layerdiff; sys.exit(', '.join(n for n in {heavy!r} if n in sys.modules) or None)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.strip()) == (0, "")


def test_a_public_name_is_the_same_whichever_module_was_loaded_first() -> None:
    code = "import layerdiff.simplifiers, layerdiff.tracing as t, layerdiff as d; assert d.trace is t.trace, d.trace"
    subprocess.run([sys.executable, "-c", code], timeout=120, check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'tracee'"):
        layerdiff.tracee  # noqa: B018  the access itself is the test
