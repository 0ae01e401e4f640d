"""Traps that other tools fell into, from the field notes: each is a small model and what must be said of it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

from layerdiff.model import Kind, Status, Tolerance
from tests.conftest import graph_of, with_initializer
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

Trace = "Callable[..., Report]"


class Function(nn.Module):
    """A forward that is a plain function of the children `a`, `b`, … and the inputs."""

    def __init__(self, body: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        self.body = body
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, *args: Tensor) -> Any:
        return self.body(self, *args)


def origins(report: Report) -> list[str]:
    return [divergence.layer for divergence in report.divergences]


def node_of(proto: onnx.ModelProto, op: str, number: int = 0) -> onnx.NodeProto:
    return [node for node in proto.graph.node if node.op_type == op][number]


def insert_before(proto: onnx.ModelProto, reader: onnx.NodeProto, slot: int, *nodes: onnx.NodeProto) -> None:
    """Put nodes on one edge; the last one's output is what the reader then reads."""
    at = list(proto.graph.node).index(reader)
    reader.input[slot] = nodes[-1].output[0]
    for offset, node in enumerate(nodes):
        proto.graph.node.insert(at + offset, node)


# In place.


def test_an_in_place_activation_is_no_divergence(trace: Trace) -> None:
    model = settle(
        fill(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Hardswish(inplace=True))),
        noise("traps.relu.batch", 8, 3, 8, 8),
    )
    x = noise("traps.relu", 2, 3, 8, 8)
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)
    assert report.agrees
    assert [row.status for row in report.layers].count(Status.FOLDED) <= 1


def test_an_update_of_a_view_that_the_export_kept_is_no_divergence(trace: Trace) -> None:
    def body(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, 0] = 0
        return self.b(y)

    model, x = fill(Function(body, a=nn.Linear(4, 4), b=nn.Linear(4, 3))), noise("traps.view", 3, 4)
    assert trace(model, export(model, (x,), Exporter.DYNAMO), x).agrees


def test_an_update_of_a_view_that_the_export_lost_accuses_the_module_that_made_it(trace: Trace) -> None:
    def kept(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        y[:, 0] = 5
        return self.b(y)

    def lost(self: nn.Module, x: Tensor) -> Tensor:
        return self.b(self.a(x))

    model, broken = (fill(Function(body, a=nn.Linear(4, 4), b=nn.Linear(4, 3))) for body in (kept, lost))
    x = noise("traps.view", 3, 4)
    report = trace(model, export(broken, (x,), Exporter.TORCHSCRIPT), x)
    assert origins(report) == [""]
    assert report.divergences[0].healed.agrees


# Names.


class Unit(nn.Module):
    shared = nn.SiLU()

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.act = self.shared

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv(x))


@pytest.mark.parametrize("unit", [0, 1, 2])
def test_one_activation_under_many_parents_is_accused_under_the_right_one(trace: Trace, unit: int) -> None:
    model, broken = (fill(nn.Sequential(Unit(), Unit(), Unit())) for _ in range(2))
    broken[unit].act = nn.ReLU()
    x = noise("traps.silu", 1, 4, 6, 6)
    report = trace(model, export(broken, (x,), Exporter.TORCHSCRIPT), x)
    assert origins(report) == [f"{unit}.act"]


# Faults that are scaled down and come back.


class Attenuated(nn.Module):
    """A ConvNeXt-like block behind a tiny layer scale, and a norm that amplifies what is left of it."""

    def __init__(self, scale: float, width: int = 16) -> None:
        super().__init__()
        self.scale = scale
        self.stem = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, width)
        self.act = nn.GELU()
        self.out = nn.Linear(width, width)
        self.last = nn.LayerNorm(width, eps=1e-14)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = 1 + 1e-3 * self.stem(x)
        x = x + self.scale * self.out(self.act(self.fc(self.norm(x))))
        return self.head(self.last(x))


SCALES = {"noise floor": (2.5e-6, "auto"), "fixed tolerance": (5e-5, Tolerance(rtol=0.0, atol=2e-4))}


@pytest.mark.parametrize(("scale", "tolerance"), SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("layer", ["fc", "out"])
def test_a_fault_that_is_scaled_away_and_amplified_again_is_found_where_it_is(
    trace: Trace, layer: str, scale: float, tolerance: Any
) -> None:
    model, broken, x = fill(Attenuated(scale)), fill(Attenuated(scale)), noise("cn.x", 4, 16)
    with torch.no_grad():
        getattr(broken, layer).weight.neg_()
    report = trace(model, export(broken, (x,), Exporter.TORCHSCRIPT), x, tolerance=tolerance)
    assert not report.agrees
    assert origins(report) == [layer]


@pytest.mark.parametrize(("scale", "tolerance"), SCALES.values(), ids=SCALES.keys())
def test_a_healthy_block_that_is_scaled_away_is_quiet(trace: Trace, scale: float, tolerance: Any) -> None:
    model, x = fill(Attenuated(scale)), noise("cn.x", 4, 16)
    assert trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x, tolerance=tolerance).agrees


# Healthy numbers that look wrong.


def test_logits_that_are_all_cancellation_are_quiet(trace: Trace) -> None:
    def body(self: nn.Module, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.a(x))
        return self.b(torch.cat([hidden, hidden.flip(-1)], -1))

    model = fill(Function(body, a=nn.Linear(64, 64), b=nn.Linear(128, 8, bias=False)), gain=4)
    with torch.no_grad():
        model.b.weight[:, 64:] = -model.b.weight[:, :64].flip(-1)
    x = noise("traps.cancel", 4, 64)
    for exporter in Exporter:
        report = trace(model, export(model, (x,), exporter), x)
        assert report.agrees, report.verdict
        assert model(x).abs().max() < 1e-4


def test_large_activations_are_quiet(trace: Trace) -> None:
    model = fill(nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)), gain=300)
    x = noise("traps.large", 4, 32)
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)
    assert model(x).abs().max() > 1e4
    assert report.agrees


@pytest.mark.parametrize("mask", [float("-inf"), -1e9, torch.finfo(torch.float32).min])
def test_attention_masks_are_quiet(trace: Trace, mask: float) -> None:
    def body(self: nn.Module, x: Tensor) -> Tensor:
        scores = self.a(x) @ self.b(x).transpose(-1, -2)
        hidden = scores.masked_fill(torch.ones(6, 6, dtype=torch.bool).triu(1), mask)
        return hidden.softmax(-1) @ x

    model, x = fill(Function(body, a=nn.Linear(8, 8), b=nn.Linear(8, 8))), noise("traps.mask", 2, 6, 8)
    for exporter in Exporter:
        assert trace(model, export(model, (x,), exporter), x).agrees


def test_rows_that_are_nan_on_both_sides_are_quiet(trace: Trace) -> None:
    def body(self: nn.Module, x: Tensor) -> Tensor:
        y = self.a(x)
        return y / (y - y[:, :1])

    model, x = fill(Function(body, a=nn.Linear(4, 4))), noise("traps.nan", 3, 4)
    with torch.no_grad():
        model.a.weight.zero_()
        model.a.bias.copy_(torch.tensor([0.0, 0.0, 1.0, 2.0]))
    assert model(x).isnan().any()
    assert trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x).agrees


def test_nan_on_one_side_is_found_where_it_begins(trace: Trace) -> None:
    model, x = fill(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU())), noise("traps.one", 3, 4)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)

    def poisoned(weight: np.ndarray) -> np.ndarray:
        weight = weight.copy()
        weight[1, 2] = np.nan
        return weight

    report = trace(model, with_initializer(proto, "2.weight", poisoned), x)
    assert origins(report) == ["2"]
    assert report.divergences[0].metrics.nonfinite_mismatches == 3
    assert report.divergences[0].healed.agrees


def test_infinity_where_the_model_is_finite_is_found(trace: Trace) -> None:
    model, x = fill(nn.Sequential(nn.Linear(4, 4), nn.Softplus(), nn.Linear(4, 2))), noise("traps.inf", 3, 4)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    report = trace(model, with_initializer(proto, "0.bias", lambda bias: np.full_like(bias, np.inf)), x)
    assert origins(report) == ["0"]


def test_a_finite_number_where_the_model_gives_infinity_is_found(trace: Trace) -> None:
    """A mask of -inf that the export wrote as a large number is another mask."""

    def masked(value: float) -> nn.Module:
        def body(self: nn.Module, x: Tensor) -> Tensor:
            return self.a(x).masked_fill(torch.eye(4, dtype=torch.bool), value)

        return fill(Function(body, a=nn.Linear(4, 4)))

    x = noise("traps.lost", 4, 4)
    report = trace(masked(float("-inf")), export(masked(-7.0), (x,), Exporter.TORCHSCRIPT), x)
    assert origins(report) == [""]
    assert "masked_fill" in report.divergences[0].op


TIES = {
    "argmax": lambda x: x.argmax(-1),
    "argmin": lambda x: x.argmin(1, keepdim=True),
    "argmax over all": lambda x: x.argmax(),
    "topk": lambda x: torch.topk(x, 4, dim=-1),
    "sort": lambda x: torch.sort(x, dim=-1, descending=True),
}


@pytest.mark.parametrize("body", TIES.values(), ids=TIES.keys())
@pytest.mark.parametrize("exporter", list(Exporter))
def test_the_order_among_equals_is_no_divergence(
    trace: Trace, body: Callable[[Tensor], Any], exporter: Exporter
) -> None:
    model = Function(lambda _, x: body(torch.round(x)))
    x = noise("traps.ties", 5, 40)
    assert trace(model, export(model, (x,), exporter), x).agrees


@pytest.mark.parametrize("swap", ["argmax", "topk"])
def test_the_position_of_another_element_is_a_divergence(trace: Trace, swap: str) -> None:
    right, wrong = {
        "argmax": (lambda x: x.argmax(-1), lambda x: x.argmin(-1)),
        "topk": (lambda x: torch.topk(x, 3)[1], lambda x: torch.topk(x, 3, largest=False)[1]),
    }[swap]
    x = noise("traps.position", 5, 40)
    report = trace(
        Function(lambda _, x: right(x)), export(Function(lambda _, x: wrong(x)), (x,), Exporter.TORCHSCRIPT), x
    )
    assert not report.agrees
    assert origins(report) == [""]


# Inserted nodes.


def forked() -> nn.Module:
    def body(self: nn.Module, x: Tensor) -> Tensor:
        x = torch.sin(self.stem(x))
        return self.head(torch.tanh(self.left(x)) + torch.exp(self.right(x)))

    children = {name: nn.Linear(6, 6) for name in ("stem", "left", "right", "head")}
    return fill(Function(body, **children))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_cast_inserted_before_one_of_two_readers_is_found_on_that_edge(trace: Trace, side: str) -> None:
    model, x = forked(), noise("traps.cast", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    reader = next(node for node in proto.graph.node if f"{side}.weight" in node.input)
    source = reader.input[0]
    down = helper.make_node("Cast", [source], ["half"], "inserted_down", to=onnx.TensorProto.FLOAT16)
    up = helper.make_node("Cast", ["half"], ["full"], "inserted_up", to=onnx.TensorProto.FLOAT)
    insert_before(proto, reader, 0, down, up)
    report = trace(model, proto, x)
    (found,) = report.divergences
    assert found.layer in (side, "")  # its reader, or the root that made what it reads
    assert found.kind is Kind.INSERTED
    assert found.onnx_nodes == ("inserted_down", "inserted_up")
    assert found.healed.agrees


def test_a_cast_inserted_before_all_readers_is_found_behind_its_maker(trace: Trace) -> None:
    model = fill(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)))
    x = noise("traps.cast", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    reader = next(node for node in proto.graph.node if "2.weight" in node.input)
    down = helper.make_node("Cast", [reader.input[0]], ["half"], "down", to=onnx.TensorProto.FLOAT16)
    insert_before(proto, reader, 0, down, helper.make_node("Cast", ["half"], ["full"], "up", to=onnx.TensorProto.FLOAT))
    (found,) = trace(model, proto, x).divergences
    assert found.layer == "1"
    assert found.kind is Kind.INSERTED
    assert found.onnx_ops == ("Cast", "Cast")


# Wrong operators.


OPERANDS = {
    "Sub": lambda x, y: x - y,
    "Div": lambda x, y: x / (2 + y.cos()),
    "Concat": lambda x, y: torch.cat([x, y], -1),
}


@pytest.mark.parametrize("op", OPERANDS)
def test_swapped_operands_accuse_the_module_that_joins_them(trace: Trace, op: str) -> None:
    def body(self: nn.Module, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.join(self.left(x), self.right(x))))

    join = Function(lambda _, x, y: OPERANDS[op](x, y))
    width = 12 if op == "Concat" else 6
    children = {"left": nn.Linear(6, 6), "right": nn.Linear(6, 6), "join": join, "head": nn.Linear(width, 3)}
    model, x = fill(Function(body, **children)), noise("traps.swap", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    node = node_of(proto, op)
    node.input[:] = list(node.input)[::-1]
    report = trace(model, proto, x)
    assert origins(report) == ["join"]
    assert report.divergences[0].healed.agrees


def test_a_corrupted_weight_of_the_right_name_is_not_taken_for_the_right_weight(trace: Trace) -> None:
    model, x = fill(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))), noise("traps.weight", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    report = trace(model, with_initializer(proto, "0.weight", lambda weight: weight + np.float32(0.5)), x)
    assert origins(report) == ["0"]


def test_two_faults_are_two_origins_in_order(trace: Trace) -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model, x = fill(nn.Sequential(*layers)), noise("traps.two", 3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    for name in ("6.weight", "2.weight"):
        proto = with_initializer(proto, name, lambda weight: weight * np.float32(1.3))
    report = trace(model, proto, x)
    assert origins(report) == ["2", "6"]
    assert report.divergences[-1].healed.agrees
    assert "Further origins: 6." in report.verdict


def test_two_faults_in_a_row_are_both_named(trace: Trace) -> None:
    layers = [layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.Tanh())]
    model, x = fill(nn.Sequential(*layers)), noise("traps.row", 3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    for name in ("2.weight", "4.weight"):
        proto = with_initializer(proto, name, lambda weight: weight * np.float32(1.3))
    assert origins(trace(model, proto, x)) == ["2", "4"]


# Layout.


def test_an_output_in_another_layout_is_not_silently_accepted(trace: Trace) -> None:
    conv = fill(nn.Sequential(nn.Conv2d(3, 4, 3)))
    model, last = Function(lambda s, x: s.a(x), a=conv), Function(lambda s, x: s.a(x).permute(0, 2, 3, 1), a=conv)
    x = noise("traps.layout", 2, 3, 6, 6)
    report = trace(model, export(last, (x,), Exporter.TORCHSCRIPT), x)
    assert not report.agrees
    assert report.divergences[0].onnx_ops[-1] == "Transpose"


def test_an_output_of_permuted_numbers_and_another_shape_is_refused_with_both_shapes(trace: Trace) -> None:
    conv = fill(nn.Sequential(nn.Conv2d(3, 5, 3)))
    model, last = Function(lambda s, x: s.a(x), a=conv), Function(lambda s, x: s.a(x).permute(0, 2, 3, 1), a=conv)
    x = noise("traps.layout", 2, 3, 6, 6)
    report = trace(model, export(last, (x,), Exporter.TORCHSCRIPT), x)
    assert not report.agrees
    (output,) = report.outputs
    assert (output.expected_shape, output.actual_shape) == ((2, 5, 4, 4), (2, 4, 4, 5))


def test_a_column_against_a_row_is_not_broadcast(trace: Trace) -> None:
    model, other = Function(lambda _, x: x * 0 + 1), Function(lambda _, x: x.t() * 0 + 1)
    x = noise("traps.broadcast", 4, 1)
    assert not trace(model, export(other, (x,), Exporter.TORCHSCRIPT), x).agrees


# Precision and types.


def test_a_model_in_half_precision_is_quiet(trace: Trace) -> None:
    model = fill(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 4))).half()
    x = noise("traps.half", 4, 16).half()
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)
    assert report.agrees, report.verdict


def test_integers_and_booleans_are_compared_exactly(trace: Trace) -> None:
    def counted(extra: int) -> nn.Module:
        return Function(lambda _, x: ((x > 0).sum(-1) + extra, x > 0))

    x = noise("traps.count", 4, 16)
    assert trace(counted(0), export(counted(0), (x,), Exporter.TORCHSCRIPT), x).agrees
    assert not trace(counted(0), export(counted(1), (x,), Exporter.TORCHSCRIPT), x).agrees


def test_a_position_table_that_was_folded_into_a_constant_is_no_divergence(trace: Trace) -> None:
    def body(self: nn.Module, ids: Tensor) -> Tensor:
        return self.head(self.words(ids) + self.places(torch.arange(ids.shape[1])))

    model = fill(Function(body, words=nn.Embedding(9, 6), places=nn.Embedding(12, 6), head=nn.Linear(6, 3)))
    ids = torch.arange(10).reshape(2, 5) % 9
    for exporter in Exporter:
        report = trace(model, export(model, (ids,), exporter), ids)
        assert report.agrees
        assert {"words", "places", "head"} <= {row.layer for row in report.layers}


def test_a_wrong_position_table_accuses_the_table(trace: Trace) -> None:
    def body(self: nn.Module, ids: Tensor) -> Tensor:
        return self.head(self.words(ids) + self.places(torch.arange(ids.shape[1])))

    def build() -> nn.Module:
        return fill(Function(body, words=nn.Embedding(9, 6), places=nn.Embedding(12, 6), head=nn.Linear(6, 3)))

    model, broken, ids = build(), build(), torch.arange(10).reshape(2, 5) % 9
    with torch.no_grad():
        broken.places.weight.mul_(1.5)
    for exporter in Exporter:
        assert origins(trace(model, export(broken, (ids,), exporter), ids)) == ["places"]


def test_numbers_hidden_in_a_constant_node_are_compared_too(trace: Trace) -> None:
    """An initializer as a Constant node: the weights are still found, and a wrong one is accused."""
    model, x = fill(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6))), noise("traps.weight", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    weight = next(t for t in proto.graph.initializer if t.name == "0.weight")
    changed = numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.1), "")
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["0.weight"], "constant", value=changed))
    proto.graph.initializer.remove(weight)
    assert origins(trace(model, proto, x)) == ["0"]


# Things that are no tensors.


def test_a_sequence_inside_of_the_graph_is_no_obstacle(trace: Trace) -> None:
    nodes = [
        helper.make_node("SplitToSequence", ["x", "sizes"], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "second"], ["part"]),
        helper.make_node("Exp", ["part"], ["y"], "exp"),
    ]
    constants = {"sizes": np.array([2, 4]), "second": np.int64(1)}
    proto = graph_of(nodes, {"x": (3, 6)}, ["y"], constants)
    x = noise("traps.sequence", 3, 6)
    assert trace(Function(lambda _, x: x.split([2, 4], 1)[1].exp()), proto, x).agrees
    report = trace(Function(lambda _, x: x.split([2, 4], 1)[1].sin()), proto, x)
    assert report.divergences[0].onnx_nodes == ("exp",)


def test_a_bfloat16_tensor_inside_of_the_graph_is_no_obstacle(trace: Trace) -> None:
    types = {"y": onnx.TensorProto.FLOAT}
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], "down", to=onnx.TensorProto.BFLOAT16),
        helper.make_node("Cast", ["low"], ["y"], "up", to=onnx.TensorProto.FLOAT),
    ]
    proto, x = graph_of(nodes, {"x": (3, 6)}, ["y"], types=types), noise("traps.bfloat16", 3, 6)
    assert trace(Function(lambda _, x: x.bfloat16().float()), proto, x).agrees
    assert not trace(Function(lambda _, x: x * 1), proto, x).agrees


class WithConstants(nn.Module):
    """Gives out numbers that do not depend on the input, too."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.register_buffer("grid", torch.arange(6.0).reshape(2, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.head(x), self.grid * 2, torch.ones(3)


@pytest.mark.parametrize("exporter", Exporter)
def test_outputs_that_are_constants_of_the_file_are_compared(trace: Trace, exporter: Exporter) -> None:
    model, x = fill(WithConstants()).eval(), noise("traps.constants", 2, 4)
    report = trace(model, export(model, (x,), exporter), x)
    assert report.agrees
    assert report.warnings == ()
    bad = copy.deepcopy(model)
    bad.grid[1, 2] = 7.0
    report = trace(model, export(bad, (x,), exporter), x)
    assert [output.agrees for output in report.outputs] == [True, False, True]
    assert len(report.divergences) == 1
    assert report.divergences[0].healed.agrees
    cause = report.diagnoses[0]
    assert (cause.cause, cause.verified) == ("weights", True)
    assert "a constant of the file, is not the model's: it differs in 1 of its 6 numbers" in cause.summary


@pytest.mark.parametrize("exporter", Exporter)
def test_an_output_that_was_frozen_at_the_export_is_told(trace: Trace, exporter: Exporter) -> None:
    x, head = noise("traps.frozen", 2, 4), fill(nn.Linear(4, 4))
    model = Function(lambda self, x: (self.a(x), x.abs().sum(1)), a=head).eval()
    frozen = Function(lambda self, x: (self.a(x), torch.tensor([1.0, 2.0])), a=head).eval()
    report = trace(model, export(frozen, (x,), exporter), x)
    assert [output.agrees for output in report.outputs] == [True, False]
    assert report.first_divergence.layer == ""
    assert report.diagnoses[0].cause == "baked-constant"
    assert "is a constant of the file; the model computes it" in report.diagnoses[0].summary


class LastStep(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.rnn = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, self.step])


@pytest.mark.parametrize("exporter", Exporter)
def test_the_last_state_that_nothing_reads_does_not_stand_for_the_last_step(trace: Trace, exporter: Exporter) -> None:
    model, x = fill(LastStep(-1)).eval(), noise("traps.steps", 2, 6, 4)
    first = LastStep(0).eval()
    first.load_state_dict(model.state_dict())
    report = trace(model, export(first, (x,), exporter), x)
    assert report.first_divergence.layer == ""
    assert report.first_divergence.op == "aten.select.int"
    assert report.diagnoses[0].verified
    assert report.diagnoses[0].summary == "Operand 1 of Gather is 0; the model's is -1."


def test_a_weight_that_a_batchnorm_was_folded_into_is_not_blamed_for_another_padding(trace: Trace) -> None:
    def net(mode: str) -> nn.Module:
        convolution = nn.Conv2d(4, 8, 3, padding=1, padding_mode=mode)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), convolution, nn.BatchNorm2d(8), nn.ReLU())

    x = noise("traps.padding", 2, 3, 9, 9)
    model, other = settle(fill(net("zeros")), x), net("reflect").eval()
    other.load_state_dict(model.state_dict())
    report = trace(model, export(other, (x,), Exporter.TORCHSCRIPT), x)
    assert report.first_divergence.layer == "2"
    assert report.diagnoses[0].cause == "padding"


class Heads(nn.Module):
    """A product for each head, written as an einsum, which one exporter keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(noise("traps.heads", 4, 8, 8))
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(torch.einsum("bhd,hde->bhe", x, self.weight)).flatten(1))


def test_a_wrong_weight_of_an_einsum_is_named_with_the_error_that_it_makes(trace: Trace) -> None:
    model, x = fill(Heads()).eval(), noise("traps.heads.x", 3, 4, 8)
    bad = copy.deepcopy(model)
    bad.weight.data[2, 3, 1] += 0.05
    proto = export(bad, (x,), Exporter.TORCHSCRIPT)
    assert "Einsum" in {node.op_type for node in proto.graph.node}
    report = trace(model, proto, x)
    first, cause = report.first_divergence, report.diagnoses[0]
    right, wrong = (torch.einsum("bhd,hde->bhe", x, made.weight.detach()) for made in (model, bad))
    assert first.metrics.max_abs == pytest.approx(float((wrong - right).abs().max()), rel=1e-3)
    assert (cause.cause, cause.verified) == ("weights", True)
    assert cause.summary == "weight differs in channel 2 of 4."
