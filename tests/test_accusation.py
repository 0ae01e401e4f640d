"""Which layer is accused, where several could be meant, and what is said of the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor, nn

from layerdiff.model import Kind
from tests.conftest import with_initializer
from tests.test_traps import insert_before, node_of
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    import numpy as np
    import onnx


Trace = "Callable[..., Report]"


class Unit(nn.Module):
    """Convolution, BatchNorm and activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv(x)))


class Net(nn.Module):
    """Two units and a head."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.one, self.two = Unit(width), Unit(width)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(x)).mean((2, 3)))


IMAGE = noise("accusation.image", 2, 8, 9, 9)


def net() -> nn.Module:
    return settle(fill(Net()), noise("accusation.batch", 8, 8, 9, 9))


# A layer and the BatchNorm folded into it.


@pytest.mark.parametrize(("layer", "lost"), [("two.conv", "conv"), ("two.norm", "norm")])
def test_a_lost_bias_accuses_the_one_of_a_fold_that_lost_it(trace: Trace, layer: str, lost: str) -> None:
    model, wrong = net(), net()
    nn.init.zeros_(getattr(wrong.two, lost).bias)
    report = trace(model, export(wrong, (IMAGE,), Exporter.TORCHSCRIPT), IMAGE)
    assert report.first_divergence.layer == report.diagnoses[0].layer == layer
    assert report.first_divergence.also_possible == ()


def test_a_fold_that_nothing_explains_names_both_of_the_pair(trace: Trace) -> None:
    model, wrong = net(), net()
    wrong.two.norm.running_var.mul_(torch.linspace(0.5, 2, 8))
    wrong.two.norm.running_mean.add_(0.3)
    report = trace(model, export(wrong, (IMAGE,), Exporter.TORCHSCRIPT), IMAGE)
    assert report.first_divergence.layer == "two.norm"
    assert report.first_divergence.also_possible == ("two.conv",)
    assert "It may as well be two.conv: nothing in the file tells the two apart." in report.verdict


def test_another_padding_accuses_the_convolution_although_its_norm_is_folded(trace: Trace) -> None:
    """The eight amounts of the padding are no bias of eight channels."""
    model, wrong = net(), net()
    wrong.two.conv.padding_mode = "reflect"
    assert trace(model, export(wrong, (IMAGE,), Exporter.DYNAMO), IMAGE).first_divergence.layer == "two.conv"


# Nodes on an edge.


def with_casts(model: nn.Module) -> onnx.ModelProto:
    """The model's file with a trip to half precision between the last activation and what reads it."""
    proto = export(model, (IMAGE,), Exporter.TORCHSCRIPT)
    reader = node_of(proto, "ReduceMean")
    down = helper.make_node("Cast", [reader.input[0]], ["down"], to=TensorProto.FLOAT16)
    insert_before(proto, reader, 0, down, helper.make_node("Cast", ["down"], ["up"], to=TensorProto.FLOAT))
    return proto


def test_inserted_nodes_name_all_that_could_have_inserted_them(trace: Trace) -> None:
    report = trace(net(), treat(with_casts(net()), Treatment.SCRAMBLED), IMAGE)
    first = report.first_divergence
    assert (first.layer, first.kind) == ("two.act", Kind.INSERTED)
    assert first.also_possible == ("two", "")
    assert "It may as well be two or (root): nothing in the file tells them apart." in report.verdict


def test_a_dropout_behind_a_layer_is_not_the_first_to_be_accused_of_a_cast(trace: Trace) -> None:
    model = fill(nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 4)).eval())
    proto = treat(export(model, (VECTOR,), Exporter.TORCHSCRIPT), Treatment.SCRAMBLED)
    reader = node_of(proto, "Gemm", 1)
    down = helper.make_node("Cast", [reader.input[0]], ["down"], to=TensorProto.FLOAT16)
    insert_before(proto, reader, 0, down, helper.make_node("Cast", ["down"], ["up"], to=TensorProto.FLOAT))
    first = trace(model, proto, VECTOR).first_divergence
    assert (first.layer, first.also_possible) == ("0", ("1", "2"))


def test_a_name_on_inserted_nodes_settles_whose_they_are(trace: Trace) -> None:
    proto = with_casts(net())
    for node in proto.graph.node:
        if node.op_type == "Cast":
            node.name = f"/two/Cast_{node.output[0]}"
    first = trace(net(), proto, IMAGE).first_divergence
    assert (first.layer, first.also_possible) == ("two", ())


def test_inserted_nodes_that_were_copied_for_each_reader_are_still_inserted(trace: Trace) -> None:
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(torch.sin(h) * h)

    model, x = fill(Forked()), noise("accusation.forked", 3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    stem = node_of(proto, "Gemm").output[0]
    readers = [(node, i) for node in proto.graph.node for i, name in enumerate(node.input) if name == stem]
    at = list(proto.graph.node).index(readers[0][0])
    down = helper.make_node("Cast", [stem], ["down"], to=TensorProto.FLOAT16)
    ups = [helper.make_node("Cast", ["down"], [f"up{i}"], to=TensorProto.FLOAT) for i in range(len(readers))]
    for up, (node, slot) in zip(ups, readers, strict=True):
        node.input[slot] = up.output[0]
    for node in reversed([down, *ups]):
        proto.graph.node.insert(at, node)
    first = trace(model, proto, x).first_divergence
    assert (first.layer, first.kind) == ("stem", Kind.INSERTED)


# One fault behind several findings.


class Branches(nn.Module):
    """Two layers, each scaled before it is added."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x + self.scale * self.first(x))
        return self.head(torch.tanh(x + self.scale * self.second(x)))


def multiplied(*names: str) -> onnx.ModelProto:
    """The branches' file, with weight and bias of some layers times 0.9, as an optimiser folds a factor."""
    proto = export(fill(Branches()), (VECTOR,), Exporter.TORCHSCRIPT)
    for name in names:
        for parameter in ("weight", "bias"):
            proto = with_initializer(proto, f"{name}.{parameter}", lambda array: array * 0.9)
    return proto


VECTOR = noise("accusation.vector", 3, 8)


def test_a_factor_on_weight_and_bias_may_be_whose_forward_multiplies(trace: Trace) -> None:
    first = trace(fill(Branches()), multiplied("first"), VECTOR).first_divergence
    assert (first.layer, first.also_possible) == ("first", ("",))


def test_one_factor_on_two_branches_accuses_the_forward_that_they_share(trace: Trace) -> None:
    report = trace(fill(Branches()), multiplied("first", "second"), VECTOR)
    assert [d.layer for d in report.divergences] == ["", ""]
    assert [d.also_possible for d in report.divergences] == [("first",), ("second",)]


# Values that mislead.


class Pyramid(nn.Module):
    """Three poolings in a row, of which all are read."""

    def __init__(self, window: int = 5) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 3, padding=1)
        self.pool = nn.MaxPool2d(window, 1, window // 2)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.conv(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.head(torch.cat(parts, 1))


def test_a_smaller_window_that_is_applied_twice_is_not_taken_for_the_larger_one(trace: Trace) -> None:
    small = noise("accusation.small", 2, 8, 4, 4)
    proto = export(fill(Pyramid(3)), (small,), Exporter.TORCHSCRIPT)
    first = trace(fill(Pyramid()), proto, small).first_divergence
    assert (first.layer, first.call, first.kind) == ("pool", 0, Kind.COMPUTED)


def test_an_operator_behind_the_second_of_two_equal_values_is_inserted_there(trace: Trace) -> None:
    """On a small map the second and the third pooling hold the same numbers."""
    small = noise("accusation.small", 2, 8, 4, 4)
    proto = export(fill(Pyramid()), (small,), Exporter.TORCHSCRIPT)
    reader = node_of(proto, "Concat")
    proto.graph.initializer.append(numpy_helper.from_array(IMAGE.max().reshape(1).numpy(), "shift"))
    insert_before(proto, reader, 3, helper.make_node("Add", [reader.input[3], "shift"], ["shifted"]))
    first = trace(fill(Pyramid()), proto, small).first_divergence
    assert (first.layer, first.call, first.kind) == ("pool", 2, Kind.INSERTED)


def test_a_node_that_reads_another_tensor_is_told_so(trace: Trace) -> None:
    model = fill(Branches())
    proto = export(model, (VECTOR,), Exporter.TORCHSCRIPT)
    second = [node for node in proto.graph.node if node.op_type == "Gemm"][1]
    wanted, second.input[0] = second.input[0], proto.graph.input[0].name
    report = trace(model, proto, VECTOR)
    first = report.first_divergence
    assert (first.layer, first.kind) == ("second", Kind.REWIRED)
    assert first.summary == f"Gemm reads {second.input[0]}; what the model reads there is in {wanted}"


class Encoder(nn.Module):
    """One layer of attention that is called twice, behind an embedding that is mapped to its width."""

    def __init__(self) -> None:
        from transformers import AlbertConfig, AlbertModel

        super().__init__()
        config = AlbertConfig(
            vocab_size=50,
            hidden_size=16,
            embedding_size=12,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=16,
        )
        self.net = AlbertModel(config)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.net(ids, mask).last_hidden_state


def test_rounded_weights_are_no_fold_of_the_layer_behind(trace: Trace) -> None:
    """One factor for each channel maps them onto the model's, which is what a folded BatchNorm looks like."""
    model = fill(Encoder().eval())
    inputs = (torch.arange(14).reshape(2, 7) * 5 % 50, torch.tensor([[1] * 7, [1] * 5 + [0] * 2]))
    proto = export(model, inputs, Exporter.TORCHSCRIPT)
    report = trace(model, convert_float_to_float16(proto, keep_io_types=True), inputs)
    assert report.divergences == ()
    assert report.diffuse is not None


class Gated(nn.Module):
    """An activation between two layers, whose result a forward scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.3 * self.second(nn.functional.gelu(self.first(x), approximate="tanh"))


def test_a_damaged_weight_is_blamed_whatever_else_was_folded_into_it(trace: Trace) -> None:
    """onnxsim folds the 0.3 of the forward, and the half of the activation, into the weights between them."""
    wrong = fill(Gated())
    with torch.no_grad():
        wrong.second.weight += 0.3 * wrong.second.weight.std() * torch.randn(wrong.second.weight.shape)
    proto = treat(export(wrong, (IMAGE,), Exporter.TORCHSCRIPT), Treatment.ONNXSIM)
    (found,) = trace(fill(Gated()), proto, IMAGE).divergences
    assert found.layer == "second"


def test_a_convolution_with_a_wrong_channel_is_one_layer_with_its_folded_norm_also_beside_norms_that_stayed(
    trace: Trace,
) -> None:
    sample = MODELS["densenet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    assert any(node.op_type == "BatchNormalization" for node in proto.graph.node)
    name = next(n for n in proto.graph.node if n.name.endswith("denseblock3/denselayer2/conv1/Conv")).input[1]

    def damaged(weight: np.ndarray) -> np.ndarray:
        changed = weight.copy()
        changed[13] = noise("accusation.channel", *weight[13].shape).numpy() * 2 * weight[13].std()
        return changed

    report = trace(sample.model, with_initializer(proto, name, damaged), sample.inputs)
    (found,) = report.divergences
    assert found.layer == "features.denseblock3.denselayer2.conv1"
    assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == ("weights", True)


def test_of_a_module_whose_values_a_tool_folded_together_the_one_layer_with_the_wrong_attribute_is_accused(
    trace: Trace,
) -> None:
    """The factor behind the convolution went into its weights: the module is all that the tensors tell apart."""
    sample = MODELS["refiner"]()
    proto = treat(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), Treatment.ONNXSIM)
    node = [n for n in proto.graph.node if n.op_type == "Conv" and "conv2" in n.name][1]
    for attribute in node.attribute:
        if attribute.name in ("dilations", "pads"):
            attribute.ints[:] = [2] * len(attribute.ints)
    report = trace(sample.model, proto, sample.inputs)
    assert [(found.layer, found.call) for found in report.divergences] == [("step.conv2", 1)]
