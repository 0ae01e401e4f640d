"""U-Net with functional interpolation, a transposed convolution and channel concatenation in its own forwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle


class DoubleConv(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(outside)
        self.act1 = nn.LeakyReLU(0.1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(outside)
        self.act2 = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.act2(self.norm2(self.conv2(x)))


class Up(nn.Module):
    def __init__(self, inside: int, skip: int, outside: int) -> None:
        super().__init__()
        self.conv = DoubleConv(inside + skip, outside)

    def resize(self, x: Tensor, size: list[int]) -> Tensor:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.resize(x, list(skip.shape[-2:]))
        return self.conv(self.merge([skip, x]))


class UNet(nn.Module):
    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.pool = nn.MaxPool2d(2)
        self.down1 = DoubleConv(8, 16)
        self.down2 = DoubleConv(16, 24)
        self.down3 = DoubleConv(24, 32)
        self.raise3 = nn.ConvTranspose2d(32, 32, 2, 2)
        self.up2 = DoubleConv(56, 24)
        self.up1 = Up(24, 16, 16)
        self.up0 = Up(16, 8, 8)
        self.head = nn.Conv2d(8, classes, 1)

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def resize(self, x: Tensor, size: list[int]) -> Tensor:
        return functional.interpolate(x, size=size, mode="bilinear", align_corners=False)

    def forward(self, image: Tensor) -> Tensor:
        x0 = self.inc(image)
        x1 = self.down1(self.pool(x0))
        x2 = self.down2(self.pool(x1))
        x3 = self.raise3(self.down3(self.pool(x2)))
        x = self.up2(self.merge([x2, x3]))
        x = self.up0(self.up1(x, x1), x0)
        return self.resize(self.head(x), [2 * side for side in image.shape[-2:]])


def unet() -> Sample:
    model = settle(fill(UNet(), gain=1.4), noise("unet.batch", 4, 3, 48, 48))
    return Sample(model, (noise("unet.x", 1, 3, 48, 48),))
