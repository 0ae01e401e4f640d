"""Layers that can be drawn for a value of a given shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    Maker = Callable[[random.Random, Tensor], nn.Module]


def convolution(rng: random.Random, x: Tensor) -> nn.Module:
    """Plain, grouped, strided or dilated, with any way to pad."""
    width, kernel = rng.choice([2, 4, 6, 8]), rng.choice([1, 3, 2])
    groups = rng.choice([g for g in (1, 2, 4) if x.shape[1] % g == 0 and width % g == 0])
    dilation = rng.choice([1, 1, 2])
    padding = rng.choice([kernel // 2 * dilation, 0])
    mode = rng.choice(["zeros", "zeros", "reflect", "replicate", "circular"]) if padding else "zeros"
    stride = rng.choice([1, 1, 2])
    made: nn.Module = _ranked("Conv", x)(
        x.shape[1], width, kernel, stride, padding, dilation, groups, bias=rng.random() < 0.7, padding_mode=mode
    )
    return made


def depthwise(rng: random.Random, x: Tensor) -> nn.Module:
    c = x.shape[1]
    made: nn.Module = _ranked("Conv", x)(c, c, 3, padding=1, groups=c, bias=rng.random() < 0.5)
    return made


def transposed(rng: random.Random, x: Tensor) -> nn.Module:
    width, stride = rng.choice([2, 4]), rng.choice([1, 2])
    groups = rng.choice([g for g in (1, 2) if x.shape[1] % g == 0])
    extra = rng.choice([0, 1]) if stride == 2 else 0
    made: nn.Module = _ranked("ConvTranspose", x)(x.shape[1], width, 3, stride, 1, extra, groups)
    return made


def linear(rng: random.Random, x: Tensor) -> nn.Module:
    return nn.Linear(x.shape[-1], rng.choice([x.shape[-1], 4, 6, 8]), bias=rng.random() < 0.8)


def batch_norm(rng: random.Random, x: Tensor) -> nn.Module:
    kind = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d}[x.dim()]
    return kind(x.shape[1], affine=rng.random() < 0.8)


def group_norm(rng: random.Random, x: Tensor) -> nn.Module:
    groups = rng.choice([g for g in (1, 2, 4) if x.shape[1] % g == 0])
    return nn.GroupNorm(groups, x.shape[1], affine=rng.random() < 0.8)


def instance_norm(rng: random.Random, x: Tensor) -> nn.Module:
    made: nn.Module = _ranked("InstanceNorm", x)(x.shape[1], affine=rng.random() < 0.5)
    return made


def layer_norm(rng: random.Random, x: Tensor) -> nn.Module:
    over = rng.choice([1, 1, min(2, x.dim() - 1)])
    return nn.LayerNorm(list(x.shape[-over:]), elementwise_affine=rng.random() < 0.8)


def rms_norm(rng: random.Random, x: Tensor) -> nn.Module:
    return nn.RMSNorm(x.shape[-1], eps=rng.choice([1e-6, 1e-3]))


def activation(rng: random.Random, x: Tensor) -> nn.Module:
    """Any activation of torch.nn; in place now and then."""
    return rng.choice(ACTIVATIONS)(rng, x)


def max_pool(rng: random.Random, x: Tensor) -> nn.Module:
    """Rounded up only without padding: else ONNX Runtime infers another shape than it computes."""
    kernel = rng.choice([2, 3])
    padding = rng.choice([kernel // 2, 0])
    made: nn.Module = _ranked("MaxPool", x)(
        kernel, rng.choice([1, 2]), padding, rng.choice([1, 1, 2]), ceil_mode=padding == 0 and rng.random() < 0.5
    )
    return made


def avg_pool(rng: random.Random, x: Tensor) -> nn.Module:
    kernel = rng.choice([2, 3])
    made: nn.Module = _ranked("AvgPool", x)(
        kernel, rng.choice([1, 2]), kernel // 2, count_include_pad=rng.choice([True, False])
    )
    return made


def adaptive_pool(rng: random.Random, x: Tensor) -> nn.Module:
    """To sizes that divide: exporters know no others."""
    sizes = [rng.choice([1, *(d for d in (2, 3, 4) if side % d == 0)]) for side in x.shape[2:]]
    return _ranked(rng.choice(["AdaptiveAvgPool", "AdaptiveMaxPool"]), x)(sizes if len(sizes) > 1 else sizes[0])


def upsample(rng: random.Random, x: Tensor) -> nn.Module:
    mode = rng.choice(["nearest", "bilinear", "bicubic"])
    size = {"scale_factor": 2.0} if rng.random() < 0.5 else {"size": tuple(s + 3 for s in x.shape[2:])}
    return nn.Upsample(**size, mode=mode, align_corners=None if mode == "nearest" else rng.random() < 0.5)


def pad(rng: random.Random, x: Tensor) -> nn.Module:
    kind = rng.choice(["ReflectionPad", "ReplicationPad", "CircularPad", "ZeroPad"])
    return _ranked(kind, x)(rng.choice([1, 2]))


def pixel_shuffle(rng: random.Random, x: Tensor) -> nn.Module:
    return nn.PixelShuffle(2) if x.shape[1] % 4 == 0 else nn.PixelUnshuffle(2)


def recurrent(rng: random.Random, x: Tensor) -> nn.Module:
    kind = rng.choice([nn.LSTM, nn.GRU, nn.RNN])
    options: dict[str, Any] = {"num_layers": rng.choice([1, 1, 2]), "bidirectional": rng.choice([False, True])}
    return kind(x.shape[-1], rng.choice([3, 4]), batch_first=True, **options)


def attention(rng: random.Random, x: Tensor) -> nn.Module:
    heads = rng.choice([h for h in (1, 2, 4) if x.shape[-1] % h == 0])
    return nn.MultiheadAttention(x.shape[-1], heads, bias=rng.random() < 0.8, batch_first=True)


def encoder(rng: random.Random, x: Tensor) -> nn.Module:
    heads = rng.choice([h for h in (1, 2) if x.shape[-1] % h == 0])
    kind = rng.choice(["relu", "gelu"])
    first = rng.random() < 0.5
    return nn.TransformerEncoderLayer(x.shape[-1], heads, 8, activation=kind, batch_first=True, norm_first=first)


def quiet(rng: random.Random, x: Tensor) -> nn.Module:
    """What does nothing in eval mode."""
    return rng.choice([nn.Identity(), nn.Dropout(0.3), nn.Dropout1d(0.2) if x.dim() == 3 else nn.Dropout(0.1)])


def _ranked(kind: str, x: Tensor) -> Any:
    return getattr(nn, f"{kind}{x.dim() - 2}d")


def _simple(kind: type[nn.Module], **options: Any) -> Maker:
    return lambda _rng, _x: kind(**options)


ACTIVATIONS: list[Maker] = [
    *(_simple(kind) for kind in (nn.ReLU, nn.SiLU, nn.GELU, nn.ELU, nn.CELU, nn.SELU, nn.Mish, nn.Hardswish)),
    *(_simple(kind) for kind in (nn.Hardsigmoid, nn.Hardtanh, nn.ReLU6, nn.LeakyReLU, nn.Sigmoid, nn.Tanh)),
    *(_simple(kind) for kind in (nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink)),
    _simple(nn.Hardshrink),
    _simple(nn.Softmin, dim=-1),
    _simple(nn.GELU, approximate="tanh"),
    _simple(nn.LeakyReLU, negative_slope=0.3),
    _simple(nn.Threshold, threshold=0.1, value=-0.2),
    _simple(nn.Softmax, dim=-1),
    _simple(nn.LogSoftmax, dim=1),
    _simple(nn.GLU, dim=1),
    _simple(nn.Softplus, beta=2.0),
    _simple(nn.ReLU, inplace=True),
    _simple(nn.SiLU, inplace=True),
    _simple(nn.LeakyReLU, inplace=True),
    lambda rng, x: nn.PReLU(rng.choice([1, x.shape[1]])),
]
_SPATIAL: list[Maker] = [
    convolution, convolution, convolution, depthwise, transposed, batch_norm, batch_norm, group_norm, instance_norm,
    max_pool, avg_pool, adaptive_pool, pad, activation, activation, activation, quiet,
]  # fmt: skip
LAYERS: dict[int, list[Maker]] = {
    2: [linear, linear, linear, batch_norm, layer_norm, rms_norm, activation, activation, quiet],
    3: [
        linear, linear, layer_norm, rms_norm, recurrent, recurrent, attention, attention, encoder, activation,
        activation, *_SPATIAL,
    ],
    4: [*_SPATIAL, upsample, pixel_shuffle, layer_norm, linear],
}  # fmt: skip
"""What fits a value of so many dimensions, the common ones several times."""
