"""Which value is which tensor: evidence from values, weights and structure, and what must not be believed."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper
from torch import Tensor, nn

from layerdiff.align.names import affinity
from layerdiff.align.structure import best_pairing
from layerdiff.align.weights import Tie, _Weights, channel_factors, relation
from layerdiff.model import Evidence, Status
from layerdiff.operators import base_name, likeness, only_moves
from tests.conftest import with_initializer
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

WEIGHT = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
KERNEL = np.random.default_rng(1).normal(size=(8, 3, 3, 3)).astype(np.float32)


# Evidence from weights.


@pytest.mark.parametrize(
    "stored",
    [WEIGHT, WEIGHT.T, WEIGHT.reshape(6, 8), WEIGHT.reshape(-1), WEIGHT[[4, 5, 6, 7, 0, 1, 2, 3]]],
    ids=["same", "transposed", "reshaped", "flat", "gates in another order"],
)
def test_the_same_numbers_in_any_layout_are_an_exact_tie(stored: np.ndarray) -> None:
    assert relation(WEIGHT, np.ascontiguousarray(stored)) is Tie.EXACT


def test_a_kernel_with_a_factor_per_channel_is_a_scaled_tie() -> None:
    factors = np.linspace(0.2, 3, 8).astype(np.float32)
    folded = KERNEL * factors[:, None, None, None]
    assert relation(KERNEL, folded) is Tie.SCALED
    found, residual = channel_factors(KERNEL, folded)
    np.testing.assert_allclose(found, factors, rtol=1e-5)
    assert residual < 1e-5


@pytest.mark.parametrize("channel", [0, 7])
def test_a_kernel_with_one_corrupted_channel_is_still_tied(channel: int) -> None:
    damaged = KERNEL.copy()
    damaged[channel] = np.random.default_rng(5).normal(size=(3, 3, 3))
    assert relation(KERNEL, damaged) in (Tie.NEAR, Tie.SCALED)


def test_a_rounded_weight_is_tied() -> None:
    assert relation(WEIGHT, WEIGHT.astype(np.float16)) is not None


def test_an_unrelated_weight_of_the_same_shape_is_not_tied() -> None:
    other = np.random.default_rng(2).normal(size=KERNEL.shape).astype(np.float32)
    assert relation(KERNEL, other) is None


def test_an_array_of_zeros_is_tied_to_nothing() -> None:
    assert relation(KERNEL, np.zeros_like(KERNEL)) is None


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8])
def test_many_weights_of_a_shape_are_told_apart_as_each_alone(kind: type) -> None:
    rng = np.random.default_rng(3)
    shapes = [(8, 8), (8, 6), (6, 8), (16,)]
    parameters = {f"p{i}": rng.normal(size=shapes[i % 4]).astype(np.float32) for i in range(24)}
    weights = _Weights(SimpleNamespace(parameters=parameters))  # type: ignore[arg-type]
    for own, parameter in parameters.items():
        stored = (50 * parameter).astype(kind) if kind is np.int8 else parameter.astype(kind)
        tie = relation(parameter, stored)
        assert weights.relations(stored) == ({} if tie is None else {own: tie})
        assert weights.relations(np.ascontiguousarray(stored.T)) == ({} if tie is None else {own: tie})


# Evidence from structure.


def total(scores: np.ndarray, pairs: list[tuple[int, int]]) -> float:
    return float(sum(scores[i, j] for i, j in pairs))


def every_pairing(rows: int, columns: int) -> list[list[tuple[int, int]]]:
    """Every way to pair some rows with some columns without crossing."""
    return [
        list(zip(left, right, strict=True))
        for size in range(min(rows, columns) + 1)
        for left in itertools.combinations(range(rows), size)
        for right in itertools.combinations(range(columns), size)
    ]


matrices = hnp.arrays(
    np.float64, hnp.array_shapes(min_dims=2, max_dims=2, max_side=4), elements=st.integers(-4, 8).map(lambda n: n / 2)
)


@given(matrices)
def test_the_pairing_is_the_best_that_keeps_the_order(scores: np.ndarray) -> None:
    found = best_pairing(scores, 1.0)
    assert all(a < b and c < d for (a, c), (b, d) in itertools.pairwise(found))
    assert all(scores[pair] >= 1.0 for pair in found)
    allowed = [p for p in every_pairing(*scores.shape) if all(scores[pair] >= 1.0 for pair in p)]
    assert total(scores, found) == pytest.approx(max(total(scores, p) for p in allowed))


def test_nothing_below_the_threshold_is_paired() -> None:
    assert best_pairing(np.array([[0.5, 0.8], [0.1, 0.2]]), 0.9) == []


# Hints.


@pytest.mark.parametrize(
    ("op", "onnx_op", "expected"),
    [
        ("aten.relu_", "Relu", 1.0),
        ("aten.add.Tensor", "Add", 1.0),
        ("aten.convolution", "Relu", -1.0),
        ("aten.silu", "HardSwish", 0.5),
        ("aten.avg_pool2d", "MaxPool", 0.5),
        ("aten.some_new_operator", "Relu", 0.0),
        ("aten.relu", "SomeNewOperator", 0.0),
    ],
)
def test_operators_are_alike_as_far_as_is_known(op: str, onnx_op: str, expected: float) -> None:
    assert likeness(op, onnx_op) == expected


def test_operator_names_lose_namespace_overload_and_the_mark_of_in_place() -> None:
    assert base_name("aten.add_.Tensor") == "add"
    assert base_name("nn.LSTM") == "nn.LSTM"
    assert only_moves("aten.transpose.int")
    assert not only_moves("aten.mul.Tensor")


@pytest.mark.parametrize(
    ("layer", "scope", "expected"),
    [("a.b", "a.b", 1.0), ("a.b", "a", 0.5), ("a", "a.b", 0.5), ("a.b", "a.c", 0.0), ("a.b", "", 0.0)],
)
def test_a_scope_hints_at_a_layer_its_parent_and_its_children(layer: str, scope: str, expected: float) -> None:
    assert affinity(layer, scope) == expected


# All evidence together.


def named(report: Report) -> tuple[str, int] | None:
    first = report.first_divergence
    return None if first is None else (first.layer, first.call)


@pytest.mark.parametrize("treatment", [t for t in Treatment if t is not Treatment.RAW])
def test_the_accused_layer_does_not_depend_on_names_or_tools(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, treatment: Treatment
) -> None:
    report = trace(classifier, treat(broken, treatment), image)
    assert named(report) == ("block.0", 0)


@pytest.mark.parametrize("exporter", list(Exporter))
def test_scrambling_names_changes_no_row_of_a_healthy_report(
    trace: Callable[..., Report], classifier: nn.Module, image: Tensor, exporter: Exporter
) -> None:
    proto = export(classifier, (image,), exporter)
    plain, scrambled = trace(classifier, proto, image), trace(classifier, treat(proto, Treatment.SCRAMBLED), image)
    assert plain.agrees
    assert scrambled.agrees
    assert [(r.layer, r.call, r.status) for r in plain.layers] == [
        (r.layer, r.call, r.status) for r in scrambled.layers
    ]


def test_misleading_names_do_not_mislead(trace: Callable[..., Report], classifier: nn.Module, image: Tensor) -> None:
    proto = export(classifier, (image,), Exporter.TORCHSCRIPT)
    proto = with_initializer(proto, "block.0.weight", lambda weight: weight * 1.25)
    for node in proto.graph.node:
        node.name = f"/stem/{node.op_type}" if "block" in node.name else f"/block/block.0/{node.op_type}"
    assert named(trace(classifier, proto, image)) == ("block.0", 0)


def test_a_convolution_whose_batchnorm_was_folded_is_folded_not_wrong(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    assert "BatchNormalization" not in {node.op_type for node in healthy.graph.node}
    report = trace(classifier, healthy, image)
    rows = {row.layer: row for row in report.layers}
    assert report.agrees
    assert rows["stem"].status is Status.FOLDED
    assert "norm" in rows["stem"].reason
    assert rows["norm"].status is Status.AGREES
    assert rows["norm"].evidence is Evidence.VALUES


class Twins(nn.Module):
    """Two layers with one weight, called in turns with two others that have equal numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.third = nn.Linear(6, 6)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        x = torch.tanh(self.second(x))
        return torch.tanh(self.third(x))


@pytest.mark.parametrize("layer", ["first", "second", "third"])
def test_layers_with_equal_weights_are_told_apart(trace: Callable[..., Report], layer: str) -> None:
    model = fill(Twins())
    with torch.no_grad():
        model.second.weight.copy_(model.first.weight)
    broken = fill(Twins())
    broken.third.weight = nn.Parameter(broken.first.weight.detach().clone())
    with torch.no_grad():
        broken.second.weight.copy_(broken.first.weight)
        getattr(broken, layer).weight.mul_(1.5)
    x = noise("align.twins", 3, 6)
    assert named(trace(model, export(broken, (x,), Exporter.TORCHSCRIPT), x)) == (layer, 0)


class Again(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(4):
            x = x + torch.tanh(self.step(x))
        return x


@pytest.mark.parametrize("call", range(4))
def test_the_wrong_call_of_a_repeated_module_is_named_by_its_number(trace: Callable[..., Report], call: int) -> None:
    model, x = fill(Again()), noise("align.again", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    heavy = [node for node in proto.graph.node if node.op_type in ("Gemm", "MatMul")]
    weight = next(t for t in proto.graph.initializer if t.name == heavy[call].input[1])
    proto.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.5), "other"))
    heavy[call].input[1] = "other"
    assert named(trace(model, proto, x)) == ("step", call)


class Sides(nn.Module):
    """Independent branches of one kind and shape, joined without regard to their order."""

    def __init__(self) -> None:
        super().__init__()
        self.sides = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.relu(side(x)) for side in self.sides]).sum(0)


@pytest.mark.parametrize("side", range(4))
def test_parallel_branches_of_one_shape_are_told_apart(trace: Callable[..., Report], side: int) -> None:
    model, broken, x = fill(Sides()), fill(Sides()), noise("align.sides", 3, 6)
    with torch.no_grad():
        broken.sides[side].weight.mul_(1.5)
    assert named(trace(model, export(broken, (x,), Exporter.TORCHSCRIPT), x)) == (f"sides.{side}", 0)


@pytest.mark.parametrize("kept", [0, 1], ids=["the shortcut goes on", "the branch goes on"])
def test_a_dead_tensor_with_the_right_numbers_is_not_trusted(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, kept: int
) -> None:
    """The Add of the residual join still computes the right sum, and nobody reads it."""
    join = next(node for node in healthy.graph.node if node.op_type == "Add")
    for node in healthy.graph.node:
        if join.output[0] in node.input:
            node.input[:] = [join.input[kept] if name == join.output[0] else name for name in node.input]
    report = trace(classifier, healthy, image)
    assert not report.agrees
    (found,) = report.divergences
    assert found.layer == ""
    assert found.op == "aten.add.Tensor"
    assert found.healed.agrees


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(5, 6, batch_first=True)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gru(x)[0])


def test_gates_in_the_order_of_onnx_are_no_divergence(trace: Callable[..., Report]) -> None:
    model, x = fill(Recurrent()), noise("align.gru", 2, 4, 5)
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)
    assert report.agrees
    assert {r.layer: r.status for r in report.layers}["gru"] is Status.AGREES


def test_gates_in_the_order_of_torch_accuse_the_recurrent_layer(trace: Callable[..., Report]) -> None:
    model, x = fill(Recurrent()), noise("align.gru", 2, 4, 5)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    gru = next(node for node in proto.graph.node if node.op_type == "GRU")

    def swapped(weight: np.ndarray) -> np.ndarray:
        update, reset, new = np.split(weight, 3, axis=1)
        return np.concatenate([reset, update, new], axis=1)

    for name in gru.input[1:3]:
        proto = with_initializer(proto, name, swapped)
    assert named(trace(model, proto, x)) == ("gru", 0)


@pytest.mark.parametrize("part", ["conv", "norm"])
def test_of_a_folded_pair_the_weights_tell_which_is_guilty(trace: Callable[..., Report], part: str) -> None:
    def build() -> nn.Sequential:
        net = nn.Sequential()
        net.add_module("conv", nn.Conv2d(3, 8, 3, bias=False))
        net.add_module("norm", nn.BatchNorm2d(8))
        net.add_module("act", nn.ReLU())
        net.add_module("head", nn.Conv2d(8, 4, 1))
        return settle(fill(net), noise("align.fold.batch", 8, 3, 9, 9))

    model, broken, x = build(), build(), noise("align.fold", 2, 3, 9, 9)
    with torch.no_grad():
        if part == "conv":
            broken.conv.weight[3] += 0.2 * noise("align.fold.damage", 3, 3, 3)
        else:
            broken.norm.running_var.mul_(1.5)
    proto = export(broken, (x,), Exporter.TORCHSCRIPT)
    assert "BatchNormalization" not in {node.op_type for node in proto.graph.node}
    assert named(trace(model, proto, x)) == (part, 0)
