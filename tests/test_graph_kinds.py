"""Opsets, local functions, several outputs, modules shared by branches, dynamic sizes: quiet, or the layer is named."""

from __future__ import annotations

import copy
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import with_initializer
from tests.zoo import control_flow
from tests.zoo.exports import Exporter
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore")  # exporters warn of old and new opsets


def exported(model: nn.Module, inputs: tuple[Any, ...], exporter: Exporter, **options: Any) -> onnx.ModelProto:
    """The export with options of its own."""
    if exporter is Exporter.DYNAMO:
        return torch.onnx.export(model, inputs, dynamo=True, verbose=False, **options).model_proto
    file = io.BytesIO()
    torch.onnx.export(model, inputs, file, dynamo=False, **options)
    return onnx.load_from_string(file.getvalue())


def damaged(model: nn.Module, path: str) -> nn.Module:
    """A copy with a wrong weight in one module."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(other.get_submodule(path).parameters()).mul_(1.25)
    return other


class Mixed(nn.Module):
    """What exporters write differently from opset to opset: norms, GELU, resizing, reductions, padding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.act = nn.Hardswish()
        self.block = nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(8, 8, 3), nn.GELU())
        self.up = nn.Upsample(scale_factor=2, mode="bilinear")
        self.layer_norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.stem(x)))
        x = self.up(x + self.block(x)).permute(0, 2, 3, 1)
        return self.head(self.layer_norm(x).softmax(-1).sum((1, 2)))


FAST = {Exporter.TORCHSCRIPT: (11, 13, 17, 20), Exporter.DYNAMO: (18, 20, 23, 25)}
ALL = {Exporter.TORCHSCRIPT: range(11, 21), Exporter.DYNAMO: range(18, 26)}
OPSETS = [
    pytest.param(exporter, opset, marks=() if opset in FAST[exporter] else pytest.mark.slow)
    for exporter, opsets in ALL.items()
    for opset in opsets
]


@pytest.mark.parametrize(("exporter", "opset"), OPSETS)
def test_every_opset_that_the_runtime_takes_is_quiet_and_a_fault_is_named(trace, exporter, opset):
    model = settle(fill(Mixed()), noise("opsets.batch", 8, 3, 6, 7))
    x = noise("opsets", 2, 3, 6, 7)
    proto = exported(model, (x,), exporter, opset_version=opset)
    assert [entry.version for entry in proto.opset_import if entry.domain == ""] == [opset]
    report = trace(model, proto, x)
    assert report.agrees, report.verdict
    assert report.divergences == ()
    wrong = trace(model, exported(damaged(model, "block.1"), (x,), exporter, opset_version=opset), x)
    assert wrong.first_divergence.layer == "block.1"
    assert wrong.first_divergence.healed.agrees


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.act = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.lin(x)) + x


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = Inner()
        self.b = Inner()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.a(x)))


@pytest.fixture(scope="module")
def with_functions() -> tuple[nn.Module, onnx.ModelProto, Tensor]:
    """Modules exported as functions: nested, and with attributes. The exporter can do it once in a process."""
    model, x = fill(Outer()), noise("functions", 3, 6)
    options = {"opset_version": 17, "export_modules_as_functions": True}
    return model, exported(model, (x,), Exporter.TORCHSCRIPT, **options), x


def test_modules_exported_as_functions_are_compared_inside(trace, with_functions):
    model, proto, x = with_functions
    assert len(proto.graph.node) == 1
    assert any(function.attribute for function in proto.functions)
    report = trace(model, proto, x)
    assert report.agrees
    assert report.coverage.compared == len(list(model.modules()))


def test_a_weight_that_goes_into_nested_functions_is_named(trace, with_functions):
    model, proto, x = with_functions
    report = trace(model, with_initializer(proto, "b.lin.weight", lambda weight: weight * 1.25), x)
    assert [found.layer for found in report.divergences] == ["b.lin"]


def test_a_fault_in_the_body_of_a_function_is_named_in_every_call(trace, with_functions):
    model, proto, x = with_functions
    wrong = onnx.ModelProto()
    wrong.CopyFrom(proto)
    for node in (node for function in wrong.functions for node in function.node if node.op_type == "Erf"):
        node.op_type = "Tanh"
    report = trace(model, wrong, x)
    assert [found.layer for found in report.divergences] == ["a.act", "b.act"]


class Head(nn.Module):
    """Outputs in a dict, some of them in a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.boxes = nn.Linear(6, 4)
        self.features = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"boxes": self.boxes(x), "features": (self.features(x), x * 2)}


@dataclass
class Found:
    boxes: Tensor
    score: Tensor


torch.export.register_dataclass(Found)


class Detector(nn.Module):
    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.give = give
        self.inlet = nn.Linear(4, 6)
        self.head = Head()
        self.score = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Any:
        found = self.head(self.inlet(x))
        return self.give(found["boxes"], self.score(sum(found["features"])))


class Recurrent(nn.Module):
    """An LSTM's tuple inside, a dict outside."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)
        self.outlet = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y, (hidden, cell) = self.lstm(self.inlet(x))
        return {"logits": self.outlet(y), "hidden": hidden, "cell": cell.sum(0)}


def as_dict(boxes: Tensor, score: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes, "score": score}


SEVERAL = {
    "dict": (lambda: Detector(as_dict), noise("several", 3, 4), "head.features", tuple(Exporter)),
    "tuple": (lambda: Detector(lambda *both: both), noise("several", 3, 4), "head.boxes", tuple(Exporter)),
    "dataclass": (lambda: Detector(Found), noise("several", 3, 4), "head.features", (Exporter.DYNAMO,)),
    "recurrent": (Recurrent, noise("recurrent", 2, 7, 4), "lstm", tuple(Exporter)),
}


@pytest.mark.parametrize(
    ("name", "exporter"), [(name, exporter) for name, case in SEVERAL.items() for exporter in case[3]]
)
def test_several_outputs_of_modules_and_models_are_all_compared(trace, name, exporter):
    build, x, layer, _ = SEVERAL[name]
    model = fill(build())
    report = trace(model, exported(model, (x,), exporter, opset_version=18), x)
    assert report.agrees, report.verdict
    assert len(report.outputs) == {"recurrent": 3}.get(name, 2)
    assert report.coverage.unmatched == {}
    wrong = trace(model, exported(damaged(model, layer), (x,), exporter, opset_version=18), x)
    assert wrong.first_divergence.layer == layer
    assert wrong.divergences[-1].healed.agrees


class Branches(nn.Module):
    """One module in both branches, twice in one of them, and behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 6)
        self.shared = nn.Linear(6, 6)
        self.other = nn.Linear(6, 6)
        self.outlet = nn.Linear(6, 3)

    def twice(self, x: Tensor) -> Tensor:
        return self.shared(self.shared(x))

    def once(self, x: Tensor) -> Tensor:
        return self.other(self.shared(x))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inlet(x)
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out the whole block only like this
            if torch.compiler.is_exporting():
                return self.outlet(torch.cond(x.sum() > 0, self.twice, self.once, (x,)) - 0.5 * self.shared(x + 1))
        y = self.twice(x) if bool(x.sum() > 0) else self.once(x)
        return self.outlet(y - 0.5 * self.shared(x + 1))


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_module_called_in_several_branches_is_followed_call_by_call(trace, sign, exporter):
    model, x = fill(Branches()), sign * noise("branches", 3, 4)
    report = trace(model, control_flow.export(model, (x,), exporter), x)
    assert report.agrees
    calls = [row.call for row in report.layers if row.layer == "shared" and row.status.value == "agrees"]
    assert sorted(calls) == list(range(len(calls)))
    assert len(calls) == (3 if bool(model.inlet(x).sum() > 0) else 2)
    wrong = trace(model, control_flow.export(damaged(model, "shared"), (x,), exporter), x)
    assert {found.layer for found in wrong.divergences} == {"shared"}
    assert len(wrong.divergences) == len(calls)
    assert wrong.divergences[-1].healed.agrees


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 8)
        self.query = nn.Linear(8, 8)
        self.key = nn.Linear(8, 8)
        self.outlet = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inlet(x)
        weights = (self.query(x) @ self.key(x).transpose(1, 2)).softmax(-1)
        return self.outlet(weights @ x + x), weights


DYNAMIC = {
    Exporter.TORCHSCRIPT: {"input_names": ["x"], "dynamic_axes": {"x": {0: "batch", 1: "length"}}},
    Exporter.DYNAMO: {"dynamic_shapes": ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length")},)},
}


@pytest.mark.parametrize("exporter", Exporter)
def test_dynamic_batch_and_length_are_compared_at_every_size(trace, exporter):
    model, example = fill(Attention()), noise("dynamic", 2, 5, 4)
    options = {"opset_version": 18, **DYNAMIC[exporter]}
    healthy = exported(model, (example,), exporter, **options)
    wrong = exported(damaged(model, "query"), (example,), exporter, **options)
    sizes = [noise("dynamic.other", *size, 4) for size in ((2, 5), (3, 9), (1, 2))]
    report = trace(model, healthy, sizes)
    assert report.agrees, report.verdict
    assert np.isfinite(report.outputs[0].shipped.max_abs)
    for x in sizes:
        assert [found.layer for found in trace(model, wrong, x).divergences] == ["query"]
