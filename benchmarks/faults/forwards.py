"""Faults in a module's own forward, planted in the zoo's seams: methods small enough to be wrong in one way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.faults.fault import Fault, joined

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from benchmarks.faults.workpiece import Workpiece


@dataclass(frozen=True)
class Variant:
    """A wrong body for a seam: `body(original, *args)`."""

    seam: str
    detail: str
    body: Callable[..., Any]
    scaled: int | None = None
    """The operand that alone is multiplied by a constant."""


def _first(_: Any, *operands: Tensor) -> Tensor:
    return operands[0]


def _last(_: Any, *operands: Tensor) -> Tensor:
    return operands[-1]


def _swapped_first_two(original: Callable[..., Any], parts: list[Tensor]) -> Tensor:
    return original([parts[1], parts[0], *parts[2:]])


def _scaled_attention(_: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, scale=1 / query.shape[-1])


def _causal_attention(_: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, value, is_causal=True)


def _mask_one_late(_: Any, scores: Tensor) -> Tensor:
    visible = torch.ones(scores.shape[-2:], dtype=torch.bool).tril(1)
    return scores.masked_fill(~visible, float("-inf"))


def _positions_one_late(original: Callable[..., Any], ids: Tensor) -> Tensor:
    return original(ids) + 1


def _interpolated(mode: str, align: bool | None) -> Callable[..., Tensor]:  # noqa: FBT001  torch's own option
    def body(_: Any, x: Tensor, size: list[int]) -> Tensor:
        return functional.interpolate(x, size=size, mode=mode, align_corners=align)

    return body


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "residual-removed": (Variant("join", "the shortcut is gone", _last),),
    "branch-removed": (
        Variant("join", "the branch is gone", _first),
        Variant("embed", "no position is added", _first),
    ),
    "operands-swapped": (
        Variant("merge", "concatenated in another order", lambda f, parts: f(parts[::-1])),
        Variant("merge_boxes", "centre and size exchanged", _swapped_first_two),
        Variant("subtract", "b - a", lambda _, a, b: b - a),
        Variant("score", "k @ q", lambda f, query, key: f(key, query)),
        Variant("split", "query and value exchanged", lambda f, qkv: f(qkv)[::-1]),
        Variant("split", "key and value exchanged", lambda f, qkv: (f(qkv)[0], f(qkv)[2], f(qkv)[1])),
    ),
    "operator-changed": (
        Variant("join", "x - branch", lambda _, x, branch: x - branch),
        Variant("gate", "x + scale", lambda _, x, scale: x + scale),
        Variant("subtract", "a + b", lambda _, a, b: a + b),
        Variant("activate", "leaky", lambda _, x: functional.leaky_relu(x, 0.1)),
        Variant("activate", "gone", lambda _, x: x),
        Variant("pool", "maximum instead of mean", lambda _, x: x.amax((2, 3))),
    ),
    "constant-changed": (
        Variant("join", "x + 0.9 branch", lambda _, x, branch: x + 0.9 * branch, scaled=1),
        Variant("embed", "position times 0.5", lambda _, x, position: x + 0.5 * position, scaled=1),
        Variant("shrink", "0.33 instead of 0.3", lambda _, correction: 0.33 * correction),
        Variant("centre", "no half cell", lambda _, xy, grid, stride: (xy * 2 + grid) * stride),
        Variant("centre", "stride 8 for all", lambda f, xy, grid, stride: f(xy, grid, 8 if stride != 8 else 16)),
        Variant("size", "1.9 instead of 2", lambda _, wh, anchors: (wh * 1.9) ** 2 * anchors),
        Variant("gate", "0.95 x scale", lambda f, x, scale: f(x, scale) * 0.95),
    ),
    "attention-scale": (
        Variant("score", "other scale", lambda f, query, key: f(query, key) * 0.7),
        Variant("attend", "1/d instead of 1/sqrt(d)", _scaled_attention),
    ),
    "softmax-axis": (
        Variant("normalise", "over queries", lambda _, scores: scores.softmax(-2)),
        Variant("normalise", "over heads", lambda _, scores: scores.clamp_min(-1e4).softmax(1)),
    ),
    "mask-changed": (
        Variant("hide", "no mask", lambda _, scores: scores),
        Variant("hide", "one token of the future visible", _mask_one_late),
        Variant("attend", "causal", _causal_attention),
    ),
    "interpolate-mode": (
        Variant("resize", "nearest", _interpolated("nearest", None)),
        Variant("resize", "aligned corners", _interpolated("bilinear", align=True)),
        Variant("resize", "bicubic", _interpolated("bicubic", align=False)),
    ),
    "index-off": (
        Variant("pick", "the next one", lambda _, x: x[:, 1]),
        Variant("pick", "the one before the last", lambda _, x: x[:, -2]),
        Variant("positions", "counted from one", _positions_one_late),
        Variant("hide", "columns moved by one", lambda f, scores: f(scores.roll(1, -1))),
    ),
}

SEAMS = frozenset(variant.seam for variants in VARIANTS.values() for variant in variants)

_REMOVALS = ("residual-removed", "branch-removed")


def in_forward(kind: str) -> Callable[[Workpiece, random.Random], Fault | None]:
    """The planting of one of the kinds above."""

    def plant(piece: Workpiece, rng: random.Random) -> Fault | None:
        places = [(variant, path) for variant in VARIANTS[kind] for path in piece.survey.seams(variant.seam)]
        if not places:
            return None
        variants = list(dict.fromkeys(variant for variant, _ in places))
        variant = rng.choice(variants)
        path = rng.choice([place for other, place in places if other == variant])
        also: tuple[str, ...] = ()
        if kind in _REMOVALS:
            also = _around(piece, path, variant.seam)
        if variant.scaled is not None:  # a Mul, or no node at all, on the edge from a child to the operator
            also = joined(piece.beside_operand(path, variant.seam, variant.scaled), but=path)
        piece.override(path, variant.seam, variant.body)
        return Fault(kind, path, also, f"{variant.seam}: {variant.detail}")

    return plant


def _around(piece: Workpiece, path: str, seam: str) -> tuple[str, ...]:
    """Who reads the operator that is missing, and the ends of the module's own branches into it."""
    ends = [call for call in piece.survey.producers(path, seam) if not path or call.path.startswith(f"{path}.")]
    names = dict.fromkeys(call.path for call in (*piece.survey.consumers(path, seam), *ends))
    return tuple(name for name in names if name != path)


def upsample_mode(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = piece.modules(nn.Upsample)
    if not paths:
        return None
    path = rng.choice(paths)
    upsample = piece.module(path)
    upsample.mode, upsample.align_corners = "bilinear", rng.choice((True, False))
    return Fault("interpolate-mode", path, (), f"bilinear, align_corners={upsample.align_corners}")
