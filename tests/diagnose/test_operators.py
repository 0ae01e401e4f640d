"""One operator with a wrong axis, limit, index, order or rule: what is wrong with it is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from tests.diagnose.edits import attributes, constant, export_of, operands, operator, results
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, images, seeded, vectors
from tests.realfaults.networks import Apply
from tests.zoo.exports import Exporter

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


def of(name: str, function: Callable[[Tensor], Tensor], width: int = 12, **options: Any) -> Network:
    return vectors(name, lambda: Apply(function), width=width, **options)


class Table(nn.Module):
    """Looks rows of a table up at rounded values."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 12)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table((x[..., 0] * 4 + 4).round().clamp(0, 8).long())


ROWS = torch.tensor([0, 2, 1, 4, 3])
LEAKY = of("leaky", lambda x: functional.leaky_relu(x, 0.2))
GELU = of("gelu", functional.gelu, opset=20)
TANH_GELU = of("tanh-gelu", lambda x: functional.gelu(x, approximate="tanh"), opset=20)
GELU_17 = of("gelu-17", functional.gelu)
CLIP = of("clip", lambda x: x.clamp(-0.3, 0.4))
ELU = of("elu", lambda x: functional.elu(x, 0.5))
HARD = of("hard", lambda x: functional.hardsigmoid(x * 4))
RELU = of("relu", functional.relu)
SOFTMAX = of("softmax", lambda x: x.softmax(-1))
LOG_SOFTMAX = of("log-softmax", lambda x: x.log_softmax(1))
MEAN = of("mean", lambda x: x - x.mean(1, keepdim=True))
SQUARE_MEAN = of("square-mean", lambda x: x - x.mean(-1, keepdim=True), lead=(12,))
SUM = of("sum", lambda x: x.sum(-1, keepdim=True) * x)
CUMSUM = of("cumsum", lambda x: x.cumsum(1))
TRANSPOSED = of("transposed", lambda x: x.reshape(2, 7, 3, 4).permute(0, 1, 3, 2).reshape(2, 7, 12).contiguous())
SLICED = of("sliced", lambda x: x[..., 1:10:2], 5)
STEPPED = of("stepped", lambda x: x * x[:, 0:7:3].mean(1, keepdim=True))
SPLIT = of("split", lambda x: torch.cat([p * (i + 1) for i, p in enumerate(x.split(4, -1))], -1))
JOINED = of("joined", lambda x: torch.cat([x.sin(), x.cos()], -1), 24)
GATHERED = of("gathered", lambda x: x[:, ROWS])
TABLE = vectors("table", Table)
DIVIDED = of("divided", lambda x: torch.div(x * 8, 3.0, rounding_mode="floor"))
TRUNCATED = of("truncated", lambda x: torch.div(x * 8, 3.0, rounding_mode="trunc"))
FMOD = of("fmod", lambda x: torch.fmod(x * 8, 3.0))
REMAINDER = of("remainder", lambda x: torch.remainder(x * 8, 3.0))
SORTED = of("sorted", lambda x: x.topk(12, 0).values, lead=(12,))
TOP = of("top", lambda x: x.topk(4, -1).values, 4)
ARGMAX = of("argmax", lambda x: x * (x.argmax(-1, keepdim=True) + 1))
SUBTRACTED = of("subtracted", lambda x: x.sin() - x.cos())
QUOTIENT = of("quotient", lambda x: x.sin() / (x.cos() + 2))
SCALED = of("scaled", lambda x: x * 0.125)
POWER = of("power", lambda x: x.abs() ** 1.5)
SHUFFLED = images("shuffled", lambda: nn.PixelShuffle(2), width=2)
LAYER_NORM = vectors("layer-norm", lambda: nn.LayerNorm(12, eps=1e-3))
GROUP_NORM = images("group-norm", lambda: nn.GroupNorm(2, 8, eps=1e-3))

FAULTS = (
    Seeded("leaky-slope", LEAKY, attributes("LeakyRelu", alpha=0.01), "activation",
           "alpha=0.009999999776482582; the model's is 0.2"),
    Seeded("elu-alpha", ELU, attributes("Elu", alpha=1.0), "activation", "alpha=1.0; the model's is 0.5"),
    Seeded("hard-sigmoid-slope", HARD, attributes("HardSigmoid", alpha=0.2), "activation"),
    Seeded("gelu-tanh-for-erf", GELU, attributes("Gelu", approximate="tanh"), "activation", "approximate=tanh",
           exporter=Exporter.DYNAMO),
    Seeded("gelu-erf-for-tanh", TANH_GELU, attributes("Gelu", approximate="none"), "activation", "approximate=none",
           exporter=Exporter.DYNAMO),
    Seeded("relu-for-leaky", LEAKY, operator("LeakyRelu", "Relu"), "activation",
           "Relu where the model computes LeakyRelu"),
    Seeded("sigmoid-for-relu", RELU, operator("Relu", "Sigmoid"), "activation", "Sigmoid where the model computes Relu",
           {"wanted": "Relu", "got": "Sigmoid"}),
    Seeded("clip-upper", CLIP, constant("Clip", 2, lambda limit: limit * 2), "activation", "Operand 2 of Clip"),
    Seeded("clip-lower", CLIP, constant("Clip", 1, lambda limit: limit * 0), "activation", "Operand 1 of Clip"),
    Seeded("softmax-axis", SOFTMAX, attributes("Softmax", axis=1), "axis", "axis=1; the model's is -1"),
    Seeded("softmax-axis-by-dynamo", SOFTMAX, attributes("Softmax", axis=1), "axis", "axis=1",
           exporter=Exporter.DYNAMO),
    Seeded("log-softmax-axis", LOG_SOFTMAX, attributes("LogSoftmax", axis=2), "axis", "axis=2; the model's is 1"),
    Seeded("mean-axis", MEAN, attributes("ReduceMean", axes=[2]), "axis", "axes=[2]; the model's is [1]"),
    Seeded("mean-keepdims", SQUARE_MEAN, attributes("ReduceMean", keepdims=0), "axis", "Sub reads"),
    Seeded("max-for-mean", MEAN, operator("ReduceMean", "ReduceMax", axes=[1], keepdims=1), "pooling",
           "ReduceMax where the model computes ReduceMean"),
    Seeded("sum-axis", SUM, constant("ReduceSum", 1, lambda axes: axes * 0 + 1), "axis", "Operand 1 of ReduceSum"),
    Seeded("cumsum-exclusive", CUMSUM, attributes("CumSum", exclusive=1), "axis", "exclusive=1; the model's is 0"),
    Seeded("cumsum-reverse", CUMSUM, attributes("CumSum", reverse=1), "axis", "reverse=1; the model's is 0"),
    Seeded("cumsum-axis", CUMSUM, constant("CumSum", 1, lambda axis: axis + 1), "axis", "Operand 1 of CumSum"),
    Seeded("transposed-axes", TRANSPOSED, attributes("Transpose", perm=[0, 1, 2, 3]), "layout",
           "perm=[0, 1, 2, 3]; the model's is [0, 1, 3, 2]"),
    Seeded("slice-start", SLICED, constant("Slice", 1, lambda start: start - 1), "indexing", "Operand 1 of Slice"),
    Seeded("slice-step", STEPPED, constant("Slice", 4, lambda step: step - 1), "indexing", "Operand 4 of Slice"),
    Seeded("split-order", SPLIT, results("Split", (1, 0, 2)), "order"),
    Seeded("join-order", JOINED, operands("Concat", (1, 0)), "order", "The operands of Concat are exchanged."),
    Seeded("gathered-rows", GATHERED, constant("Gather", 1, lambda rows: rows[::-1]), "indexing", "Operand 1 of Gather",
           {"wanted": [0, 2, 1, 4, 3], "got": [0, 2, 1, 4, 3][::-1]}),
    Seeded("table-rows", TABLE, constant("Gather", 0, lambda rows: rows[::-1], 1), "weights",
           "subject.table.weight holds the right numbers in another order", {"permuted": True}, layer="subject.table"),
    Seeded("floor-lost", DIVIDED, operator("Floor", "Identity"), "rounding"),
    Seeded("ceil-for-floor", DIVIDED, operator("Floor", "Ceil"), "rounding", "lacks Floor"),
    Seeded("floor-for-trunc", TRUNCATED, operator("Cast", "Floor"), "rounding"),
    Seeded("remainder-for-fmod", FMOD, export_of(REMAINDER), "rounding"),
    Seeded("fmod-for-remainder", REMAINDER, export_of(FMOD), "rounding"),
    Seeded("top-smallest", TOP, attributes("TopK", largest=0), "order", "largest=0; the model's is 1"),
    Seeded("top-axis", SORTED, attributes("TopK", axis=1), "axis", "axis=1; the model's is 0"),
    Seeded("argmax-axis", ARGMAX, attributes("ArgMax", axis=1), "axis"),
    Seeded("argmin-for-argmax", ARGMAX, operator("ArgMax", "ArgMin", axis=-1, keepdims=1), "indexing",
           "ArgMin where the model computes ArgMax"),
    Seeded("exchanged-difference", SUBTRACTED, operands("Sub", (1, 0)), "order", "The operands of Sub are exchanged."),
    Seeded("exchanged-quotient", QUOTIENT, operands("Div", (1, 0)), "order", "The operands of Div are exchanged."),
    Seeded("add-for-sub", SUBTRACTED, operator("Sub", "Add"), "dropped-op", "Add where the model computes Sub"),
    Seeded("scale", SCALED, constant("Mul", 1, lambda factor: factor * 2), "constant",
           "Operand 1 of Mul is 0.25; the model's is 0.125."),
    Seeded("power", POWER, constant("Pow", 1, lambda power: power + 0.5), "constant", "is 2.0; the model's is 1.5"),
    Seeded("pixel-shuffle-mode", SHUFFLED, attributes("DepthToSpace", mode="DCR"), "layout",
           "mode=DCR; the model's is CRD"),
    Seeded("layer-norm-epsilon", LAYER_NORM, attributes("LayerNormalization", epsilon=0.1), "epsilon",
           "epsilon=0.1", {"attribute": "epsilon"}),
    Seeded("layer-norm-axis", LAYER_NORM, attributes("LayerNormalization", axis=1), "axis"),
    Seeded("group-norm-epsilon", GROUP_NORM, attributes("InstanceNormalization", epsilon=0.1), "epsilon"),
    Seeded("layer-norm-epsilon-by-dynamo", LAYER_NORM, attributes("LayerNormalization", epsilon=0.1), "epsilon",
           exporter=Exporter.DYNAMO),
)  # fmt: skip


@seeded(FAULTS)
def test_what_is_wrong_with_an_operator_is_named(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_operator_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)
