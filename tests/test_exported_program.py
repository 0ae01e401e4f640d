"""An ExportedProgram is named like the module it was made from."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import pytest
import torch
from onnx import helper
from torch import Tensor, nn

from layerdiff.sides.exported import module_of
from tests.conftest import graph_of, with_initializer
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from layerdiff.report import Report


def program_of(model: nn.Module, *args: Tensor, **kwargs: Tensor) -> torch.export.ExportedProgram:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals
        return torch.export.export(model, args, kwargs)


@pytest.mark.parametrize("name", ["resnet", "yolo", "gpt", "speech", "refiner"])
def test_an_exported_program_is_reported_like_its_module(trace: Callable[..., Report], name: str) -> None:
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    of_module = trace(sample.model, proto, sample.inputs)
    of_program = trace(program_of(sample.model, *sample.inputs), proto, sample.inputs)
    assert of_program.agrees
    assert of_program.warnings == ()
    rows = [(row.layer, row.call, row.type, row.status) for row in of_module.layers]
    assert [(row.layer, row.call, row.type, row.status) for row in of_program.layers] == rows


def test_a_fault_is_named_by_the_original_module(
    trace: Callable[..., Report], classifier: nn.Module, image: Tensor, broken: onnx.ModelProto
) -> None:
    report = trace(program_of(classifier, image), broken, image)
    assert (report.first_divergence.layer, report.first_divergence.type) == ("block.0", "Conv2d")
    assert report.first_divergence.healed.agrees
    assert report.environment["reference"] == "ExportedProgram"


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, x: Tensor, *, gate: Tensor) -> Tensor:
        return self.inner(x) * gate.sigmoid()


def linear_times_gate(model: Gated) -> onnx.ModelProto:
    nodes = [
        helper.make_node("Gemm", ["x", "weight", "bias"], ["y"], transB=1),
        helper.make_node("Sigmoid", ["gate"], ["open"]),
        helper.make_node("Mul", ["y", "open"], ["out"]),
    ]
    stored = {name: tensor.detach().numpy() for name, tensor in model.inner.named_parameters()}
    return graph_of(nodes, {"x": (2, 3), "gate": (2, 3)}, ["out"], stored)


@pytest.mark.parametrize("swapped", [False, True])
def test_the_arguments_keep_their_names(trace: Callable[..., Report], *, swapped: bool) -> None:
    model, x, gate = Gated().eval(), torch.randn(2, 3), torch.randn(2, 3)
    program = program_of(model, x, gate=gate)
    proto = linear_times_gate(model)
    wrong = with_initializer(proto, "weight", lambda weight: weight + 1)
    given = {"gate": gate, "x": x} if swapped else {"x": x, "gate": gate}
    assert trace(program, proto, given).agrees
    assert trace(program, wrong, given).first_divergence.layer == "inner"


def test_where_the_modules_cannot_be_rebuilt_the_root_is_named_and_the_report_says_so(
    trace: Callable[..., Report],
    classifier: nn.Module,
    image: Tensor,
    broken: onnx.ModelProto,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(_: object) -> None:
        raise AssertionError("call_module is not there")

    monkeypatch.setattr(torch.export, "unflatten", fails)
    report = trace(program_of(classifier, image), broken, image)
    assert (report.first_divergence.layer, report.first_divergence.op) == ("", "aten.convolution")
    assert "torch.export.unflatten could not rebuild the modules (AssertionError: call_module" in report.warnings[0]


def test_the_program_itself_is_left_alone(classifier: nn.Module, image: Tensor) -> None:
    program = program_of(classifier, image)
    before = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    code = str(program.graph)
    module, _ = module_of(program)
    module(image)
    assert str(program.graph) == code
    assert all(torch.equal(program.state_dict[name], tensor) for name, tensor in before.items())
