"""Networks that make much: large images, a batch, a long text; and one that is large itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.speed.networks import NETWORKS as SPEED
from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle, tokens

if TYPE_CHECKING:
    from collections.abc import Callable


class _Twice(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        layers: list[nn.Module] = []
        for width in (inside, outside):
            layers += [nn.Conv2d(width, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]
        super().__init__(*layers)


class _UNet(nn.Module):
    """Four levels of two convolutions, after Ronneberger et al. (2015), with half its width."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = [width, 2 * width, 4 * width, 8 * width]
        self.downs = nn.ModuleList(_Twice(i, o) for i, o in zip([3, *widths], widths, strict=False))
        self.ups = nn.ModuleList(nn.ConvTranspose2d(widths[i + 1], widths[i], 2, 2) for i in (2, 1, 0))
        self.convs = nn.ModuleList(_Twice(2 * widths[i], widths[i]) for i in (2, 1, 0))
        self.head = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips: list[Tensor] = []
        for index, down in enumerate(self.downs):
            x = down(x if index == 0 else functional.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()
        for up, conv in zip(self.ups, self.convs, strict=True):
            x = conv(torch.cat([skips.pop(), up(x)], 1))
        return self.head(x)


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.ln_1(x)).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(*parts.unbind(0), is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(functional.gelu(self.up(self.ln_2(x))))


class Decoder(nn.Module):
    """A decoder of any size; 22 layers of width 2048 have 1.24 billion parameters."""

    def __init__(self, width: int = 2048, depth: int = 22, words: int = 32_000) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(512, width)
        self.layers = nn.ModuleList(_Layer(width, width // 64) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def decoder(width: int = 2048, depth: int = 22) -> Sample:
    """A decoder with torch's own random weights, which cost no second copy while they are made."""
    torch.manual_seed(0)
    return Sample(Decoder(width, depth).eval(), (tokens("ids", 32_000, 1, 64),))


@dataclass(frozen=True)
class Network:
    """How to build a network with its inputs, and the parameter that the faulty export gets wrong."""

    build: Callable[[], Sample]
    faulty: str


def _unet() -> Sample:
    return Sample(settle(fill(_UNet(), gain=1.4), noise("b", 2, 3, 64, 64)), (noise("x", 1, 3, 512, 512),))


def _resnet50() -> Sample:
    return Sample(SPEED["ResNet-50, 224"].build().model, (noise("x8", 8, 3, 224, 224),))


def _gpt2() -> Sample:
    return Sample(SPEED["GPT-2 small, 128"].build().model, (tokens("ids", 50257, 1, 512),))


NETWORKS = {
    "U-Net, 512": Network(_unet, "convs.1.1.bias"),
    "ResNet-50, batch of 8": Network(_resnet50, "layer3.2.bn2.bias"),
    "GPT-2 small, 512": Network(_gpt2, "h.6.mlp.0.bias"),
}
