"""ResNet with basic blocks, after torchvision: one ReLU per block, called twice."""

from __future__ import annotations

from torch import Tensor, nn

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outside)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            shortcut = nn.Conv2d(inside, outside, 1, stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outside))

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.join(shortcut, branch))


class ResNet(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (16, 24, 32, 48), depth: int = 2, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = _stage(widths[0], widths[0], depth, 1)
        self.layer2 = _stage(widths[0], widths[1], depth, 2)
        self.layer3 = _stage(widths[1], widths[2], depth, 2)
        self.layer4 = _stage(widths[2], widths[3], depth, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[3], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def _stage(inside: int, outside: int, depth: int, stride: int) -> nn.Sequential:
    first = BasicBlock(inside, outside, stride)
    return nn.Sequential(first, *(BasicBlock(outside, outside, 1) for _ in range(depth - 1)))


def resnet() -> Sample:
    model = settle(fill(ResNet(), gain=1.4), noise("resnet.batch", 8, 3, 64, 64))
    return Sample(model, (noise("resnet.x", 2, 3, 64, 64),))
