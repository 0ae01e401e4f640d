"""DenseNet: normalise before the convolution, concatenate everything seen so far."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inside, 2 * growth, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(2 * growth)
        self.relu2 = nn.ReLU()
        self.conv2 = nn.Conv2d(2 * growth, growth, 3, padding=1, bias=False)

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        new = self.conv2(self.relu2(self.norm2(self.conv1(self.relu1(self.norm1(x))))))
        return self.merge([x, new])


class Transition(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.add_module("norm", nn.BatchNorm2d(inside))
        self.add_module("relu", nn.ReLU())
        self.add_module("conv", nn.Conv2d(inside, outside, 1, bias=False))
        self.add_module("pool", nn.AvgPool2d(3, 2, 1))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8, depth: tuple[int, ...] = (2, 3, 3), classes: int = 10) -> None:
        super().__init__()
        width = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, width, 3, 1, 1, bias=False))
        for block, layers in enumerate(depth):
            dense = nn.Sequential()
            for layer in range(layers):
                dense.add_module(f"denselayer{layer + 1}", DenseLayer(width, growth))
                width += growth
            self.features.add_module(f"denseblock{block + 1}", dense)
            if block < len(depth) - 1:
                self.features.add_module(f"transition{block + 1}", Transition(width, width // 2))
                width //= 2
        self.features.add_module("norm5", nn.BatchNorm2d(width))
        self.classifier = nn.Linear(width, classes)

    def activate(self, x: Tensor) -> Tensor:
        return functional.relu(x)

    def pool(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.pool(self.activate(self.features(x))))


def densenet() -> Sample:
    model = settle(fill(DenseNet(), gain=1.4), noise("densenet.batch", 8, 3, 32, 32))
    return Sample(model, (noise("densenet.x", 2, 3, 32, 32),))
