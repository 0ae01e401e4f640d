"""Attention, recurrence, look-ups and writes: what is wrong with them is named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.nn import functional

from tests.diagnose.edits import attributes, constant, export_of
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, seeded, vectors
from tests.realfaults.edit import copied, nodes_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from torch import Tensor

    from tests.zoo.exports import Exporter


class Attention(nn.Module):
    """Three heads of attention, with what scaled_dot_product_attention is told besides."""

    def __init__(self, mask: Tensor | None = None, **options: Any) -> None:
        super().__init__()
        self.mask, self.options = mask, options
        self.qkv = nn.Linear(12, 36)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (3, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask, **self.options)
        return mixed.transpose(1, 2).flatten(2)


class Masked(nn.Module):
    """Scores with an additive mask, spelt out."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        scores = x @ x.transpose(1, 2) * 0.25
        return (scores + self.mask).softmax(-1) @ x


class First(nn.Module):
    """The first result of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


class Scattered(nn.Module):
    """Rows added at repeated places."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.tensor([0, 2, 2, 4, 1, 0, 3]).view(1, 7, 1).expand(2, 7, 12)
        return torch.zeros(2, 7, 12).scatter_add(1, rows, x)


PLAIN = vectors("attention", lambda: Attention(scale=0.7))
OTHER_SCALE = vectors("attention", lambda: Attention(scale=0.3))
IS_CAUSAL = vectors("attention", lambda: Attention(scale=0.7, is_causal=True))
MASKED = vectors("masked", lambda: Masked(torch.full((7, 7), -1e9).triu(1)))
UNMASKED = vectors("masked", lambda: Masked(torch.zeros(7, 7)))
GRU = vectors("gru", lambda: First(nn.GRU(12, 8)), width=8)
BATCH_FIRST = vectors("gru-batch-first", lambda: First(nn.GRU(12, 8, batch_first=True)), width=8)
LSTM = vectors("lstm", lambda: First(nn.LSTM(12, 8)), width=8)
BACK = vectors("both-ways", lambda: First(nn.LSTM(12, 8, bidirectional=True)), width=16)
SCATTERED = vectors("scattered", Scattered)


def gates(order: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """The blocks of gates of a recurrent weight in another order."""
    return lambda w: w.reshape(w.shape[0], len(order), -1, *w.shape[2:])[:, list(order)].reshape(w.shape)


FAULTS = (
    Seeded("attention-scale", PLAIN, export_of(OTHER_SCALE), "constant"),
    Seeded("causal-lost", IS_CAUSAL, export_of(PLAIN), "masking"),
    Seeded("causal-added", PLAIN, export_of(IS_CAUSAL), "masking"),
    Seeded("mask-lost", MASKED, export_of(UNMASKED), "masking"),
    Seeded("mask-shifted", MASKED, constant("Add", 1, lambda mask: np.triu(mask * 0 - 1e9, 2), 1), "masking",
           "subject.mask is not the model's"),
    Seeded("mask-weak", MASKED, constant("Add", 1, lambda mask: mask * 1e-9, 1), "masking"),
    Seeded("gru-reset", GRU, attributes("GRU", linear_before_reset=0), "recurrent",
           "linear_before_reset=0; the model's is 1", layer="subject.layer"),
    Seeded("gru-reset-batch-first", BATCH_FIRST, attributes("GRU", linear_before_reset=0), "recurrent",
           "linear_before_reset=0; the model's is 1", layer="subject.layer"),
    Seeded("gru-gates", GRU, constant("GRU", 1, gates((1, 0, 2))), "recurrent", "in another order",
           {"permuted": True}, layer="subject.layer"),
    Seeded("gru-weights", GRU, constant("GRU", 2, lambda w: w * 1.1), "weights", "multiplied by 1.1",
           layer="subject.layer"),
    Seeded("lstm-gates", LSTM, constant("LSTM", 2, gates((0, 2, 1, 3))), "recurrent", layer="subject.layer"),
    Seeded("lstm-direction", LSTM, attributes("LSTM", direction=b"reverse"), "recurrent", "direction=reverse",
           layer="subject.layer"),
    Seeded("lstm-directions-exchanged", BACK, constant("LSTM", 1, lambda w: w[::-1]), "recurrent",
           "the file holds subject.layer.weight_ih_l0_reverse", layer="subject.layer"),
    Seeded("scatter-overwrites", SCATTERED, attributes("ScatterElements", reduction=b"none"), "indexing",
           "reduction=none; the model's is add"),
    Seeded("scatter-places", SCATTERED, constant("ScatterElements", 1, lambda rows: (rows + 1) % 7), "indexing"),
    Seeded("scatter-axis", SCATTERED, attributes("ScatterElements", axis=2), "axis"),
)  # fmt: skip


@seeded(FAULTS)
def test_what_is_wrong_with_a_sequence_layer_is_named(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_sequence_layer_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_lengths_that_end_a_sequence_early_are_no_rounding(kind: type[nn.RNNBase]) -> None:
    """The evaluator that computes in double precision knows nothing of lengths: that it is right proves nothing."""
    network = vectors(f"lengths-{kind.__name__}", lambda: First(kind(12, 8)), width=8)

    def shortened(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, kind.__name__)[0]
        sizes = np.ones(network.inputs[0].shape[1], np.int32)
        edited.graph.initializer.append(numpy_helper.from_array(sizes, "lengths"))
        node.input[4] = "lengths"
        return edited

    report = network.traced(shortened(network.healthy()))
    assert report.diagnoses[0].cause == "recurrent"
