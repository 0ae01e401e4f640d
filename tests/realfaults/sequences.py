"""Recurrent layers and attention."""

from __future__ import annotations

import torch
from onnx import TensorProto
from torch import Tensor, nn
from torch.nn import functional

from tests.realfaults.case import Case, RealFault
from tests.realfaults.edit import constant_of, nodes_of, only, with_attributes, with_constant
from tests.realfaults.networks import Mixer, chain, images, ready, tokens
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import tokens as ids


class Recurrent(nn.Module):
    """The outputs of a recurrent layer, without its states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def gru_reset() -> Case:
    model = ready(tokens(encoder=Recurrent(nn.GRU(16, 16, batch_first=True))))
    x = images("gru", 2, 7, 6)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    return Case(model, (x,), with_attributes(twin, "GRU", linear_before_reset=None), twin)


def lstm_directions_interleaved() -> Case:
    model = ready(tokens(encoder=Recurrent(nn.LSTM(16, 8, batch_first=True, bidirectional=True))))
    x = images("lstm", 2, 7, 6)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    faulty = type(twin)()
    faulty.CopyFrom(twin)
    lstm = only(faulty, "LSTM")
    after = next(node for node in faulty.graph.node if lstm.output[0] in node.input)
    assert list(after.attribute[0].ints) == [0, 2, 1, 3]
    after.attribute[0].ints[:] = [0, 2, 3, 1]
    return Case(model, (x,), faulty, twin)


class Attention(nn.Module):
    """Attention with several heads, written out; `mask` is added to the scores."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if self.causal:
            length = x.shape[1]
            scores = scores + torch.full((length, length), -torch.inf).triu(1)
        return self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def causal_mask_lost() -> Case:
    model = ready(tokens(attention=Attention(16, 2, causal=True)))
    x = images("causal", 2, 7, 6)
    twin = export(model, (x,), Exporter.DYNAMO)
    (mask,) = (
        name
        for node in nodes_of(twin, "Add")
        for name in node.input
        if name in {t.name for t in twin.graph.initializer} and constant_of(twin, name).min() == -torch.inf
    )
    return Case(model, (x,), with_constant(twin, mask, torch.zeros(1, 1).numpy()), twin)


class MaskedAttention(Attention):
    """Attention with the fused function of PyTorch and a mask of what may be seen."""

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        query, key, value = (self.split(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Encoder(nn.Module):
    """Two masked attention layers with a mixer behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.attention = MaskedAttention(16, 2)
        self.mixer = Mixer(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, seen)
        return self.head(self.mixer(x))


def masked_row() -> Case:
    model = ready(Encoder())
    seen = torch.ones(2, 1, 7, 7, dtype=torch.bool)
    seen[0, 0, 5:, :] = False
    x = images("masked", 2, 7, 6)
    faulty, twin = (export(model, (x, seen), exporter) for exporter in (Exporter.DYNAMO, Exporter.TORCHSCRIPT))
    return Case(model, (x, seen), faulty, twin)


class ChannelSoftmax(nn.Module):
    """Weights of the channels at each position, applied."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.softmax(1)


def softmax_default_axis() -> Case:
    model = ready(
        chain(
            stem=nn.Conv2d(3, 8, 3, padding=1),
            act=nn.ReLU(),
            gate=ChannelSoftmax(),
            conv=nn.Conv2d(8, 8, 3, stride=2),
            norm=nn.GroupNorm(2, 8),
            last=nn.ELU(),
            flat=nn.Flatten(),
            head=nn.Linear(8 * 25, 4),
        )
    )
    x = images("softmax", 2, 3, 12, 12)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    if not any(attribute.i == 1 for attribute in only(twin, "Softmax").attribute):
        raise AssertionError("the exporter writes another axis than the model's")
    return Case(model, (x,), with_attributes(twin, "Softmax", axis=None), twin)


class Reader(nn.Module):
    """BERT's inputs: tokens, which of them are padding, and the segment of each."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(30, 16)
        self.segments = nn.Embedding(2, 16)
        self.norm = nn.LayerNorm(16)
        self.attention = MaskedAttention(16, 2)
        self.mixer = Mixer(16)
        self.head = nn.Linear(16, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> Tensor:
        x = self.norm(self.words(input_ids) + self.segments(token_type_ids))
        x = x + self.attention(x, attention_mask[:, None, None, :] > 0)
        return self.head(self.mixer(x))


def inputs_mislabelled() -> Case:
    model = ready(Reader())
    inputs = {
        "input_ids": ids("realfaults.reader", 30, 2, 9),
        "attention_mask": (torch.arange(9) < torch.tensor([[9], [6]])).long(),
        "token_type_ids": (torch.arange(9) >= torch.tensor([[4], [3]])).long(),
    }
    twin = export(model, tuple(inputs.values()), Exporter.TORCHSCRIPT)
    names = list(inputs)
    _rename_inputs(twin, names)
    faulty = type(twin)()
    faulty.CopyFrom(twin)
    _rename_inputs(faulty, [names[0], names[2], names[1]])
    return Case(model, inputs, faulty, twin)


def _rename_inputs(proto: object, names: list[str]) -> None:
    graph = proto.graph
    new = dict(zip([port.name for port in graph.input], names, strict=True))
    for port in graph.input:
        port.name = new[port.name]
        assert port.type.tensor_type.elem_type == TensorProto.INT64
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]


FAULTS = (
    RealFault(
        "gru-reset",
        ("microsoft/onnxscript#2852",),
        "The GRU is written without linear_before_reset=1, which is another formula than PyTorch's.",
        "token mixer with a GRU",
        "encoder.layer",
        frozenset({"recurrent"}),
        gru_reset,
    ),
    RealFault(
        "lstm-directions",
        ("pytorch/pytorch#10838",),
        "The outputs of the two directions of an LSTM are interleaved instead of put one after the other.",
        "token mixer with an LSTM",
        "encoder.layer",
        frozenset({"layout"}),
        lstm_directions_interleaved,
    ),
    RealFault(
        "causal-mask-lost",
        ("sonos/torch-to-nnef#217",),
        "The causal mask comes out as a single zero: tokens see the future.",
        "token mixer with attention",
        "attention",
        frozenset({"masking"}),
        causal_mask_lost,
    ),
    RealFault(
        "masked-row",
        ("microsoft/onnxscript#2479", "pytorch/pytorch#159973"),
        "A row that may see nothing is zero in PyTorch and something else in the file.",
        "transformer block",
        "attention",
        frozenset({"masking"}),
        masked_row,
        alive=True,
    ),
    RealFault(
        "softmax-default-axis",
        ("onnx/onnx-mlir#832",),
        "A softmax over the channels is read with the default axis of another opset, the last one.",
        "convolutional classifier",
        "gate",
        frozenset({"axis"}),
        softmax_default_axis,
    ),
    RealFault(
        "inputs-mislabelled",
        ("huggingface/transformers#4523",),
        "Two inputs of the file carry each other's name: attention_mask and token_type_ids.",
        "BERT-like reader",
        "",
        frozenset({"inputs"}),
        inputs_mislabelled,
    ),
)
