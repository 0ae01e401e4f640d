"""Division, rounding, powers, logarithms, operands and constants."""

from __future__ import annotations

import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from tests.realfaults.case import Case, RealFault
from tests.realfaults.edit import constant_of, copied, nodes_of, only, with_constant, with_nodes
from tests.realfaults.networks import Apply, Mixer, images, ready, tokens, vision
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import tokens as ids


def floor_divide_truncates() -> Case:
    model = ready(tokens(bins=Apply(lambda x: torch.floor_divide(x, 0.3))))
    x = images("bins", 2, 7, 6)
    faulty, twin = (export(model, (x,), exporter) for exporter in (Exporter.TORCHSCRIPT, Exporter.DYNAMO))
    return Case(model, (x,), faulty, twin)


class Quantiser(nn.Module):
    """Pixels of 8 bits to 7 bits: every odd one is halfway between two steps."""

    def forward(self, pixels: Tensor) -> Tensor:
        return torch.round(pixels / 2) / 64


def half_rounds_up() -> Case:
    middle = vision()
    model = nn.Sequential()
    model.add_module("quantise", Quantiser())
    for name, layer in middle.named_children():
        model.add_module(name, layer)
    pixels = ids("realfaults.pixels", 256, 2, 3, 24, 24).float()
    model = ready(model, ids("realfaults.pixels.batch", 256, 8, 3, 24, 24).float())
    twin = export(model, (pixels,), Exporter.TORCHSCRIPT)
    node = only(twin, "Round")
    away = [
        helper.make_node("Add", [node.input[0], "half"], ["raised"]),
        helper.make_node("Floor", ["raised"], node.output),
    ]
    return Case(model, (pixels,), with_nodes(twin, node.output, away, half=torch.tensor(0.5).numpy()), twin)


class Distances(nn.Module):
    """The square root of whole-numbered squared distances, embedded."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Apply(lambda squares: squares**0.5)
        self.embed = nn.Linear(6, 16)
        self.first = Mixer(16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, squares: Tensor) -> Tensor:
        return self.head(self.norm(self.first(self.embed(self.root(squares)))))


def power_of_integers() -> Case:
    model = ready(Distances())
    squares = ids("realfaults.squares", 40, 2, 7, 6)
    twin = export(model, (squares,), Exporter.TORCHSCRIPT)
    cast, power = nodes_of(twin, "Cast")[0], only(twin, "Pow")
    assert cast.output[0] == power.input[0]
    whole = [
        helper.make_node("Pow", [cast.input[0], power.input[1]], ["whole"]),
        helper.make_node("Cast", ["whole"], power.output, to=TensorProto.FLOAT),
    ]
    return Case(model, (squares,), with_nodes(twin, [cast.output[0], power.output[0]], whole), twin)


def log_of_sigmoid() -> Case:
    model = ready(tokens(loud=nn.Linear(16, 16), score=nn.LogSigmoid()))
    with torch.no_grad():
        model.loud.weight.mul_(60.0)
    x = images("sigmoid", 2, 7, 6)
    faulty = export(model, (x,), Exporter.TORCHSCRIPT)
    sigmoid, log = only(faulty, "Sigmoid"), only(faulty, "Log")
    stable = [
        helper.make_node("Neg", sigmoid.input, ["negative"]),
        helper.make_node("Softplus", ["negative"], ["softplus"]),
        helper.make_node("Neg", ["softplus"], log.output),
    ]
    return Case(model, (x,), faulty, with_nodes(faulty, [sigmoid.output[0], log.output[0]], stable))


def subtraction_reversed() -> Case:
    model = ready(tokens(invert=Apply(lambda x: 1.0 - x)))
    x = images("invert", 2, 7, 6)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    faulty = copied(twin)
    node = only(faulty, "Sub")
    node.input[:] = list(node.input)[::-1]
    return Case(model, (x,), faulty, twin)


class Blend(nn.Module):
    """Half of one branch and four times the other."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.left = nn.Linear(width, width)
        self.right = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.left(x) / 2 + self.right(x) * 4


def constants_merged() -> Case:
    model = ready(tokens(blend=Blend(16)))
    x = images("blend", 2, 7, 6)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    four = next(n for n in nodes_of(twin, "Mul") if n.name.startswith("/blend/")).input[1]
    assert float(constant_of(twin, four)) == 4.0
    return Case(model, (x,), with_constant(twin, four, constant_of(twin, four) / 2), twin)


FAULTS = (
    RealFault(
        "floor-divide-truncates",
        ("pytorch/pytorch#44692", "pytorch/pytorch#78442"),
        "floor_divide is written as a division that rounds towards zero.",
        "token mixer",
        "bins",
        frozenset({"rounding"}),
        floor_divide_truncates,
        alive=True,
    ),
    RealFault(
        "half-rounds-up",
        ("apache/tvm#18590", "apache/tvm#20231"),
        "round sends halves away from zero instead of to the even neighbour.",
        "convolutional classifier of whole-numbered pixels",
        "quantise",
        frozenset({"rounding"}),
        half_rounds_up,
    ),
    RealFault(
        "power-of-integers",
        ("microsoft/onnxscript#2213",),
        "An integer to a fractional power stays an integer: the base is not promoted.",
        "token mixer",
        "root",
        frozenset({"dtype"}),
        power_of_integers,
    ),
    RealFault(
        "log-of-sigmoid",
        ("pytorch/pytorch#14830", "pytorch/pytorch#1835"),
        "LogSigmoid is written as the logarithm of a sigmoid, which is -inf where the sigmoid underflows.",
        "token mixer",
        "score",
        frozenset({"numerics"}),
        log_of_sigmoid,
        alive=True,
    ),
    RealFault(
        "subtraction-reversed",
        ("opencv/opencv#20852",),
        "A constant minus a tensor is computed as the tensor minus the constant.",
        "token mixer",
        "invert",
        frozenset({"order"}),
        subtraction_reversed,
    ),
    RealFault(
        "constants-merged",
        ("onnxsim/onnxsim#265",),
        "The simplifier merges two constants that are not equal: a factor of 4 becomes 2.",
        "token mixer with two branches",
        "blend",
        frozenset({"constant"}),
        constants_merged,
    ),
)
