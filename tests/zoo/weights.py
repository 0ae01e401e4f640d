"""Deterministic weights of realistic scale, the same on every machine and whatever was built before."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor, nn


def noise(name: str, *shape: int) -> Tensor:
    """Standard normal numbers that depend on `name` and the shape alone."""
    seed = zlib.crc32(name.encode())
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(name: str, vocabulary: int, *shape: int) -> Tensor:
    """Token ids that depend on `name` and the arguments alone."""
    seed = zlib.crc32(name.encode())
    return torch.randint(0, vocabulary, shape, generator=torch.Generator().manual_seed(seed))


def fill(model: nn.Module, gain: float = 1.0) -> nn.Module:
    """The model with parameters drawn from their names: fan-in scaled matrices, norm weights near one, small biases."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_drawn(name, parameter, gain))
    return model.eval()


def settle(model: nn.Module, *batch: Tensor) -> nn.Module:
    """The model with BatchNorm statistics as training leaves them: those of a batch, a little off."""
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}
    momenta = {name: norm.momentum for name, norm in norms.items()}
    for norm in norms.values():
        norm.momentum = None  # a plain average over the batches seen
    with torch.no_grad():
        model.train()(*batch)
        for name, norm in norms.items():
            norm.momentum = momenta[name]
            spread = norm.running_var.sqrt()
            norm.running_mean.add_(0.1 * spread * noise(f"{name}.mean", *spread.shape))
            norm.running_var.mul_(torch.exp(0.15 * noise(f"{name}.var", *spread.shape)))
    return model.eval()


def _drawn(name: str, parameter: Tensor, gain: float) -> Tensor:
    values = noise(name, *parameter.shape)
    if parameter.dim() >= 2:
        fan_in = parameter[0].numel()
        return values * gain / math.sqrt(fan_in)
    if name.endswith("weight"):
        return 1.0 + 0.15 * values
    return 0.1 * values
