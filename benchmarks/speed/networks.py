"""The four reference networks at their real size, in plain torch with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.detector import SPPF, Bottleneck, Concat, Conv
from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle, tokens

if TYPE_CHECKING:
    from collections.abc import Callable


class _Bottleneck(nn.Module):
    """Three convolutions and a shortcut, after torchvision."""

    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        outside = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outside, 1, bias=False), nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        branch = self.relu(self.bn1(self.conv1(x)))
        branch = self.relu(self.bn2(self.conv2(branch)))
        branch = self.bn3(self.conv3(branch))
        return self.relu(branch + (x if self.downsample is None else self.downsample(x)))


class _ResNet50(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        inside = 64
        for number, (width, depth) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            blocks = []
            for index in range(depth):
                blocks.append(_Bottleneck(inside, width, 2 if index == 0 and number > 1 else 1))
                inside = 4 * width
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(inside, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), _Attention(width, heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width)
        act = nn.GELU(approximate="tanh") if causal else nn.GELU()
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), act, nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class _ViTB16(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 768, 16, 16)
        self.token, self.position = nn.Parameter(torch.zeros(1, 1, 768)), nn.Parameter(torch.zeros(1, 197, 768))
        self.blocks = nn.ModuleList(_Block(768, 12, causal=False) for _ in range(12))
        self.norm, self.head = nn.LayerNorm(768), nn.Linear(768, 1000)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class _GPT2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(50257, 768), nn.Embedding(1024, 768)
        self.h = nn.ModuleList(_Block(768, 12, causal=True) for _ in range(12))
        self.ln_f, self.lm_head = nn.LayerNorm(768), nn.Linear(768, 50257, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class _C3(nn.Module):
    def __init__(self, inside: int, outside: int, depth: int, *, shortcut: bool = True) -> None:
        super().__init__()
        hidden = outside // 2
        self.cv1, self.cv2, self.cv3 = Conv(inside, hidden), Conv(inside, hidden), Conv(2 * hidden, outside)
        self.m = nn.Sequential(*(Bottleneck(hidden, shortcut=shortcut) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.cv3(torch.cat([self.m(self.cv1(x)), self.cv2(x)], 1))


class _Detect(nn.Module):
    anchors: Tensor

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("anchors", 10 + 100 * noise("anchors", 3, 3, 2).abs())
        self.m = nn.ModuleList(nn.Conv2d(width, 255, 1) for width in widths)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return torch.cat([self.decode(level, maps[level]) for level in range(3)], 1)

    def decode(self, level: int, x: Tensor) -> Tensor:
        x = self.m[level](x)
        batch, _, height, width = x.shape
        x = x.view(batch, 3, 85, height, width).permute(0, 1, 3, 4, 2).contiguous().sigmoid()
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        xy, wh, scores = x.split((2, 2, 81), 4)
        xy = (xy * 2 - 0.5 + torch.stack((columns, rows), 2).float()) * 8 * 2**level
        wh = (wh * 2) ** 2 * self.anchors[level].view(1, 3, 1, 1, 2)
        return torch.cat([xy, wh, scores], -1).view(batch, 3 * height * width, 85)


class _YOLOv5s(nn.Module):
    """Layers in a list, each with the layers it reads: -1 is the one before. Widths and depths of YOLOv5s."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[tuple[nn.Module, tuple[int, ...]]] = [
            (Conv(3, 32, 6, 2), (-1,)), (Conv(32, 64, 3, 2), (-1,)), (_C3(64, 64, 1), (-1,)),
            (Conv(64, 128, 3, 2), (-1,)), (_C3(128, 128, 2), (-1,)), (Conv(128, 256, 3, 2), (-1,)),
            (_C3(256, 256, 3), (-1,)), (Conv(256, 512, 3, 2), (-1,)), (_C3(512, 512, 1), (-1,)),
            (SPPF(512, 512), (-1,)), (Conv(512, 256), (-1,)), (nn.Upsample(scale_factor=2.0), (-1,)),
            (Concat(), (-1, 6)), (_C3(512, 256, 1, shortcut=False), (-1,)), (Conv(256, 128), (-1,)),
            (nn.Upsample(scale_factor=2.0), (-1,)), (Concat(), (-1, 4)), (_C3(256, 128, 1, shortcut=False), (-1,)),
            (Conv(128, 128, 3, 2), (-1,)), (Concat(), (-1, 14)), (_C3(256, 256, 1, shortcut=False), (-1,)),
            (Conv(256, 256, 3, 2), (-1,)), (Concat(), (-1, 10)), (_C3(512, 512, 1, shortcut=False), (-1,)),
            (_Detect((128, 256, 512)), (17, 20, 23)),
        ]  # fmt: skip
        layers[0][0].conv.padding = (2, 2)
        self.model = nn.ModuleList(layer for layer, _ in layers)
        self.routes = [route for _, route in layers]

    def forward(self, x: Tensor) -> Tensor:
        seen: list[Tensor] = []
        for layer, route in zip(self.model, self.routes, strict=True):
            sources = [x if i == -1 else seen[i] for i in route]
            x = layer(sources if len(sources) > 1 else sources[0])
            seen.append(x)
        return x


@dataclass(frozen=True)
class Network:
    """How to build a network with its inputs, and the parameter that the faulty export gets wrong."""

    build: Callable[[], Sample]
    faulty: str


def _resnet50() -> Sample:
    return Sample(settle(fill(_ResNet50(), gain=1.4), noise("batch", 4, 3, 128, 128)), (noise("x", 1, 3, 224, 224),))


def _vit() -> Sample:
    return Sample(fill(_ViTB16()), (noise("x", 1, 3, 224, 224),))


def _yolov5s() -> Sample:
    return Sample(settle(fill(_YOLOv5s(), gain=1.4), noise("batch", 2, 3, 256, 256)), (noise("x", 1, 3, 640, 640),))


def _gpt2() -> Sample:
    return Sample(fill(_GPT2()), (tokens("ids", 50257, 1, 128),))


NETWORKS = {
    "ResNet-50, 224": Network(_resnet50, "layer3.2.bn2.bias"),
    "ViT-B/16, 224": Network(_vit, "blocks.6.mlp.0.bias"),
    "YOLOv5s, 640": Network(_yolov5s, "model.8.cv1.bn.bias"),
    "GPT-2 small, 128": Network(_gpt2, "h.6.mlp.0.bias"),
}
