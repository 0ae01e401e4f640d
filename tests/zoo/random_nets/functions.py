"""Functions that networks call in their own forward, with the options that they can be drawn with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  what everybody calls it

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Options = Callable[[random.Random, Tensor], dict[str, Any]]


def _none(_rng: random.Random, _x: Tensor) -> dict[str, Any]:
    return {}


@dataclass(frozen=True)
class Function:
    """A function of one value, or of several of one shape.

    `kin` are those that it may be mistaken for. `torchscript` says whether that exporter writes it down as it is.
    """

    call: Callable[..., Any]
    ranks: tuple[int, ...] = (2, 3, 4)
    operands: int = 1
    options: Options = _none
    kin: tuple[str, ...] = ()
    torchscript: bool = True


def _axis(rng: random.Random, x: Tensor) -> dict[str, Any]:
    return {"dim": rng.choice([*range(1, x.dim()), -1])}


def _number(*choices: float) -> Options:
    return lambda rng, _x: {"number": rng.choice(choices)}


def _span(rng: random.Random, x: Tensor) -> dict[str, Any]:
    dim = rng.choice(range(1, x.dim()))
    length = max(1, x.shape[dim] - rng.choice([1, 2]))
    return {"dim": dim, "start": rng.choice(range(x.shape[dim] - length + 1)), "length": length}


def _permutation(rng: random.Random, x: Tensor) -> dict[str, Any]:
    return {"order": (0, *rng.sample(range(1, x.dim()), x.dim() - 1))}


def _resizing(rng: random.Random, _x: Tensor) -> dict[str, Any]:
    mode = rng.choice(["nearest", "bilinear", "bicubic"])
    options: dict[str, Any] = {"scale_factor": 2.0, "mode": mode}
    return options if mode == "nearest" else options | {"align_corners": rng.choice([False, True])}


def _padding(rng: random.Random, _x: Tensor) -> dict[str, Any]:
    mode = rng.choice(["constant", "reflect", "replicate"])
    return {"pad": (rng.choice([0, 1]), 1, 1, rng.choice([0, 1])), "mode": mode}


def _pooling(rng: random.Random, _x: Tensor) -> dict[str, Any]:
    return {"kernel_size": rng.choice([2, 3]), "stride": rng.choice([1, 2]), "padding": rng.choice([0, 1])}


def _attention(rng: random.Random, _x: Tensor) -> dict[str, Any]:
    return {"is_causal": rng.choice([False, True]), "scale": rng.choice([None, 0.4])}


def _edit_in_place(x: Tensor, number: float) -> Tensor:
    y = x.clone()
    y[:, :1] *= number
    return y


def _write_to_view(x: Tensor, number: float) -> Tensor:
    y = x.clone()
    y.narrow(-1, 0, 1).add_(number)
    return y


def _overwrite(x: Tensor, number: float) -> Tensor:
    y = torch.zeros_like(x)
    y[..., 1:] = x[..., :-1]
    y[..., 0] = number
    return y


def _standardize(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (x.var(-1, correction=0, keepdim=True) + 1e-3).sqrt()


def _rotate_half(x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=-1)
    return torch.cat((-right, left), dim=-1)


def _shuffle(x: Tensor, groups: int = 2) -> Tensor:
    n, c, *rest = x.shape
    return x.view(n, groups, c // groups, *rest).transpose(1, 2).reshape(n, c, *rest)


def _causal(x: Tensor, number: float) -> Tensor:
    scores = x @ x.transpose(-1, -2)
    mask = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(mask, number).softmax(-1) @ x


FUNCTIONS: dict[str, Function] = {
    # Joins.
    "add": Function(lambda x, y: x + y, operands=2, kin=("sub", "mul")),
    "sub": Function(lambda x, y: x - y, operands=2, kin=("add",)),
    "mul": Function(lambda x, y: x * y, operands=2, kin=("add",)),
    "gate": Function(lambda x, y: x * y.sigmoid(), operands=2, kin=("mul", "add")),
    "ratio": Function(lambda x, y: x / (1.0 + y.abs()), operands=2, kin=("mul",)),
    "maximum": Function(torch.maximum, operands=2, kin=("minimum", "add")),
    "minimum": Function(torch.minimum, operands=2, kin=("maximum",)),
    "cat": Function(lambda x, y, dim: torch.cat((x, y), dim), operands=2, options=_axis, kin=("cat_reversed",)),
    "cat_reversed": Function(lambda x, y, dim: torch.cat((y, x), dim), operands=2, options=_axis, kin=("cat",)),
    "lerp": Function(lambda x, y, number: x.lerp(y, number), operands=2, options=_number(0.3, 0.7)),
    "where": Function(lambda x, y: torch.where(x > y, x, 0.1 * y), operands=2),
    "addcmul": Function(lambda x, y, z: torch.addcmul(x, y, z, value=0.5), operands=3),
    # One value.
    "scale": Function(lambda x, number: x * number, options=_number(0.5, 0.7, 1.5)),
    "shift": Function(lambda x, number: x + number, options=_number(-0.3, 0.5, 1.0)),
    "rsub": Function(lambda x, number: number - x, options=_number(0.0, 1.0)),
    "clamp": Function(lambda x, number: x.clamp(-number, number), options=_number(0.5, 1.0)),
    "square": Function(lambda x: x**2, kin=("abs",)),
    "abs": Function(torch.abs, kin=("square",)),
    "sqrt": Function(lambda x: (x.abs() + 0.1).sqrt(), kin=("abs",)),
    "rsqrt": Function(lambda x: (x.abs() + 0.5).rsqrt(), kin=("sqrt",)),
    "log": Function(lambda x: x.abs().log1p(), kin=("abs",)),
    "exp": Function(lambda x: (0.3 * x).exp(), kin=("scale_down",)),
    "scale_down": Function(lambda x: 0.3 * x, kin=("exp",)),
    "sin": Function(torch.sin, kin=("cos", "tanh")),
    "cos": Function(torch.cos, kin=("sin",)),
    "tanh": Function(torch.tanh, kin=("sigmoid", "erf")),
    "sigmoid": Function(torch.sigmoid, kin=("tanh",)),
    "erf": Function(torch.erf, kin=("tanh",)),
    "relu": Function(F.relu, kin=("silu", "gelu")),
    "silu": Function(F.silu, kin=("relu", "gelu")),
    "gelu": Function(F.gelu, kin=("relu", "silu")),
    "softmax": Function(torch.softmax, options=_axis, kin=("log_softmax",)),
    "log_softmax": Function(torch.log_softmax, options=_axis, kin=("softmax",)),
    "normalize": Function(F.normalize, options=_axis),
    "standardize": Function(_standardize),
    "cumsum": Function(torch.cumsum, options=_axis),
    "flip": Function(lambda x, dim: x.flip(dim), options=_axis),
    "roll": Function(lambda x, dim: x.roll(1, dim), options=_axis, kin=("flip",)),
    "narrow": Function(torch.narrow, options=_span),
    "slice_join": Function(lambda x: torch.cat((x[..., ::2], x[..., 1::2]), dim=-1)),
    "rotate_half": Function(_rotate_half),
    "shuffle": Function(_shuffle, ranks=(3, 4)),
    "mean_centre": Function(lambda x, dim: x - x.mean(dim, keepdim=True), options=_axis, kin=("max_centre",)),
    "max_centre": Function(lambda x, dim: x - x.amax(dim, keepdim=True), options=_axis, kin=("mean_centre",)),
    "squeeze_excite": Function(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid(), ranks=(4,)),
    "edit_in_place": Function(_edit_in_place, options=_number(0.5, 2.0, -1.0)),
    "write_to_view": Function(_write_to_view, options=_number(0.5, 1.0), torchscript=False),  # it loses the update
    "overwrite": Function(_overwrite, options=_number(0.0, 1.0)),
    "relu_": Function(lambda x: x.clone().relu_(), kin=("relu6_",)),
    "relu6_": Function(lambda x: x.clone().clamp_(0.0, 1.0), kin=("relu_",)),
    "masked_fill": Function(lambda x, number: x.masked_fill(x > 1.0, number), options=_number(1.0, 1.5)),
    "split": Function(lambda x: x.split(x.shape[1] // 2, dim=1)),
    "chunk": Function(lambda x: x.chunk(2, dim=-1)),
    "unbind": Function(lambda x: x.unbind(1)[:2], ranks=(3, 4)),
    "stack": Function(lambda x, y: torch.stack((x, y), dim=1), ranks=(2, 3), operands=2),
    # Images and sequences.
    "permute": Function(lambda x, order: x.permute(order), ranks=(3, 4), options=_permutation),
    "interpolate": Function(F.interpolate, ranks=(4,), options=_resizing),
    "pad": Function(F.pad, ranks=(4,), options=_padding),
    "max_pool": Function(F.max_pool2d, ranks=(4,), options=_pooling, kin=("avg_pool",)),
    "avg_pool": Function(F.avg_pool2d, ranks=(4,), options=_pooling, kin=("max_pool",)),
    "tokens": Function(lambda x: x.flatten(2).transpose(1, 2), ranks=(4,)),
    "pool_all": Function(lambda x: x.mean((2, 3)), ranks=(4,), kin=("max_all",)),
    "max_all": Function(lambda x: x.amax((2, 3)), ranks=(4,), kin=("pool_all",)),
    "flatten": Function(lambda x: x.flatten(1), ranks=(3, 4)),
    "last": Function(lambda x: x[:, -1], ranks=(3,), kin=("earliest", "average")),
    "earliest": Function(lambda x: x[:, 0], ranks=(3,), kin=("last", "average")),
    "average": Function(lambda x: x.mean(1), ranks=(3,), kin=("last",)),
    "attend": Function(F.scaled_dot_product_attention, ranks=(3, 4), operands=3, options=_attention),
    "self_attend": Function(lambda x, **o: F.scaled_dot_product_attention(x, x, x, **o), (3, 4), options=_attention),
    "causal": Function(_causal, ranks=(3, 4), options=_number(-1e4, -1e9, float("-inf"))),
    "scores": Function(lambda x, y: x @ y.transpose(-1, -2), ranks=(2, 3, 4), operands=2),
    "einsum": Function(lambda x, y: torch.einsum("bid,bjd->bij", x, y), ranks=(3,), operands=2),
    "spread": Function(lambda x: x.unsqueeze(1).expand(-1, 3, -1), ranks=(2,)),
    "fold": Function(lambda x: x.reshape(x.shape[0], -1, x.shape[1] // 2), ranks=(2,)),
    "as_image": Function(lambda x: x.unsqueeze(1).repeat(1, 2, 1, 1), ranks=(3,)),
}
FINALS: dict[str, Function] = {
    "argmax": Function(lambda x: x.argmax(-1)),
    "topk": Function(lambda x: x.topk(2, dim=-1)[0]),
    "sort": Function(lambda x: x.sort(dim=-1)[0]),
    "norm": Function(lambda x: x.norm(dim=-1)),
    "logsumexp": Function(lambda x: x.logsumexp(-1)),
    "total": Function(lambda x: x.flatten(1).sum(1)),
}
"""What only comes last: its result is an output of the network."""

FUNCTIONS |= FINALS
