"""Nodes that read another tensor, and stretches of which a part is at fault: the cause follows from what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from onnx import numpy_helper
from torch import nn

from tests.diagnose.edits import attributes
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, seeded, vectors
from tests.realfaults.edit import copied, nodes_of
from tests.zoo.scramble import scrambled

if TYPE_CHECKING:
    import onnx
    from torch import Tensor

    from tests.diagnose.edits import Edit
    from tests.zoo.exports import Exporter


class Heads(nn.Module):
    """Attention written out, with projections of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (3, 4)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return mixed.transpose(1, 2).flatten(2)


class Gated(nn.Module):
    """An activation that two readers share."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.act, self.outer = nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.inner(x))
        return y + self.outer(y)


class Turned(nn.Module):
    """Tokens and features exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(7, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x.transpose(1, 2).relu()).transpose(1, 2)


class BothWays(nn.Module):
    """A recurrent layer with as many steps as features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(12, 4, bidirectional=True, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


HEADS = vectors("heads", Heads)
GATED = vectors("gated", Gated)
TURNED = vectors("turned", Turned)
BOTH = vectors("both-directions", BothWays, width=8, lead=(2, 7))


def exchanged(op: str, first: int, second: int) -> Edit:
    """The first operands of two nodes in each other's place."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        one, other = nodes_of(edited, op)[first], nodes_of(edited, op)[second]
        one.input[0], other.input[0] = other.input[0], one.input[0]
        return edited

    return edit


def bypassed_for_the_product(proto: onnx.ModelProto) -> onnx.ModelProto:
    """One of two readers of the activation reads what goes into it."""
    edited = copied(proto)
    act = next(node for node in nodes_of(edited, "Tanh") if "subject" in node.name)
    reader = next(n for n in edited.graph.node if act.output[0] in n.input and n.op_type == "MatMul")
    reader.input[0] = act.input[0]
    return edited


def viewed(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A Reshape to the right shape in the place of the first Transpose."""
    edited = copied(proto)
    node = nodes_of(edited, "Transpose")[0]
    node.op_type = "Reshape"
    del node.attribute[:]
    node.input.append("seeded.shape")
    edited.graph.initializer.append(numpy_helper.from_array(np.array([2, 12, 7]), "seeded.shape"))
    return edited


def weights_exchanged(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The projections of queries and keys with each other's weights."""
    edited = copied(proto)
    pairs = (("MatMul", 1), ("Add", 0))
    for op, slot in pairs:
        nodes = {n.name.split("/")[-2]: n for n in nodes_of(edited, op) if "/subject/" in n.name}
        q, k = nodes["q"], nodes["k"]
        q.input[slot], k.input[slot] = k.input[slot], q.input[slot]
    return edited


FAULTS = (
    Seeded("queries-and-keys", HEADS, exchanged("Transpose", 0, 1), "order", "it should read"),
    Seeded("activation-bypassed", GATED, bypassed_for_the_product, "dropped-op", "Tanh is left out",
           layer="subject.outer"),
    Seeded("viewed-not-turned", TURNED, viewed, "layout"),
    Seeded("behind-a-recurrent-layer", BOTH, attributes("Transpose", 1, perm=[0, 2, 3, 1]), "layout",
           layer="subject.layer"),
)  # fmt: skip


@seeded(FAULTS)
def test_what_is_wired_wrongly_is_named_by_what_changed(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_file_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)


def test_exchanged_weights_are_told_from_exchanged_wires_by_the_names_that_the_file_has() -> None:
    report = HEADS.traced(weights_exchanged(HEADS.healthy()))
    found, first = report.diagnoses[0], report.first_divergence
    assert (found.cause, found.verified) == ("weights", True), found
    assert first is not None
    assert first.layer in ("subject.q", "subject.k")  # and not the module in which the two are joined


def test_without_names_exchanged_weights_and_exchanged_wires_are_one_graph_and_nothing_is_claimed() -> None:
    report = HEADS.traced(scrambled(weights_exchanged(HEADS.healthy())))
    found, first = report.diagnoses[0], report.first_divergence
    assert found.cause in ("order", "weights")
    assert not found.verified, found
    assert first is not None
    assert {"subject.q", "subject.k"} <= {first.layer, *first.also_possible}
