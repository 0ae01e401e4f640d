"""Faults in normalisation: other statistics, other epsilon."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from benchmarks.faults.fault import Fault
from benchmarks.faults.workpiece import BATCHNORM, Workpiece, noise_like

if TYPE_CHECKING:
    import random


def bn_stats(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = piece.modules(*BATCHNORM)
    if not paths:
        return None
    path = rng.choice(paths)
    norm = piece.module(path)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    detail = rng.choice(("mean moved", "variance off", "never trained"))
    if detail == "mean moved":
        mean += 0.3 * variance.sqrt() * noise_like(mean, rng)
    elif detail == "variance off":
        variance *= (0.3 * noise_like(variance, rng)).exp()
    else:
        mean.zero_()
        variance.fill_(1.0)
    piece.rewrite(path, "running_mean", mean)
    piece.rewrite(path, "running_var", variance)
    return Fault("bn-stats", path, piece.fold_partners(path), detail)


def bn_eps(piece: Workpiece, rng: random.Random) -> Fault | None:
    return _epsilon(piece, rng, "bn-eps", piece.modules(*BATCHNORM))


def norm_eps(piece: Workpiece, rng: random.Random) -> Fault | None:
    layers = piece.modules(nn.LayerNorm, nn.GroupNorm)
    root_mean_square = [path for path in piece.modules() if hasattr(piece.module(path), "variance_epsilon")]
    return _epsilon(piece, rng, "norm-eps", layers + root_mean_square)


def _epsilon(piece: Workpiece, rng: random.Random, kind: str, paths: list[str]) -> Fault | None:
    if not paths:
        return None
    path = rng.choice(paths)
    module = piece.module(path)
    name = "eps" if hasattr(module, "eps") else "variance_epsilon"
    healthy = getattr(module, name)
    value = rng.choice((1e-3, 1e-2, 0.1))
    setattr(module, name, value)
    return Fault(kind, path, piece.fold_partners(path), f"{value} instead of {healthy}")
