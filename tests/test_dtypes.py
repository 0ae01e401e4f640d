"""Number formats: what can be fetched is compared, also through a Cast; what cannot says why."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.errors import BackendError
from layerdiff.graph import Graph, Injection
from tests.conftest import graph_of
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

NARROW = ("bfloat16", "float8_e4m3fn", "float8_e5m2")


class Rounded(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class Narrow(nn.Module):
    """A value that is kept in a narrow format on its way."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 6)
        self.cast = Rounded(dtype)
        self.outlet = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(self.cast(self.inlet(x)).float())


class Spectrum(nn.Module):
    """Complex numbers inside and as an output."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(16, 16)
        self.mixing = nn.Parameter(torch.complex(noise("mixing.real", 9, 9), noise("mixing.imag", 9, 9)) / 9)
        self.outlet = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.fft.rfft(self.inlet(x)) @ self.mixing
        return self.outlet(z.abs()), z


class Phase(nn.Module):
    """Complex numbers as an input."""

    def forward(self, z: Tensor) -> Tensor:
        return torch.view_as_real(z * (2 + 1j)).sum(-1)


class Short(nn.Module):
    """A short-time Fourier transform, seen as pairs of real numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(64, 64)
        self.outlet = nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        z = torch.stft(self.inlet(x), 16, window=torch.hann_window(16), return_complex=True)
        return self.outlet(torch.view_as_real(z).pow(2).sum(-1).transpose(1, 2))


class Tokens(nn.Module):
    """Integers and booleans, inside and as outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 6)
        self.inlet = nn.Linear(6, 6)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        counted = (ids > 3) & mask
        x = self.inlet(self.table((ids * 2) % 20)).masked_fill(~counted.unsqueeze(-1), 0.0)
        return x, counted, ids.cumsum(1).to(torch.int32), (x > 0).any(-1)


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 6)
        self.act = nn.GELU()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.act(self.inlet(x)))


IDS, MASK = torch.arange(10).view(2, 5), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]).bool()
BOTH, DYNAMO = (Exporter.TORCHSCRIPT, Exporter.DYNAMO), (Exporter.DYNAMO,)
CASES = {
    "complex": (Spectrum, (noise("complex", 3, 16),), DYNAMO),
    "stft": (Short, (noise("stft", 3, 64),), DYNAMO),
    "integers and booleans": (Tokens, (IDS, MASK), BOTH),
    "float16": (lambda: Half().half(), (noise("half", 4, 6).half(),), BOTH),
}
WAYS = [(name, exporter) for name, (_, _, exporters) in CASES.items() for exporter in exporters]


def damaged(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.inlet.weight[0] *= 1.5
    return other


@pytest.mark.parametrize(("name", "exporter"), WAYS)
def test_a_healthy_export_in_other_formats_is_quiet_and_a_fault_is_named(trace, name, exporter):
    build, inputs, _ = CASES[name]
    model = build().eval()
    clean = trace(model, export(model, inputs, exporter), inputs)
    assert clean.agrees, clean.verdict
    assert clean.coverage.unmatched == {}
    report = trace(model, export(damaged(model), inputs, exporter), inputs)
    assert report.first_divergence.layer == "inlet"
    assert report.first_divergence.healed.agrees


def _narrow_export(model: nn.Module, x: Tensor):
    return torch.onnx.export(model, (x,), dynamo=True, opset_version=20, verbose=False).model_proto


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.filterwarnings("ignore")
def test_a_tensor_that_numpy_cannot_hold_is_compared_through_a_cast(trace, name):
    model, x = fill(Narrow(getattr(torch, name))), noise("narrow", 4, 6)
    report = trace(model, _narrow_export(model, x), x)
    assert report.agrees
    row = next(row for row in report.layers if row.layer == "cast")
    assert row.status.value == "agrees"
    assert row.accumulated.max_abs == 0


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.filterwarnings("ignore")
def test_a_fault_before_a_narrow_value_is_named(trace, name):
    model, x = fill(Narrow(getattr(torch, name))), noise("narrow", 4, 6)
    first = trace(model, _narrow_export(damaged(model), x), x).first_divergence
    assert (first.layer, first.healed.agrees) == ("inlet", True)


@pytest.mark.parametrize("name", NARROW[:2])
@pytest.mark.filterwarnings("ignore")
def test_a_fault_in_a_narrow_value_is_named(trace, name):
    model, x = fill(Narrow(getattr(torch, name))), noise("narrow", 4, 6)
    coarser = copy.deepcopy(model)
    coarser.cast.forward = lambda value: (value * 0.5).to(model.cast.dtype)
    report = trace(model, _narrow_export(coarser, x), x)
    assert report.first_divergence.layer == "cast"
    assert report.first_divergence.healed.agrees


def test_complex_inputs_are_fed_as_pairs(trace):
    z = torch.complex(noise("phase.real", 3, 4), noise("phase.imag", 3, 4))
    nodes = [  # (a + bi)(2 + i) = (2a - b) + (a + 2b)i, and both parts together are 3a + b
        helper.make_node("Split", ["z"], ["re", "im"], axis=-1),
        helper.make_node("Mul", ["re", "three"], ["tripled"]),
        helper.make_node("Add", ["im", "tripled"], ["both"]),
        helper.make_node("Squeeze", ["both", "last"], ["y"]),
    ]
    constants = {"three": np.array(3, np.float32), "last": np.array([-1], np.int64)}
    assert trace(Phase(), graph_of(nodes, {"z": (3, 4, 2)}, ["y"], constants), z).agrees


@pytest.mark.parametrize("kind", ["BFLOAT16", "FLOAT8E4M3FN", "FLOAT8E5M2", "INT4", "UINT4"])
def test_narrow_tensors_can_be_fetched_and_fed(kind):
    to = getattr(TensorProto, kind)
    nodes = [helper.make_node("Cast", ["x"], ["narrow"], to=to), helper.make_node("Cast", ["narrow"], ["y"], to=1)]
    graph = Graph(graph_of(nodes, {"x": (3,)}, ["y"], opsets=[helper.make_opsetid("", 21)]))
    x = np.array([1, 2, 3], np.float32)

    def run(injections=(), **kept):
        model = graph.rewritten(["narrow", "y"], injections, **kept)
        feeds = {} if kept else {"x": x}
        feeds |= {i.feed: i.value for i in injections} | kept.get("sources", {})
        return OnnxRuntime().open(model, Optimisation.NONE).run(feeds)

    assert graph.computed == ("narrow", "y")
    np.testing.assert_array_equal(run()["narrow"], x)
    given = run()["narrow"].dtype.type(2) * np.ones(3, run()["narrow"].dtype)
    np.testing.assert_array_equal(run([Injection("narrow", given)])["y"], [2, 2, 2])
    model = graph.rewritten(["y"], nodes=[1], sources={"narrow": given})
    np.testing.assert_array_equal(OnnxRuntime().open(model, Optimisation.NONE).run({"narrow": given})["y"], [2, 2, 2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_format_without_kernels_is_refused_with_the_reason(trace, dtype):
    model, x = Half().to(dtype).eval(), noise("half", 4, 6).to(dtype)
    with pytest.raises(BackendError, match="computes this operator in other number formats only"):
        trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x)) + x
        return x


@pytest.mark.parametrize(("kind", "name"), [(TensorProto.BFLOAT16, "bfloat16"), (TensorProto.FLOAT8E4M3FN, "float8")])
def test_weights_stored_in_a_narrow_format_are_said_to_be_the_reason(trace, kind, name, capsys):
    model, x = fill(Stack()), noise("stack", 4, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    proto.opset_import[0].version = 19
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.name.endswith("weight"):
            array = numpy_helper.to_array(tensor)
            casts.append(helper.make_node("Cast", [f"{tensor.name}_stored"], [tensor.name], to=TensorProto.FLOAT))
            tensor.CopyFrom(helper.make_tensor(casts[-1].input[0], kind, array.shape, array.flatten()))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    report = trace(model, proto, x)
    assert report.divergences == ()
    assert report.diffuse.format == name
    assert {layer.layer for layer in report.diffuse.layers} == {f"layers.{i}" for i in range(6)}
    assert capsys.readouterr().out == ""


class Ports(nn.Module):
    """Inputs and outputs that numpy cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inlet(x.float()).to(x.dtype)


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.filterwarnings("ignore")
def test_inputs_and_outputs_that_numpy_cannot_hold_are_fed_and_compared(trace, name):
    model, x = fill(Ports()), noise("ports", 4, 6).to(getattr(torch, name))
    report = trace(model, _narrow_export(model, x), x)
    assert report.agrees, report.verdict
    assert report.outputs[0].shipped.max_abs == 0
    first = trace(model, _narrow_export(damaged(model), x), x).first_divergence
    assert (first.layer, first.healed.agrees) == ("inlet", True)
