"""Activations, layouts, weights, pooling behind a pad, quantisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from tests.realfaults.case import Case, RealFault
from tests.realfaults.edit import constant_of, nodes_of, only, with_constant, with_nodes, without
from tests.realfaults.networks import Mixer, chain, images, ready, vision
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import tokens as ids

if TYPE_CHECKING:
    import onnx


def tanh_gelu_ignored() -> Case:
    def network(approximate: str) -> nn.Module:
        embed, last = nn.Linear(6, 16), Mixer(16)
        return ready(chain(embed=embed, first=Mixer(16, nn.GELU(approximate)), last=last, head=nn.Linear(16, 4)))

    x = images("gelu", 2, 7, 6)
    twin, faulty = (export(network(how), (x,), Exporter.TORCHSCRIPT) for how in ("tanh", "none"))
    return Case(network("tanh"), (x,), faulty, twin)


def hardswish_default_alpha() -> Case:
    model = ready(vision(conv=nn.Conv2d(8, 8, 3), swish=nn.Hardswish()), images("swish.batch", 8, 3, 24, 24))
    x = images("swish", 2, 3, 24, 24)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    node = only(twin, "HardSwish")
    parts = [
        helper.make_node("HardSigmoid", node.input, ["gate"]),
        helper.make_node("Mul", [node.input[0], "gate"], node.output),
    ]
    return Case(model, (x,), with_nodes(twin, node.output, parts), twin)


class Pose(nn.Module):
    """Two branches that meet in a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2)
        self.left = chain(conv=nn.Conv2d(8, 6, 3, padding=1), act=nn.ReLU())
        self.right = chain(conv=nn.Conv2d(8, 6, 1), act=nn.ReLU())
        self.mix = nn.Conv2d(12, 8, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.norm(self.mix(torch.cat((self.left(x), self.right(x)), 1))))


def relu_missing() -> Case:
    model, x = ready(Pose()), images("pose", 2, 3, 16, 16)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    assert nodes_of(twin, "Relu")[1].name.startswith("/right/")
    return Case(model, (x,), without(twin, "Relu", 1), twin)


def unshuffle_by_space_to_depth() -> Case:
    middle = {"unshuffle": nn.PixelUnshuffle(2), "squeeze": nn.Conv2d(32, 8, 1)}
    model = ready(vision(**middle), images("unshuffle.batch", 8, 3, 24, 24))
    x = images("unshuffle", 2, 3, 24, 24)
    twin = export(model, (x,), Exporter.DYNAMO)
    turned = only(twin, "Transpose")
    before = next(node for node in twin.graph.node if node.output[0] == turned.input[0])
    after = next(node for node in twin.graph.node if turned.output[0] in node.input)
    gone = [node.output[0] for node in (before, turned, after)]
    node = helper.make_node("SpaceToDepth", [before.input[0]], after.output, blocksize=2)
    return Case(model, (x,), with_nodes(twin, gone, [node]), twin)


class Diamond(nn.Module):
    """Two embeddings that are added, and a mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(20, 16)
        self.items = nn.Embedding(20, 16)
        self.norm = nn.LayerNorm(16)
        self.mixer = Mixer(16)
        self.head = nn.Linear(16, 3)

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.head(self.mixer(self.norm(self.users(users) * self.items(items))))


def weights_under_wrong_names() -> Case:
    model = ready(Diamond())
    inputs = (ids("realfaults.users", 20, 2, 9), ids("realfaults.items", 20, 2, 9))
    twin = export(model, inputs, Exporter.TORCHSCRIPT)
    users, items = (constant_of(twin, f"{name}.weight") for name in ("users", "items"))
    faulty = with_constant(with_constant(twin, "users.weight", items), "items.weight", users)
    return Case(model, inputs, faulty, twin)


class PaddedPool(nn.Module):
    """The largest of each window, zeros around the map."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(functional.pad(x, (1, 1, 1, 1)), 3, 2)


def pad_fused_into_pool() -> Case:
    middle = {"conv": nn.Conv2d(8, 8, 3), "pool": PaddedPool()}
    model = ready(vision(**middle), images("padded.batch", 8, 3, 24, 24))
    with torch.no_grad():
        model.conv.bias.sub_(1.5)  # below zero at the border, where the zeros are the largest
    x = images("padded", 2, 3, 24, 24)
    faulty = export(model, (x,), Exporter.DYNAMO)
    pad, pool = only(faulty, "Pad"), only(faulty, "MaxPool")
    apart = helper.make_node("MaxPool", ["kept"], pool.output, kernel_shape=[3, 3], strides=[2, 2])
    kept = helper.make_node("Clip", pool.input, ["kept"])  # without limits: the same, and no Pad before the MaxPool
    assert pad.output[0] == pool.input[0]
    return Case(model, (x,), faulty, with_nodes(faulty, pool.output, [kept, apart]))


def bias_clipped() -> Case:
    model = vision(pruned=nn.Conv2d(8, 8, 1), back=nn.ReLU())
    model = ready(model, images("bias.batch", 8, 3, 24, 24))
    with torch.no_grad():
        model.pruned.weight[:3].mul_(1e-9)
        model.pruned.bias.abs_().add_(1.0)
    x = images("bias", 2, 3, 24, 24)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    conv = next(node for node in nodes_of(twin, "Conv") if node.name.startswith("/pruned/"))
    weight, bias = (constant_of(twin, name) for name in conv.input[1:])
    fine = np.abs(bias) / 2**30
    # The quantiser's scale of a bias is that of the input, 6/255 here, times that of the channel's weights.
    tiny = np.abs(weight).max((1, 2, 3)) / 127 * 6 / 255
    return Case(model, (x,), *(_with_bias(twin, conv, bias, s) for s in (np.where(tiny < fine, tiny, fine), fine)))


def _with_bias(proto: onnx.ModelProto, conv: onnx.NodeProto, bias: np.ndarray, scale: np.ndarray) -> onnx.ModelProto:
    limit = np.iinfo(np.int32)
    stored = np.clip(np.rint(bias / scale.astype(np.float64)), limit.min, limit.max).astype(np.int32)
    nodes = [
        helper.make_node("DequantizeLinear", ["bias_quantised", "bias_scale"], ["bias"], axis=0),
        helper.make_node("Conv", [*conv.input[:2], "bias"], conv.output, name=conv.name),
    ]
    nodes[1].attribute.extend(conv.attribute)
    return with_nodes(proto, conv.output, nodes, bias_quantised=stored, bias_scale=scale.astype(np.float32))


FAULTS = (
    RealFault(
        "tanh-gelu-ignored",
        ("apache/tvm#18750",),
        "GELU's approximate='tanh' is ignored: the exact one is computed.",
        "token mixer",
        "first.act",
        frozenset({"activation"}),
        tanh_gelu_ignored,
    ),
    RealFault(
        "hardswish-default-alpha",
        ("Tencent/ncnn#2826",),
        "Hardswish uses a slope of 0.2, HardSigmoid's default, instead of 1/6.",
        "convolutional classifier",
        "swish",
        frozenset({"activation"}),
        hardswish_default_alpha,
    ),
    RealFault(
        "relu-missing-before-concat",
        ("onnx/onnx-tensorflow#607",),
        "A ReLU before a concatenation is missing after conversion.",
        "two branches that meet",
        "right.act",
        frozenset({"dropped-op"}),
        relu_missing,
    ),
    RealFault(
        "unshuffle-by-space-to-depth",
        ("microsoft/onnxscript#2891",),
        "PixelUnshuffle is written as SpaceToDepth, which orders the channels otherwise.",
        "convolutional classifier",
        "unshuffle",
        frozenset({"layout"}),
        unshuffle_by_space_to_depth,
    ),
    RealFault(
        "weights-under-wrong-names",
        ("pytorch/pytorch#19935",),
        "The parameters are written in another order than the graph's inputs: two embeddings hold each other's table.",
        "recommender",
        "users",
        frozenset({"weights"}),
        weights_under_wrong_names,
    ),
    RealFault(
        "pad-fused-into-pool",
        ("microsoft/onnxruntime#22177",),
        "ONNX Runtime's pad fusion makes the zeros before a pooling the pooling's own padding, which is no zeros.",
        "convolutional classifier",
        "pool",
        frozenset({"runtime-fusion"}),
        pad_fused_into_pool,
        alive=True,
    ),
    RealFault(
        "quantised-bias-clipped",
        ("microsoft/onnxruntime#22020", "microsoft/onnxruntime#21645"),
        "A bias is quantised with the tiny scale of a pruned channel's weights and clipped to 32 bits.",
        "convolutional classifier",
        "pruned",
        frozenset({"quantization"}),
        bias_clipped,
    ),
)
