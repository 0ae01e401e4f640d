"""ViT with fused qkv and scaled_dot_product_attention; GPT with attention written out, causal, with a tied head."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, tokens


class FusedAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.unbind(0)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return functional.scaled_dot_product_attention(query, key, value)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = self.split(qkv)
        mixed = self.attend(query, key, value)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, width))


class CausalAttention(nn.Module):
    causal: Tensor

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(width // heads)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.register_buffer("causal", torch.ones(context, context, dtype=torch.bool).tril(), persistent=False)

    def split(self, qkv: Tensor) -> tuple[Tensor, ...]:
        return qkv.chunk(3, dim=-1)

    def score(self, query: Tensor, key: Tensor) -> Tensor:
        return query @ key.transpose(-2, -1) * self.scale

    def hide(self, scores: Tensor) -> Tensor:
        length = scores.shape[-1]
        return scores.masked_fill(~self.causal[:length, :length], float("-inf"))

    def normalise(self, scores: Tensor) -> Tensor:
        return scores.softmax(-1)

    def mix(self, weights: Tensor, value: Tensor) -> Tensor:
        return weights @ value

    def apart(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        return x.view(batch, length, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self.apart(part) for part in self.split(self.c_attn(x)))
        weights = self.normalise(self.hide(self.score(query, key)))
        mixed = self.mix(weights, value).transpose(1, 2)
        return self.c_proj(mixed.reshape(x.shape))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 2 * width)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = attention
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, x: Tensor) -> Tensor:
        x = self.join(x, self.attn(self.norm1(x)))
        return self.join(x, self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(self, width: int = 32, heads: int = 4, depth: int = 4, side: int = 4, classes: int = 10) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(width, 8)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, side * side + 1, width))
        self.blocks = nn.ModuleList(Block(width, FusedAttention(width, heads)) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def merge(self, parts: list[Tensor]) -> Tensor:
        return torch.cat(parts, 1)

    def embed(self, x: Tensor, position: Tensor) -> Tensor:
        return x + position

    def pick(self, x: Tensor) -> Tensor:
        return x[:, 0]

    def forward(self, image: Tensor) -> Tensor:
        patches = self.patch_embed(image)
        x = self.merge([self.cls_token.expand(patches.shape[0], -1, -1), patches])
        x = self.embed(x, self.pos_embed)
        for block in self.blocks:
            x = block(x)
        return self.head(self.pick(self.norm(x)))


class Decoder(nn.Module):
    def __init__(
        self, width: int = 32, heads: int = 4, depth: int = 3, context: int = 24, vocabulary: int = 96
    ) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocabulary, width)
        self.wpe = nn.Embedding(context, width)
        self.h = nn.ModuleList(Block(width, CausalAttention(width, heads, context)) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def positions(self, ids: Tensor) -> Tensor:
        return torch.arange(ids.shape[1], device=ids.device)

    def embed(self, x: Tensor, position: Tensor) -> Tensor:
        return x + position

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(self.wte(ids), self.wpe(self.positions(ids)))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def vit() -> Sample:
    return Sample(fill(VisionTransformer(), gain=1.2), (noise("vit.x", 2, 3, 32, 32),))


def gpt() -> Sample:
    return Sample(fill(Decoder(), gain=1.2), (tokens("gpt.ids", 96, 2, 16),))
