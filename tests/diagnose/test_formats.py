"""Number formats, inserted nodes, weights, unstable formulas and exchanged inputs: each has its own words."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import nn

from tests.diagnose.edits import behind, constant, export_of, without
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, images, seeded, vectors
from tests.realfaults.edit import copied, nodes_of
from tests.realfaults.networks import Apply

if TYPE_CHECKING:
    from torch import Tensor

    from tests.zoo.exports import Exporter

DENSE = vectors("dense", lambda: nn.Linear(12, 12))
LOUD = vectors("loud", lambda: Apply(lambda x: (x * 1e5).abs() + 1))
TWINS = vectors("twins", lambda: nn.Sequential(nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 12)))
CONV = images("plain", lambda: nn.Conv2d(8, 8, 3, padding=1))
RELU = vectors("relu-dropped", nn.ReLU)
STABLE = vectors("stable", lambda: Apply(lambda x: (x * 100).log_softmax(-1)))
UNSTABLE = vectors("stable", lambda: Apply(lambda x: (x * 100).softmax(-1).log()))
SELECTED = vectors("selected", lambda: Apply(lambda x: x.flip(1)))
PLAIN = vectors("selected", nn.Identity)


def rounded(to: torch.dtype) -> functools.partial[np.ndarray]:
    return functools.partial(lambda w, to: torch.from_numpy(w).to(to).float().numpy(), to=to)


def on_a_grid(w: np.ndarray) -> np.ndarray:
    step = np.abs(w).max() / 127
    return np.round(w / step) * step


def one_channel(w: np.ndarray) -> np.ndarray:
    w[5] += 0.3
    return w


def dequantised(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The weight of the subject kept in eight bits, in a scale that is too small for it."""
    edited = copied(proto)
    node = nodes_of(edited, "Conv")[1]
    weight = next(numpy_helper.to_array(t) for t in edited.graph.initializer if t.name == node.input[1])
    scale = np.float32(np.abs(weight).max() / 127 / 2)
    stored = np.clip(np.round(weight / scale), -128, 127).astype(np.int8)
    named = {"stored": stored, "scale": scale, "zero": np.int8(0)}
    edited.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in named.items())
    edited.graph.node.insert(0, onnx.helper.make_node("DequantizeLinear", list(named), ["dequantised"]))
    next(n for n in edited.graph.node if n.output == node.output).input[1] = "dequantised"
    return edited


HALF = [("Cast", {"to": 10}), ("Cast", {"to": 1})]
EIGHT_BITS = [("QuantizeLinear", {"operands": ("s", "z")}), ("DequantizeLinear", {"operands": ("s", "z")})]

FAULTS = (
    Seeded("rounded-to-half", DENSE, behind("MatMul", HALF, 1), "precision"),
    Seeded("rounded-to-half-behind", CONV, behind("Conv", HALF, 1), "precision", "Cast stands behind subject"),
    Seeded("overflow-in-half", LOUD, behind("Mul", HALF), "overflow", "Cast stands behind subject"),
    Seeded("eight-bits-saturate", CONV, behind("Conv", EIGHT_BITS, 1, s=np.float32(0.002), z=np.int8(0)),
           "quantization", "QuantizeLinear, DequantizeLinear stand behind subject"),
    Seeded("eight-bits-zero-point", CONV, behind("Conv", EIGHT_BITS, 1, s=np.float32(0.02), z=np.int8(100)),
           "quantization"),
    Seeded("stored-integers-clipped", CONV, dequantised, "quantization", "are clipped", {"dtype": "int8"}),
    Seeded("scaled-behind", CONV, behind("Conv", [("Mul", {"operands": ("two",)})], 1, two=np.float32(2)), "extra-op",
           "Mul stands behind subject and changes what it passes on.", {"operators": ["Mul"]}),
    # The transposed tensor counts as the subject's, in another layout: what reads it as if it were not is accused.
    Seeded("transposed-behind", CONV, behind("Conv", [("Transpose", {"perm": [0, 1, 3, 2]})], 1), "layout",
           "whose axes are in another order: (0, 1, 3, 2)", layer="neck"),
    Seeded("weights-channel", CONV, constant("Conv", 1, one_channel, 1), "weights",
           "subject.weight differs in channel 5 of 8.", {"parameter": "subject.weight", "channels": [5]}),
    Seeded("weights-factor", CONV, constant("Conv", 1, lambda w: w * 1.25, 1), "weights", "multiplied by 1.25"),
    Seeded("weights-bias-zero", CONV, constant("Conv", 2, lambda b: b * 0, 1), "weights",
           "subject.bias is all zeros in the file.", {"zero": True}),
    Seeded("weights-half", CONV, constant("Conv", 1, rounded(torch.float16), 1), "weights", "rounded to float16",
           {"format": "float16"}),
    Seeded("weights-bfloat16", CONV, constant("Conv", 1, rounded(torch.bfloat16), 1), "weights", "to bfloat16"),
    Seeded("weights-grid", CONV, constant("Conv", 1, on_a_grid, 1), "weights", "to an 8-bit grid"),
    Seeded("weights-turned", CONV, constant("Conv", 1, lambda w: w[:, :, ::-1], 1), "weights", "in another order",
           {"permuted": True}),
    Seeded("weights-of-another", TWINS,
           lambda p: constant("MatMul", 1, lambda w: numpy_of(p, "MatMul", 2), 1)(p), "weights",
           "the file holds subject.2.weight.", {"equals": "subject.2.weight"}, layer="subject.0"),
    Seeded("relu-missing", RELU, without("Relu"), "dropped-op", "relu is missing from the file."),
    Seeded("flip-missing", SELECTED, export_of(PLAIN), "indexing", "flip is missing from the file."),
    Seeded("log-of-softmax", STABLE, export_of(UNSTABLE), "numerics",
           "in double precision the same nodes give the right one", {"right_in": "float64"}),
)  # fmt: skip


def numpy_of(proto: onnx.ModelProto, op: str, number: int) -> np.ndarray:
    name = nodes_of(proto, op)[number].input[1]
    return next(numpy_helper.to_array(t) for t in proto.graph.initializer if t.name == name)


@seeded(FAULTS)
def test_what_a_format_or_an_inserted_node_or_a_weight_does_is_named(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_file_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)


class Two(nn.Module):
    """Two inputs of one shape that are not treated alike."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 12), nn.Linear(6, 12)
        self.head = nn.Linear(12, 5)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.head(self.left(a).tanh() * self.right(b).sigmoid())


TWO = Network("two", Two, ((2, 6), (2, 6)))


def test_inputs_that_are_exchanged_are_named_and_proven_by_feeding_them_crosswise() -> None:
    healthy = TWO.healthy()
    first, second = (port.name for port in healthy.graph.input)
    exchanged = copied(healthy)
    other = {first: second, second: first}
    for node in exchanged.graph.node:
        node.input[:] = [other.get(name, name) for name in node.input]
    report = TWO.traced(exchanged)
    found = report.diagnoses[0]
    assert (found.cause, found.layer, found.verified) == ("inputs", "", True)
    assert found.evidence["exchanged"] == [first, second]
    assert found.evidence["error_after"] < 1e-5 < found.evidence["error_before"]
    assert TWO.traced(healthy).agrees
