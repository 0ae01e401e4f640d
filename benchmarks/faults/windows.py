"""Faults in sliding windows that keep every shape: padding, dilation, position, kind of pooling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn import functional

from benchmarks.faults.fault import Fault, joined

if TYPE_CHECKING:
    import random

    from benchmarks.faults.workpiece import Workpiece

_POOLS = (nn.MaxPool2d, nn.AvgPool2d, nn.AvgPool1d, nn.AdaptiveAvgPool2d)


def padding_mode(piece: Workpiece, rng: random.Random) -> Fault | None:
    path = _convolution(piece, rng)
    if path is None:
        return None
    conv = piece.module(path)
    others = sorted({"zeros", "reflect", "replicate"} - {conv.padding_mode})
    healthy, conv.padding_mode = conv.padding_mode, rng.choice(others)
    return Fault("padding-mode", path, piece.fold_partners(path), f"{conv.padding_mode} instead of {healthy}")


def padding_shifted(piece: Workpiece, rng: random.Random) -> Fault | None:
    path = _convolution(piece, rng)
    if path is None:
        return None
    conv = piece.module(path)
    widths = [side for amount in reversed(conv.padding) for side in (amount + 1, amount - 1)]
    conv.padding, conv.padding_mode = (0,) * len(conv.padding), "zeros"
    piece.override(path, "forward", lambda original, x: original(functional.pad(x, widths)))
    return Fault("padding-shifted", path, piece.fold_partners(path), f"padding {widths}: the window is one off")


def dilation(piece: Workpiece, rng: random.Random) -> Fault | None:
    path = _convolution(piece, rng)
    if path is None:
        return None
    conv = piece.module(path)
    healthy, size = conv.dilation, len(conv.dilation)
    wanted = 1 if healthy[0] > 1 else 2
    conv.padding = tuple(amount * wanted // was for amount, was in zip(conv.padding, healthy, strict=True))
    conv.dilation = (wanted,) * size
    conv._reversed_padding_repeated_twice = [a for amount in reversed(conv.padding) for a in (amount, amount)]  # noqa: SLF001
    return Fault("dilation", path, piece.fold_partners(path), f"{wanted} instead of {healthy[0]}")


def sampling_phase(piece: Workpiece, rng: random.Random) -> Fault | None:
    """A strided layer that samples the odd positions instead of the even ones."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AvgPool1d)
    paths = [path for path in piece.modules(*kinds) if _pair(piece.module(path).stride)[0] > 1]
    if not paths:
        return None
    path = rng.choice(paths)
    once = len(piece.survey.of(path)) == 1  # a pool called at several scales has another maker each time
    edge = piece.beside_input(path) if once else ()
    also = joined(edge, piece.fold_partners(path), but=path)

    def shifted(x: Tensor) -> Tensor:
        if x.dim() == 3:
            return functional.pad(x[..., 1:], (0, 1))
        return functional.pad(x[..., 1:, 1:], (0, 1, 0, 1))

    piece.override(path, "forward", lambda original, x: original(shifted(x)))
    return Fault("sampling-phase", path, also, "input moved by one")


def pool_type(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = piece.modules(*_POOLS)
    if not paths:
        return None
    path = rng.choice(paths)
    pool = piece.module(path)
    if isinstance(pool, nn.AdaptiveAvgPool2d):
        piece.replace(path, nn.AdaptiveMaxPool2d(pool.output_size))
    else:
        other = {nn.MaxPool2d: nn.AvgPool2d, nn.AvgPool2d: nn.MaxPool2d, nn.AvgPool1d: nn.MaxPool1d}[type(pool)]
        piece.replace(path, other(pool.kernel_size, pool.stride, pool.padding))
    return Fault("pool-type", path, (), f"{type(piece.module(path)).__name__} instead of {type(pool).__name__}")


def pool_divisor(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = piece.modules(nn.AvgPool1d, nn.AvgPool2d)
    if not paths:
        return None
    path = rng.choice(paths)
    pool = piece.module(path)
    pool.count_include_pad = not pool.count_include_pad
    return Fault("pool-divisor", path, (), f"count_include_pad={pool.count_include_pad}")


def pool_window(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = piece.modules(nn.MaxPool2d, nn.AvgPool2d, nn.AvgPool1d)
    if not paths:
        return None
    path = rng.choice(paths)
    pool = piece.module(path)
    healthy = _pair(pool.kernel_size)[0]
    wanted = 3 if healthy != 3 else 5
    pool.kernel_size, pool.padding = wanted, wanted // 2
    if isinstance(pool, nn.AvgPool1d):
        pool.kernel_size, pool.padding = (wanted,), (wanted // 2,)
    return Fault("pool-window", path, (), f"window of {wanted} instead of {healthy}")


def _convolution(piece: Workpiece, rng: random.Random) -> str | None:
    paths = [
        path
        for path in piece.modules(nn.Conv1d, nn.Conv2d)
        if piece.module(path).padding[0] > 0 and piece.module(path).kernel_size[0] > 1
    ]
    return rng.choice(paths) if paths else None


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value, value)
