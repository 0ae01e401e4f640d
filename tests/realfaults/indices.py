"""Scatters, slices, updates in place, the order among equals."""

from __future__ import annotations

import torch
from onnx import helper
from torch import Tensor, nn

from tests.realfaults.case import Case, RealFault
from tests.realfaults.edit import nodes_of, with_nodes
from tests.realfaults.networks import Apply, Mixer, chain, images, ready, tokens
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill
from tests.zoo.weights import tokens as ids


class Grid(nn.Module):
    """The sum of the points of each of six cells."""

    def forward(self, points: Tensor, cell: Tensor) -> Tensor:
        return torch.zeros(6, points.shape[1]).index_put((cell,), points, accumulate=True)


class Pillars(nn.Module):
    """Points embedded, collected in a grid, and mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = chain(linear=nn.Linear(4, 16), norm=nn.LayerNorm(16), act=nn.ReLU())
        self.grid = Grid()
        self.mixer = Mixer(16)
        self.head = nn.Linear(16, 3)

    def forward(self, points: Tensor, cell: Tensor) -> Tensor:
        return self.head(self.mixer(self.grid(self.embed(points), cell)))


def duplicates_overwritten() -> Case:
    model = ready(Pillars())
    inputs = (images("pillars", 20, 4), ids("realfaults.cells", 6, 20))
    faulty, twin = (export(model, inputs, exporter) for exporter in (Exporter.TORCHSCRIPT, Exporter.DYNAMO))
    return Case(model, inputs, faulty, twin)


class Gate(nn.Module):
    """A convolution whose first two channels are squashed in place."""

    def __init__(self, squash: bool) -> None:  # noqa: FBT001  what the exporter lost
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.squash = squash

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.squash:
            y[:, :2] = torch.sigmoid(y[:, :2])
        return y


def update_lost() -> Case:
    models = [
        ready(
            chain(
                stem=nn.Conv2d(3, 8, 3, stride=2),
                norm=nn.GroupNorm(2, 8),
                act=nn.ReLU(),
                gate=Gate(squash),
                last=nn.SiLU(),
                mean=nn.AdaptiveAvgPool2d(1),
                flat=nn.Flatten(),
                head=nn.Linear(8, 5),
            )
        )
        for squash in (True, False)
    ]
    x = images("update", 2, 3, 16, 16)
    twin, faulty = (export(fill(model), (x,), Exporter.TORCHSCRIPT) for model in models)
    return Case(models[0], (x,), faulty, twin)


def slice_back_off_by_one() -> Case:
    model = ready(tokens(back=Apply(lambda x: x[:, 1:].flip(1))))
    x = images("slices", 2, 8, 6)
    twin = export(model, (x,), Exporter.DYNAMO)
    first, second = nodes_of(twin, "Slice")
    assert second.input[0] == first.output[0]
    back = helper.make_node("Slice", [first.input[0], "six", "end", "one", "minus"], second.output)
    constants = {"six": [6], "end": [-100], "one": [1], "minus": [-1]}  # 7:0:-1 read as the seven items from 6 down
    return Case(model, (x,), with_nodes(twin, [first.output[0], second.output[0]], [back], **constants), twin)


class Neighbours(nn.Module):
    """The differences to the nearest two points."""

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        apart = (points[:, None] - points[None]).abs().sum(-1)
        nearest = (-apart).topk(2, dim=1).indices
        return features[nearest] - features[:, None]


class PointNet(nn.Module):
    """Points with the features of their neighbours, mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = chain(linear=nn.Linear(4, 16), norm=nn.LayerNorm(16), act=nn.ReLU())
        self.neighbours = Neighbours()
        self.mixer = Mixer(16)
        self.head = nn.Linear(16, 3)

    def forward(self, points: Tensor, features: Tensor) -> Tensor:
        return self.head(self.mixer(self.neighbours(points, self.embed(features))))


def equals_in_another_order() -> Case:
    model = ready(PointNet())
    features = images("neighbours", 12, 4)
    lattice = torch.tensor([[float(i % 4), float(i // 4)] for i in range(12)])  # four points equally near
    proto = export(model, (lattice, features), Exporter.TORCHSCRIPT)
    apart = lattice + 0.2 * images("neighbours.jitter", 12, 2)
    return Case(model, (lattice, features), proto, proto, (apart, features))


FAULTS = (
    RealFault(
        "duplicates-overwritten",
        ("pytorch/pytorch#61034", "onnx/onnx#3547"),
        "index_put with accumulate=True is written as a scatter without reduction: of equal indices the last wins.",
        "point pillars",
        "grid",
        frozenset({"indexing"}),
        duplicates_overwritten,
        alive=True,
    ),
    RealFault(
        "update-of-a-slice-lost",
        ("pytorch/pytorch#19948", "pytorch/pytorch#80271"),
        "An assignment to a slice is not in the file.",
        "convolutional classifier",
        "gate",
        frozenset({"inplace"}),
        update_lost,
    ),
    RealFault(
        "slice-back-off-by-one",
        ("iree-org/iree#24584",),
        "A slice with a negative step begins and ends one item too early.",
        "token mixer",
        "back",
        frozenset({"indexing"}),
        slice_back_off_by_one,
    ),
    RealFault(
        "equals-in-another-order",
        ("microsoft/onnxruntime#19759",),
        "Of points equally near, topk takes others in ONNX Runtime than in PyTorch.",
        "point network",
        "neighbours",
        frozenset({"ties"}),
        equals_in_another_order,
        alive=True,
        provable=False,
    ),
)
