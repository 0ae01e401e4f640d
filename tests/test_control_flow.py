"""Loops, scans and branches, however they were written: every iteration is compared, a fault inside is named."""

from __future__ import annotations

import copy
from importlib import import_module
from typing import TYPE_CHECKING, List  # noqa: UP035  the script compiler knows only this one

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from layerdiff.capture import capture
from tests.conftest import graph_of
from tests.zoo import control_flow
from tests.zoo.exports import Exporter
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    import onnx


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lin = nn.Linear(6, 6)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.lin(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(4, 6)
        self.cell = Cell()
        self.other = Cell()
        self.outlet = nn.Linear(6, 3)


class Appending(Net):
    """A list that grows in a loop: SequenceInsert in the body, ConcatFromSequence behind it."""

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        x = self.inlet(x)
        found: List[Tensor] = []  # noqa: UP006
        for _ in range(int(steps)):
            x = self.cell(x) + 0.5 * x
            found.append(x)
        return self.outlet(torch.stack(found))


class LoopInIfInLoop(Net):
    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        x = self.inlet(x)
        for _ in range(int(steps)):
            if bool(x[0, 0] > 0):
                x = self.other(x) - x
            else:
                for _ in range(int(steps)):
                    x = self.cell(x) - 0.2 * x
        return self.outlet(x)


class UntilLarge(Net):
    """The number of iterations comes from the values; a list of results is not needed."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inlet(x)
        while bool(x.abs().sum() < 40.0):
            x = x + self.cell(x) + 0.3
        return self.outlet(x), x


class WhileLoop(Net):
    def forward(self, x: Tensor) -> Tensor:
        def going(step: Tensor, x: Tensor) -> Tensor:
            return step < 3

        def body(step: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            return step + 1, self.cell(x) + x

        while_loop = import_module("torch._higher_order_ops.while_loop").while_loop
        return self.outlet(while_loop(going, body, (torch.tensor(0), self.inlet(x)))[1])


class Scanning(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(carried: Tensor, row: Tensor) -> tuple[Tensor, Tensor]:
            found = self.cell(carried) + row
            return found, found * 2

        scan = import_module("torch._higher_order_ops.scan").scan
        x = self.inlet(x)
        last, rows = scan(step, 0.5 * x[:, 0], x, dim=1, reverse=True)
        return self.outlet(rows), last


class CondInCond(Net):
    def forward(self, x: Tensor) -> Tensor:
        def inner(x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 1e3, self.other, self.cell, (x,)) + x

        def outer(x: Tensor) -> Tensor:
            return self.other(x)

        return self.outlet(torch.cond(x.abs().mean() > 0, inner, outer, (self.inlet(x),)))


STEPS = torch.tensor(3)
CASES = {
    "appending": (Appending, Exporter.TORCHSCRIPT, (noise("flow", 2, 4), STEPS)),
    "loop in if in loop": (LoopInIfInLoop, Exporter.TORCHSCRIPT, (noise("flow", 2, 4), STEPS)),
    "until large": (UntilLarge, Exporter.TORCHSCRIPT, (noise("flow", 2, 4),)),
    "while_loop": (WhileLoop, Exporter.DYNAMO, (noise("flow", 2, 4),)),
    "scan": (Scanning, Exporter.DYNAMO, (noise("flow", 2, 5, 4),)),
    "cond in cond": (CondInCond, Exporter.DYNAMO, (noise("flow", 2, 4),)),
}


def exported(name: str, *, damaged: bool) -> tuple[nn.Module, onnx.ModelProto, tuple[Tensor, ...]]:
    """The healthy model with its export, or with that of a copy whose `cell.lin` is damaged."""
    kind, exporter, inputs = CASES[name]
    model = fill(kind())
    shipped = copy.deepcopy(model)
    if damaged:
        with torch.no_grad():
            shipped.cell.lin.bias.add_(0.05)
    return model, control_flow.export(shipped, inputs, exporter), inputs


@pytest.mark.parametrize("name", CASES)
def test_every_iteration_of_a_healthy_export_is_compared(trace, name):
    model, proto, inputs = exported(name, damaged=False)
    assert any(node.op_type in ("If", "Loop", "Scan") for node in proto.graph.node)
    report = trace(model, proto, inputs)
    assert report.agrees, report.verdict
    assert report.divergences == report.warnings == ()
    inside = [row for row in report.layers if row.layer == "cell.lin"]
    assert len(inside) == sum(call.layer == "cell.lin" for call in capture(model, inputs, {}).calls) > 0
    assert {row.status.value for row in inside} == {"agrees"}


@pytest.mark.parametrize("name", CASES)
def test_a_fault_in_a_body_is_named_in_the_first_iteration(trace, name):
    report = trace(*exported(name, damaged=True))
    first = report.first_divergence
    assert (first.layer, first.call) == ("cell.lin", 0)
    assert report.divergences[-1].healed.agrees


def _scanning(directions: dict[str, list[int]], opset: int) -> onnx.ModelProto:
    """A running sum over the second axis of x, each state given along the last axis."""
    ports = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in ("s", "e", "t", "each")}
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Mul", ["t", "e"], ["each"])],
        "body",
        [ports["s"], ports["e"]],
        [ports["t"], ports["each"]],
    )
    axes = {"scan_input_axes": [1], "scan_output_axes": [1]}
    scan = helper.make_node("Scan", ["start", "x"], ["last", "all"], num_scan_inputs=1, body=body, **axes, **directions)
    return graph_of([scan], {"start": (2,), "x": (2, 3)}, ["last", "all"], opsets=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize(
    "directions", [{}, {"scan_input_directions": [1]}, {"scan_output_directions": [1]}], ids=["on", "back", "reversed"]
)
def test_a_scan_laid_flat_gives_the_same_numbers(laid_flat, opset, directions):
    model = _scanning(directions, opset)
    feeds = {"start": np.array([1, 2], np.float32), "x": np.array([[1, 2, 3], [4, 5, 7]], np.float32)}
    before, after, flat = laid_flat(model, feeds)
    assert {node.op_type for node in flat.graph.node}.isdisjoint({"Scan"})
    for name, array in before.items():
        np.testing.assert_array_equal(array, after[name])
    assert after["all"].shape == (2, 3)


def _optional(*, given: bool) -> onnx.ModelProto:
    """A value that may be absent: what it holds times two if it is there, else the input."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2])
    source = ["x"] if given else []
    branch = {
        "then_branch": helper.make_graph(
            [
                helper.make_node("OptionalGetElement", ["maybe"], ["held"]),
                helper.make_node("Add", ["held", "held"], ["a"]),
            ],
            "there",
            [],
            [helper.make_tensor_value_info("a", TensorProto.FLOAT, [2])],
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Neg", ["x"], ["b"])],
            "absent",
            [],
            [helper.make_tensor_value_info("b", TensorProto.FLOAT, [2])],
        ),
    }
    nodes = [
        helper.make_node("Optional", source, ["maybe"], type=tensor),
        helper.make_node("OptionalHasElement", ["maybe"], ["there"]),
        helper.make_node("If", ["there"], ["y"], **branch),
    ]
    return graph_of(nodes, {"x": (2,)}, ["y"], opsets=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("given", [True, False])
def test_an_optional_value_is_followed(trace, given):
    class Maybe(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + x if given else -x

    report = trace(Maybe(), _optional(given=given), torch.tensor([1.0, -3.0]))
    assert report.agrees
    wrong = trace(Maybe(), _optional(given=not given), torch.tensor([1.0, -3.0]))
    if given:  # what is not there cannot be taken: no run shows that the other branch would be right
        assert wrong.first_divergence.op == "aten.add.Tensor"
    else:
        assert wrong.first_divergence.onnx_ops == ("If",)


def test_a_body_that_is_too_large_stays_whole_and_the_report_says_so(trace, monkeypatch):
    monkeypatch.setattr("layerdiff.flatten.MAX_NODES", 5)
    model, proto, inputs = exported("while_loop", damaged=True)
    report = trace(model, proto, inputs)
    assert any("was examined as one node" in text for text in report.warnings)
    assert not report.agrees
