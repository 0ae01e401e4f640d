"""Builders that several test files share; one thread, so that the machine's load changes no number."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import settings
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import layerdiff
from layerdiff.flatten import flattened
from layerdiff.graph import Graph
from layerdiff.model import (
    Coverage,
    Divergence,
    Evidence,
    Healed,
    Kind,
    LayerResult,
    Metrics,
    Noise,
    OutputResult,
    Status,
)
from layerdiff.report import Report
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

torch.set_num_threads(1)
# The same examples on every run: a new one is found by raising max_examples, not by luck in CI.
settings.register_profile("layerdiff", derandomize=True, deadline=None)
settings.load_profile("layerdiff")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Golden files are rewritten on request; a person reads the diff."""
    parser.addoption("--rewrite-golden", action="store_true", help="write tests/golden anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compares a text with a file of tests/golden."""

    def check(name: str, text: str) -> None:
        path = Path(__file__).parent / "golden" / name
        if request.config.getoption("--rewrite-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8")

    return check


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def trace() -> Callable[..., Report]:
    """layerdiff.trace without a progress bar."""
    return functools.partial(layerdiff.trace, progress=False)


class Classifier(nn.Module):
    """Convolution, BatchNorm, activation, a residual join and a head: the smallest net with everything to fold."""

    def __init__(self, width: int = 8, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.block = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.SiLU())
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(image)))
        x = x + self.block(x)
        return self.head(self.pool(x).flatten(1))


@pytest.fixture
def classifier() -> nn.Module:
    """A fresh Classifier in eval mode with settled statistics."""
    return settle(fill(Classifier()), noise("classifier.batch", 8, 3, 10, 10))


@pytest.fixture(scope="session")
def image() -> Tensor:
    """An input for the classifier."""
    return noise("classifier.image", 2, 3, 10, 10)


@pytest.fixture
def broken(classifier: nn.Module, image: Tensor) -> onnx.ModelProto:
    """The classifier's export with the weights of one convolution changed: `block.0` is to blame."""
    proto = export(classifier, (image,), Exporter.TORCHSCRIPT)
    return with_initializer(proto, "block.0.weight", lambda weight: weight * 1.25)


@pytest.fixture
def healthy(classifier: nn.Module, image: Tensor) -> onnx.ModelProto:
    """The classifier's faithful export."""
    return export(classifier, (image,), Exporter.TORCHSCRIPT)


def with_initializer(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy of a model in which one initializer holds other numbers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    changed = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(changed, name))
    return copy


def with_a_weight_too_large(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a model with the matrix or kernel in its middle 1.3 times as large."""
    names = [tensor.name for tensor in proto.graph.initializer if len(tensor.dims) > 1]
    return with_initializer(proto, names[len(names) // 2], lambda weight: weight * 1.3)


def graph_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, tuple[int | str, ...]],
    outputs: Sequence[str],
    constants: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> onnx.ModelProto:
    """An opset 17 model of float inputs; a key such as ``ids:INT64`` gives an input another type."""
    ports = []
    for key, shape in inputs.items():
        name, _, kind = key.partition(":")
        ports.append(helper.make_tensor_value_info(name, getattr(TensorProto, kind or "FLOAT"), shape))
    types: Mapping[str, int] = options.pop("types", {})
    ends = [helper.make_tensor_value_info(name, types.get(name, TensorProto.FLOAT), None) for name in outputs]
    stored = [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()]
    return helper.make_model(
        helper.make_graph(list(nodes), "test", ports, ends, stored),
        opset_imports=options.pop("opsets", [helper.make_opsetid("", 17)]),
        ir_version=8,
        **options,
    )


def run(proto: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a model in ONNX Runtime without optimisations."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [port.name for port in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


@pytest.fixture
def laid_flat() -> Callable[..., tuple[Any, Any, onnx.ModelProto]]:
    """The outputs of a model as it is and with its control flow laid flat, and the flat model."""

    def both(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> tuple[Any, Any, onnx.ModelProto]:
        flat = flattened(model, lambda proto, names: run(Graph(proto).rewritten(names), feeds))
        return run(model, feeds), run(flat, feeds), flat

    return both


EXACT = Metrics(
    max_abs=0.0,
    mean_abs=0.0,
    rms=0.0,
    rel_l2=0.0,
    cosine=1.0,
    sqnr_db=float("inf"),
    max_ulp=0.0,
    norm_ratio=1.0,
    within=1.0,
    worst_index=(0, 0),
    nonfinite_expected=0,
    nonfinite_actual=0,
    nonfinite_mismatches=0,
    limit=1e-6,
    times_limit=0.0,
    agrees=True,
)


def far(max_abs: float) -> Metrics:
    """Metrics of something that is wrong by so much."""
    return replace(
        EXACT,
        max_abs=max_abs,
        mean_abs=max_abs / 2,
        sqnr_db=12.5,
        within=0.25,
        times_limit=max_abs / 1e-6,
        agrees=False,
    )


def layer(name: str, status: Status, metrics: Metrics | None = EXACT, reason: str = "") -> LayerResult:
    """One row of a report."""
    tensor = f"/{name}/out" if metrics is not None else None
    evidence = Evidence.VALUES if metrics is not None else None
    return LayerResult(name, 0, "Conv2d", None, tensor, evidence, status, reason, metrics, metrics, Noise(1e-7, 1e-8))


def divergence(name: str, healed: Healed | None, kind: Kind = Kind.COMPUTED) -> Divergence:
    """An origin in a layer."""
    return Divergence(
        layer=name,
        call=0,
        type="Conv2d",
        op="aten.convolution",
        onnx_nodes=(f"/{name}/Conv",),
        onnx_ops=("Conv",),
        tensor=f"/{name}/out",
        metrics=far(0.5),
        noise=Noise(1e-7, 1e-8),
        kind=kind,
        summary="good values go into Conv, a wrong one comes out",
        healed=healed,
    )


def report_of(*origins: Divergence, error: float = 0.5, **changes: Any) -> Report:
    """A report with these origins among four layers; without any, one of a healthy export."""
    accused = {origin.layer for origin in origins}
    rows = tuple(
        layer(name, Status.DIVERGES, far(0.5)) if name in accused else layer(name, Status.AGREES)
        for name in ("stem", "block.conv", "block.act")
    )
    rows += (layer("head", Status.PROPAGATES, far(error)) if origins else layer("head", Status.AGREES),)
    shipped = far(error) if origins else EXACT
    whole = Report(
        divergences=origins,
        diagnoses=(),
        outputs=(OutputResult("logits", "logits", (2, 5), (2, 5), shipped, shipped),),
        layers=rows,
        coverage=Coverage(4, 0, {}),
        environment={"layerdiff": "0.1.0", "torch": "2.13.0"},
    )
    return replace(whole, **changes)
