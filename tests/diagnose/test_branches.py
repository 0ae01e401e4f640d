"""An If that takes the other branch than the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import layerdiff
from tests.zoo.control_flow import export
from tests.zoo.exports import Exporter
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

    Trace = Callable[..., layerdiff.Report]


class Gate(nn.Module):
    """One of two layers, by the mean of what comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.bold, self.shy = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.1:
            return torch.tanh(self.bold(x))
        return torch.sigmoid(self.shy(x))


class Net(nn.Module):
    """A gate between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(8, 8), Gate(), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gate(torch.relu(self.first(x))))


X = noise("branches.x", 3, 8)


def net() -> nn.Module:
    return fill(Net()).eval()


def exported() -> onnx.ModelProto:
    return export(net(), (X,), Exporter.TORCHSCRIPT)


def exchanged(proto: onnx.ModelProto) -> None:
    names = {"then_branch": "else_branch", "else_branch": "then_branch"}
    for attribute in the_if(proto).attribute:
        attribute.name = names[attribute.name]


def inverted(proto: onnx.ModelProto) -> None:
    node = the_if(proto)
    place = list(proto.graph.node).index(node)
    proto.graph.node.insert(place, helper.make_node("Not", [node.input[0]], ["opposite"]))
    the_if(proto).input[0] = "opposite"


def another_threshold(proto: onnx.ModelProto) -> None:
    node = next(n for n in proto.graph.node if n.op_type == "Greater")
    proto.graph.initializer.append(numpy_helper.from_array(torch.tensor(1e6).numpy(), "too_much"))
    node.input[1] = "too_much"


def the_if(proto: onnx.ModelProto) -> onnx.NodeProto:
    return next(node for node in proto.graph.node if node.op_type == "If")


@pytest.mark.parametrize("damage", [exchanged, inverted, another_threshold])
def test_an_if_that_takes_the_other_branch_is_told_so_and_no_layer_inside_is_accused(
    trace: Trace, damage: Callable[[onnx.ModelProto], None]
) -> None:
    proto = exported()
    damage(proto)
    report = trace(net(), proto, X)
    (found,) = report.divergences
    (cause,) = report.diagnoses
    assert (found.layer, found.kind, found.onnx_ops) == ("gate", "exchanged", ("If",))
    assert (cause.cause, cause.layer, cause.verified) == ("order", "gate", True)
    assert the_if(proto).name in cause.summary
    assert found.healed is not None
    assert found.healed.agrees
    assert "Proven: with them exchanged the final outputs agree" in report.verdict


def test_a_wrong_weight_inside_the_branch_that_is_taken_is_still_that(trace: Trace) -> None:
    model = net()
    with torch.no_grad():
        model.gate.bold.weight.mul_(1.5)
        model.gate.shy.weight.mul_(1.5)
    report = trace(model, exported(), X)
    assert report.first_divergence is not None
    assert report.first_divergence.layer in ("gate.bold", "gate.shy")
    assert report.diagnoses[0].cause == "weights"


def test_a_healthy_if_is_quiet(trace: Trace) -> None:
    assert trace(net(), exported(), X).agrees


def test_the_finding_is_saved_and_loaded(trace: Trace, tmp_path: Path) -> None:
    proto = exported()
    exchanged(proto)
    report = trace(net(), proto, X)
    report.save(tmp_path / "report.json")
    assert layerdiff.load(tmp_path / "report.json").verdict == report.verdict
