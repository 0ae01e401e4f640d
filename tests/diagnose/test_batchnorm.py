"""A BatchNorm that was folded wrongly: every way to do so is told from the numbers in the file."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.nn.utils import fusion

from tests.diagnose.edits import attributes
from tests.diagnose.seeded import Network, Seeded, check, check_quiet
from tests.realfaults.networks import chain
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from layerdiff.model import Diagnosis


def _convolutional() -> nn.Module:
    return chain(
        stem=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8, eps=1e-3),
        act=nn.ReLU(),
        neck=nn.Conv2d(8, 6, 3),
        last=nn.Sigmoid(),
    )


def _linear() -> nn.Module:
    return chain(stem=nn.Linear(6, 8), norm=nn.BatchNorm1d(8, eps=1e-3), act=nn.ReLU(), head=nn.Linear(8, 5))


def _transposed() -> nn.Module:
    return chain(
        stem=nn.ConvTranspose2d(3, 8, 3, padding=1, stride=2),
        norm=nn.BatchNorm2d(8, eps=1e-3),
        act=nn.ReLU(),
        neck=nn.Conv2d(8, 6, 3),
    )


CONV = Network("batchnorm", _convolutional, ((4, 3, 7, 7),))
LINEAR = Network("batchnorm-linear", _linear, ((5, 6),))
TRANSPOSED = Network("batchnorm-transposed", _transposed, ((2, 3, 6, 6),))


def file_of(network: Network, change: Callable[[nn.Sequential], None], exporter: Exporter) -> onnx.ModelProto:
    """The export of an altered copy of the model."""
    altered = copy.deepcopy(network.model)
    with torch.no_grad():
        change(altered)
    return export(altered, network.inputs, exporter)


def other_epsilon(model: nn.Sequential) -> None:
    model.norm.eps = 1e-5


def large_epsilon(model: nn.Sequential) -> None:
    model.norm.eps = 0.1


def without_statistics(model: nn.Sequential) -> None:
    model.norm.running_mean.zero_()
    model.norm.running_var.fill_(1.0)


def without_affine(model: nn.Sequential) -> None:
    model.norm.weight.fill_(1.0)
    model.norm.bias.zero_()


def without_weight(model: nn.Sequential) -> None:
    model.norm.weight.fill_(1.0)


def without_bias(model: nn.Sequential) -> None:
    model.norm.bias.zero_()


def without_mean(model: nn.Sequential) -> None:
    model.norm.running_mean.zero_()


def batch_statistics(model: nn.Sequential, x: torch.Tensor) -> None:
    before = model.stem(x)
    dims = [d for d in range(before.ndim) if d != 1]
    model.norm.running_mean.copy_(before.mean(dims))
    model.norm.running_var.copy_(before.var(dims, unbiased=False))


def one_more_batch(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.train()
    model.norm(model.stem(x))
    model.norm.eval()


def without_layer_bias(model: nn.Sequential) -> None:
    model.stem.bias.zero_()


def one_channel_scaled(model: nn.Sequential) -> None:
    model.stem.weight[:, 3] *= 1.5 if isinstance(model.stem, nn.ConvTranspose2d) else 1.0
    if not isinstance(model.stem, nn.ConvTranspose2d):
        model.stem.weight[3] *= 1.5


def other_statistics(model: nn.Sequential) -> None:
    model.norm.running_var.mul_(torch.linspace(0.5, 2.0, 8))
    model.norm.running_mean.add_(torch.linspace(-0.1, 0.2, 8))


def norm_bypassed(model: nn.Sequential) -> None:
    model.norm = nn.Identity()


WAYS = {
    "other-epsilon": (other_epsilon, "bn-folding", "Folded with epsilon 1e-05; the model's is 0.001."),
    "large-epsilon": (large_epsilon, "bn-folding", "Folded with epsilon 0.1; the model's is 0.001."),
    "statistics": (without_statistics, "bn-folding", "without its running statistics (mean 0, variance 1)"),
    "affine": (without_affine, "bn-folding", "Folded without its weight and bias."),
    "weight": (without_weight, "bn-folding", "Folded without its weight."),
    "bias": (without_bias, "bn-folding", "Folded without its bias."),
    "mean": (without_mean, "bn-folding", "Folded without its running mean."),
    "batch": (batch_statistics, "training-mode", "Folded with the statistics of this batch"),
    "one-more-batch": (one_more_batch, "bn-folding", "one more batch has moved (momentum 0.1)"),
    "layer-bias": (without_layer_bias, "weights", "The bias of the layer before it was lost."),
    "scaled-channel": (one_channel_scaled, "weights", "scaled in channel 3 of 8"),
    "other": (other_statistics, "bn-folding", "statistics or an affine that are not the model's"),
    "bypassed": (norm_bypassed, "dropped-op", "BatchNorm is missing"),
}
