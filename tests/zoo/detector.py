"""YOLOv5-shaped detector: C3 backbone, SPPF, FPN and PAN neck, anchor head; all Conv blocks share one SiLU."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle


class Conv(nn.Module):
    default_act = nn.SiLU()  # one instance for every block, as Ultralytics does

    def __init__(self, inside: int, outside: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=1e-3, momentum=0.03)
        self.act = self.default_act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    def __init__(self, width: int, *, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = Conv(width, width)
        self.cv2 = Conv(width, width, 3)
        self.add = shortcut

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, x: Tensor) -> Tensor:
        branch = self.cv2(self.cv1(x))
        return self.join(x, branch) if self.add else branch


class C3(nn.Module):
    def __init__(self, inside: int, outside: int, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = outside // 2
        self.cv1 = Conv(inside, hidden)
        self.cv2 = Conv(inside, hidden)
        self.cv3 = Conv(2 * hidden, outside)
        self.m = nn.Sequential(Bottleneck(hidden, shortcut=shortcut))

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(self.merge([self.m(self.cv1(x)), self.cv2(x)]))


class SPPF(nn.Module):
    def __init__(self, inside: int, outside: int, kernel: int = 5) -> None:
        super().__init__()
        hidden = inside // 2
        self.cv1 = Conv(inside, hidden)
        self.cv2 = Conv(4 * hidden, outside)
        self.m = nn.MaxPool2d(kernel, 1, kernel // 2)

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        once = self.m(x)
        twice = self.m(once)
        return self.cv2(self.merge([x, once, twice, self.m(twice)]))


class Concat(nn.Module):
    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def forward(self, parts: list[Tensor]) -> Tensor:
        return self.merge(parts)


class Detect(nn.Module):
    anchors: Tensor

    def __init__(self, classes: int, widths: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.outputs = classes + 5
        self.strides = strides
        sizes = [[[10.0, 13.0], [16.0, 30.0]], [[30.0, 61.0], [62.0, 45.0]], [[116.0, 90.0], [156.0, 198.0]]]
        self.register_buffer("anchors", torch.tensor(sizes) / 4)
        self.m = nn.ModuleList(nn.Conv2d(width, 2 * self.outputs, 1) for width in widths)

    def centre(self, xy: Tensor, grid: Tensor, stride: int) -> Tensor:
        return (xy * 2 - 0.5 + grid) * stride

    def size(self, wh: Tensor, anchors: Tensor) -> Tensor:
        return (wh * 2) ** 2 * anchors

    def merge_boxes(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, -1)

    def forward(self, features: list[Tensor]) -> Tensor:
        return torch.cat([self.decode(i, head(x)) for i, (head, x) in enumerate(zip(self.m, features, strict=True))], 1)

    def decode(self, level: int, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        x = x.view(batch, 2, self.outputs, height, width).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        grid = torch.stack((columns, rows), 2).float()
        xy, wh, scores = x.split((2, 2, self.outputs - 4), 4)
        xy = self.centre(xy, grid, self.strides[level])
        wh = self.size(wh, self.anchors[level].view(1, 2, 1, 1, 2))
        return self.merge_boxes([xy, wh, scores]).view(batch, 2 * height * width, self.outputs)


class Yolo(nn.Module):
    """Layers in a list, each with the layers it reads: -1 is the one before."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        layers: list[tuple[nn.Module, tuple[int, ...]]] = [
            (Conv(3, 8, 3, 2), (-1,)),
            (Conv(8, 16, 3, 2), (-1,)),
            (C3(16, 16), (-1,)),
            (Conv(16, 24, 3, 2), (-1,)),
            (C3(24, 24), (-1,)),
            (Conv(24, 32, 3, 2), (-1,)),
            (SPPF(32, 32), (-1,)),
            (Conv(32, 24), (-1,)),
            (nn.Upsample(scale_factor=2, mode="nearest"), (-1,)),
            (Concat(), (-1, 4)),
            (C3(48, 24, shortcut=False), (-1,)),
            (Conv(24, 24, 3, 2), (-1,)),
            (Concat(), (-1, 7)),
            (C3(48, 32, shortcut=False), (-1,)),
            (Detect(classes, (24, 32), (8, 16)), (10, 13)),
        ]
        self.model = nn.ModuleList(layer for layer, _ in layers)
        self.routes = [route for _, route in layers]

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for layer, route in zip(self.model, self.routes, strict=True):
            sources = [x if i == -1 else seen[i] for i in route]
            x = layer(sources if len(sources) > 1 else sources[0])
            seen.append(x)
        return x


def yolo() -> Sample:
    model = settle(fill(Yolo(), gain=1.4), noise("yolo.batch", 8, 3, 64, 64))
    return Sample(model, (noise("yolo.x", 1, 3, 64, 64),))
