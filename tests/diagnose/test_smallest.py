"""Of all changes that cure, the smallest is named: a wire, two operands, one node put back or two in another order."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import nn

import layerdiff
from tests.diagnose.edits import attributes, behind, constant, export_of, operands, without
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, images, seeded, vectors
from tests.realfaults.edit import copied, nodes_of
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from tests.diagnose.edits import Edit


class Standardised(nn.Module):
    """A norm written out, with its epsilon under the root."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 0.05)


class Square(nn.Module):
    """Tokens as many as features, so that a lost axis still broadcasts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return y - y.amax(-1, keepdim=True)


class Kept(nn.Module):
    """A choice between two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.one(x), self.other(x)
        return torch.where(x > 0.1, a, b)


class Three(nn.Module):
    """Three branches behind each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(12, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x).tanh(), self.two(x).sigmoid(), self.three(x).relu()], -1)


class Rolled(nn.Module):
    """What a slice and a concatenation make of a roll."""

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(3, -1)


class Gated(nn.Module):
    """A gate that is another layer's function."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.act = nn.Linear(12, 12), nn.Linear(12, 12), nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.gate(x)) * self.value(x).tanh()


class ReadTwice(nn.Module):
    """A pool behind a function, read in two layouts."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.pool = nn.Linear(12, 12), nn.ELU(), nn.AvgPool1d(2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.act(self.inner(x).transpose(1, 2)))
        return y.transpose(1, 2) + y.permute(2, 0, 1).transpose(0, 1).tanh()


class Steps(nn.Module):
    """A recurrent layer in both directions, whose weights a file keeps as one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(12, 4, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class GatedSlice(nn.Module):
    """Part of a tensor, gated by what is computed from it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :5]
        return torch.cat([self.gate(part).sigmoid() * part, part.abs()], -1)


GELU = vectors("gelu-in-parts", nn.GELU)
STANDARDISED = vectors("standardised", Standardised)
SQUARE = vectors("square", Square, lead=(12, 12))
KEPT = vectors("kept", Kept)
THREE = vectors("three-branches", Three)
ROLLED = vectors("rolled", Rolled)
GATED = vectors("gated-by-itself", Gated)
READ_TWICE = vectors("read-twice", ReadTwice)
GATED_SLICE = vectors("gated-slice", GatedSlice, width=24)
NORM = vectors("norm-applied", lambda: nn.LayerNorm(12))
STEPS = vectors("steps", Steps, width=8)
GROUPS = images("groups", lambda: nn.GroupNorm(2, 8))
PLAIN_GROUPS = images("groups", lambda: nn.GroupNorm(2, 8, affine=False))
ORDERED = images("norm-then-function", lambda: nn.Sequential(nn.InstanceNorm2d(8, affine=True), nn.Softplus()))


def in_the_order(first: str, second: str) -> Edit:
    """Two neighbours in each other's order: the first node that is followed by the other."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        for one in nodes_of(edited, first):
            other = next((n for n in nodes_of(edited, second) if one.output[0] in n.input), None)
            if other is not None:
                break
        else:
            raise AssertionError("the two are no neighbours")
        before, behind = copy.deepcopy(other), copy.deepcopy(one)
        at, to = (list(n.input).index(name) for n, name in ((one, _fed(one)), (other, one.output[0])))
        before.input[to], before.output[0] = one.input[at], one.output[0]
        behind.input[at], behind.output[0] = one.output[0], other.output[0]
        one.CopyFrom(before)
        other.CopyFrom(behind)
        return edited

    return edit


def _fed(node: onnx.NodeProto) -> str:
    """The operand that is not a parameter or a constant."""
    return next(name for name in node.input if "Constant" not in name and "::" not in name and "subject." not in name)


def root_before_the_epsilon(proto: onnx.ModelProto) -> onnx.ModelProto:
    return in_the_order("Add", "Sqrt")(proto)


def led_from(op: str, number: int, slot: int, source: str, of: int = 0) -> Edit:
    """An operand of a node that reads the result of another one."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        nodes_of(edited, op)[number].input[slot] = nodes_of(edited, source)[of].output[0]
        return edited

    return edit


def gate_from_elsewhere(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The product in SiLU reads another layer's Tanh, and nothing computes its Sigmoid any more."""
    edited = copied(proto)
    sigmoid = nodes_of(edited, "Sigmoid")[0]
    tanh = next(node for node in nodes_of(edited, "Tanh") if "subject" in node.name)
    product = next(node for node in nodes_of(edited, "Mul") if sigmoid.output[0] in node.input)
    product.input[list(product.input).index(sigmoid.output[0])] = tanh.output[0]
    edited.graph.node.remove(sigmoid)
    nodes = sorted(edited.graph.node, key=lambda node: node.output[0] in product.output)
    late = [product, *(n for n in edited.graph.node if n.op_type == "Mul" and product.output[0] in n.input)]
    rest = [node for node in nodes if node not in late]
    at = next(i for i, node in enumerate(rest) if tanh.output[0] in node.output) + 1
    ordered = [copy.deepcopy(node) for node in (*rest[:at], *late, *rest[at:])]
    del edited.graph.node[:]
    edited.graph.node.extend(ordered)
    return edited


def applied_twice(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A norm before the norm, under a name of its own; the second one keeps the names of the first."""
    edited = copied(proto)
    nodes = list(edited.graph.node)
    norm = nodes_of(edited, "LayerNormalization")[0]
    again = copy.deepcopy(norm)
    again.name, again.output[0] = f"{norm.name}.before", f"{norm.output[0]}.before"
    edited.graph.node.insert(nodes.index(norm), again)
    norm.input[0] = again.output[0]
    return edited


def ungated(proto: onnx.ModelProto) -> onnx.ModelProto:
    """What is joined is the part itself; the gate's nodes stay, and nothing reads them."""
    edited = copied(proto)
    product = nodes_of(edited, "Mul")[0]
    joined = nodes_of(edited, "Concat")[0]
    made = {name: node for node in edited.graph.node for name in node.output}
    joined.input[0] = next(name for name in product.input if made[name].op_type == "Slice")
    return edited


def reversed_branches(proto: onnx.ModelProto) -> onnx.ModelProto:
    return operands("Concat", (2, 1, 0))(proto)


FAULTS = (
    Seeded("half-of-a-gelu-lost", GELU, without("Mul", 1), "dropped-op", "gelu lacks Mul"),
    Seeded("product-of-a-gelu-lost", GELU, without("Mul", 0, 1), "dropped-op", "gelu lacks Mul"),
    Seeded("halved-twice", GELU, behind("Add", [("Mul", {"operands": ["seeded.half"]})], 1,
                                        **{"seeded.half": np.float32(0.5)}), "extra-op", "Mul"),
    Seeded("gelu-of-another-tensor", GELU, led_from("Mul", 0, 0, "Erf"), "order", "reads"),
    Seeded("epsilon-behind-the-root", STANDARDISED, root_before_the_epsilon, "epsilon"),
    Seeded("axis-not-kept", SQUARE, attributes("ReduceMax", keepdims=0), "axis", "in shape (12, 12)"),
    Seeded("branches-exchanged", KEPT, operands("Where", (0, 2, 1)), "order", "in each other's place"),
    Seeded("concatenated-backwards", THREE, reversed_branches, "order", "Concat"),
    Seeded("halves-of-a-roll", ROLLED, operands("Concat", (1, 0)), "order", "exchanged"),
    Seeded("gate-from-elsewhere", GATED, gate_from_elsewhere, "order", "which is not there", layer="subject.act"),
    Seeded("function-behind-the-pool", READ_TWICE, in_the_order("Elu", "AveragePool"), "order",
           "AveragePool comes before Elu"),
    Seeded("norm-applied-twice", NORM, applied_twice, "extra-op", "LayerNormalization"),
    Seeded("gate-bypassed", GATED_SLICE, ungated, "dropped-op", "is left out"),
    Seeded("recurrent-weights", STEPS, constant("LSTM", 2, lambda array: 0.9 * array), "weights", "weight_hh_l0",
           layer="subject.layer"),
    Seeded("affine-absent", GROUPS, export_of(PLAIN_GROUPS), "weights", "absent from the file"),
    Seeded("shift-before-scale", GROUPS, in_the_order("Mul", "Add"), "order", "Add comes before Mul"),
    Seeded("function-before-norm", ORDERED, in_the_order("InstanceNormalization", "Softplus"), "order",
           "Softplus comes before InstanceNormalization"),
)  # fmt: skip


@seeded(FAULTS)
def test_the_smallest_change_that_cures_is_named_and_proven(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_file_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)


@pytest.mark.parametrize("exporter", Exporter)
def test_another_function_in_its_place_is_not_called_lost(exporter: Exporter) -> None:
    """What the file makes in another way is made; it lacks nothing."""

    def network(activation: nn.Module) -> nn.Module:
        return fill(nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 4, 3))).eval()

    x = noise("smallest.prelu", 1, 3, 9, 9)
    model = network(nn.PReLU(8))
    proto = export(network(nn.ReLU()), (x,), exporter)
    found = layerdiff.trace(model, proto, x, progress=False).diagnoses[0]
    assert found.cause == "activation"
    assert "Relu" in found.summary
