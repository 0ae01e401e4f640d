"""The building blocks of a YOLOv5-shaped network: Conv, Bottleneck, C3, SPPF, Concat."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Conv(nn.Module):
    """A bias-free convolution, a BatchNorm and a SiLU; padding keeps the size at stride 1."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        # The even kernel is the stem's, 6 at stride 2: YOLOv5 pads it by 2, so that the size halves exactly.
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(channels_out, eps=1e-3, momentum=0.03)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 Conv, added to the input where `shortcut` is set."""

    def __init__(self, channels: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(channels, channels)
        self.cv2 = Conv(channels, channels, 3)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C3(nn.Module):
    """Two branches of half the width, one through `depth` bottlenecks, joined by a third Conv."""

    def __init__(self, channels_in: int, channels_out: int, depth: int = 1, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = channels_out // 2
        self.cv1 = Conv(channels_in, hidden)
        self.cv2 = Conv(channels_in, hidden)
        self.cv3 = Conv(2 * hidden, channels_out)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))


class SPPF(nn.Module):
    """Spatial pyramid pooling: three max-pools in a row, all of them kept."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = channels_in // 2
        self.cv1 = Conv(channels_in, hidden)
        self.cv2 = Conv(4 * hidden, channels_out)
        self.m = nn.MaxPool2d(kernel, stride=1, padding=kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.cv1(x)]
        for _ in range(3):
            pooled.append(self.m(pooled[-1]))
        return self.cv2(torch.cat(pooled, 1))


class Concat(nn.Module):
    """Feature maps joined along the channels."""

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat(maps, 1)
