"""Normalisation: folded, in train mode, with another epsilon, in half precision, fused."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from tests.realfaults.case import Case, RealFault
from tests.realfaults.edit import copied, nodes_of, only, with_constant, with_nodes
from tests.realfaults.networks import chain, images, ready, tokens, vision
from tests.zoo.exports import Exporter, export


class ScaledBias(nn.Module):
    """A linear layer that counts half of its bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight, beta=0.5)


def folded_without_beta() -> Case:
    model = chain(
        up=nn.Linear(6, 12),
        act=nn.ReLU(),
        mid=nn.Linear(12, 12),
        mid_act=nn.SiLU(),
        dense=ScaledBias(12),
        norm=nn.BatchNorm1d(12),
        last=nn.ReLU(),
        head=nn.Linear(12, 4),
    )
    model = ready(model, images("folded.batch", 32, 6))
    with torch.no_grad():
        model.dense.bias.mul_(5.0)
    x = images("folded", 5, 6)
    twin = export(model, (x,), Exporter.DYNAMO)
    gemm = nodes_of(twin, "Gemm")[2]
    beta = next((attribute.f for attribute in gemm.attribute if attribute.name == "beta"), 1.0)
    assert len(nodes_of(twin, "Gemm")) == 4, "the exporter no longer folds this BatchNorm"
    assert beta == 1.0
    scale = (model.norm.weight / (model.norm.running_var + model.norm.eps).sqrt()).detach()
    wrong = 0.5 * ((model.dense.bias - model.norm.running_mean) * scale + model.norm.bias).detach()
    return Case(model, (x,), with_constant(twin, gemm.input[2], wrong.numpy()), twin)


def train_mode() -> Case:
    model = ready(vision(), images("train.batch", 8, 3, 24, 24))
    x = images("train", 4, 3, 24, 24)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    return Case(model, (x,), _exported_in_train_mode(model, x), twin)


def _exported_in_train_mode(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        options = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
        torch.onnx.export(model, (x,), file, opset_version=17, dynamo=False, **options)
    model.load_state_dict(state)
    model.eval()
    return onnx.load_from_string(file.getvalue())


def default_epsilon() -> Case:
    model = tokens(scale=nn.Linear(16, 16), middle=nn.LayerNorm(16, eps=1e-2))
    model = ready(model)
    with torch.no_grad():
        model.scale.weight.mul_(0.05)
    x = images("epsilon", 2, 7, 6)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    norm = max(nodes_of(twin, "LayerNormalization"), key=_epsilon)
    others = [node.output[0] for node in nodes_of(twin, "LayerNormalization") if node is not norm]
    assert len(others) == 3
    plain = helper.make_node("LayerNormalization", norm.input, norm.output, axis=-1)
    return Case(model, (x,), with_nodes(twin, norm.output, [plain]), twin)


def _epsilon(node: onnx.NodeProto) -> float:
    return next(attribute.f for attribute in node.attribute if attribute.name == "epsilon")


class RootMeanSquare(nn.Module):
    """Division by the root of the mean square over the last axis."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


def half_overflow() -> Case:
    model = ready(tokens(loud=nn.Linear(16, 16), rms=RootMeanSquare(16)))
    with torch.no_grad():
        model.loud.weight.mul_(200.0)
    x = images("half", 2, 7, 6)
    single = export(model, (x,), Exporter.TORCHSCRIPT)
    faulty = _in_half(single, "Pow", "ReduceMean", "Add", "Sqrt", "Reciprocal")
    return Case(model, (x,), faulty, _in_half(single))  # on the CPU the plain conversion runs these in single precision


def _in_half(proto: onnx.ModelProto, *kept: str) -> onnx.ModelProto:
    """The model converted by ONNX Runtime's tool, these operators left in single precision."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    return convert_float_to_float16(copied(proto), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *kept])


class FlatNorm(nn.Module):
    """A norm that forgot keepdim: its means line up with the columns, which a square map allows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.bias = nn.Parameter(torch.empty(width))

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1)
        return centred / torch.sqrt((centred**2).mean(-1) + 1e-5) * self.weight + self.bias


def fused_without_keepdims() -> Case:
    model = ready(
        chain(
            up=nn.Linear(6, 12),
            act=nn.ReLU(),
            mid=nn.Linear(12, 12),
            mid_act=nn.Tanh(),
            flat_norm=FlatNorm(12),
            dense=nn.Linear(12, 12),
            last=nn.ReLU(),
            head=nn.Linear(12, 4),
        )
    )
    x = images("keepdims", 12, 6)
    faulty = export(model, (x,), Exporter.TORCHSCRIPT)
    power = only(faulty, "Pow")
    square = helper.make_node("Mul", [power.input[0], power.input[0]], power.output)
    return Case(model, (x,), faulty, with_nodes(faulty, power.output, [square]))


FAULTS = (
    RealFault(
        "batchnorm-folded-without-beta",
        ("microsoft/onnxscript#3027",),
        "A BatchNorm is folded into a Gemm whose beta is not 1: beta is then applied to the folded bias, not the old.",
        "perceptron",
        "norm",
        frozenset({"bn-folding"}),
        folded_without_beta,
    ),
    RealFault(
        "batchnorm-in-train-mode",
        ("microsoft/onnxscript#1791",),
        "The BatchNorms of a model in eval mode come out of the exporter in training mode.",
        "convolutional classifier",
        "block.norm",
        frozenset({"training-mode"}),
        train_mode,
    ),
    RealFault(
        "layernorm-default-epsilon",
        ("microsoft/onnxruntime#2639", "microsoft/onnxruntime#3768"),
        "A fusion into LayerNormalization does not take the model's epsilon over.",
        "token mixer",
        "middle",
        frozenset({"epsilon"}),
        default_epsilon,
    ),
    RealFault(
        "half-overflow-in-norm",
        ("microsoft/onnxruntime#21345", "microsoft/onnxruntime#13639"),
        "Converted to half precision with a norm's operators kept in single: what passes between them is cast to "
        "half, and the squares exceed 65504.",
        "token mixer",
        "rms",
        frozenset({"overflow"}),
        half_overflow,
        alive=True,
        lossy_twin=True,
    ),
    RealFault(
        "layernorm-fused-without-keepdims",
        ("microsoft/onnxruntime#31144",),
        "ONNX Runtime fuses a norm whose means do not keep their axis into LayerNormalization, which it is not.",
        "perceptron",
        "flat_norm",
        frozenset({"runtime-fusion"}),
        fused_without_keepdims,
        alive=True,
    ),
)
