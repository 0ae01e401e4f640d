"""Recorded operators that are exported afresh: what comes out computes what PyTorch did."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  the name everybody uses
from torch import nn

from layerdiff.exporting import Exporter
from layerdiff.lowering import lowered, replayed
from layerdiff.samples import samples
from layerdiff.sides.open import open_reference
from tests.conftest import run
from tests.realfaults.networks import Apply
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.model import Reference

IMAGE, TOKENS = (2, 4, 9, 9), (2, 7, 8)


def heads(x: torch.Tensor) -> torch.Tensor:
    return x.unflatten(-1, (2, 4)).transpose(1, 2)


def attention(x: torch.Tensor, **options: Any) -> torch.Tensor:
    return F.scaled_dot_product_attention(heads(x), heads(x.sin()), heads(x.cos()), **options)


def shared_heads(x: torch.Tensor) -> torch.Tensor:
    few = heads(x.sin())[:, :1]
    return F.scaled_dot_product_attention(heads(x), few, few, enable_gqa=True)


OPERATORS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "batch_norm": (lambda: nn.BatchNorm2d(4, eps=1e-2), IMAGE),
    "layer_norm": (lambda: nn.LayerNorm(8, eps=1e-2), TOKENS),
    "group_norm": (lambda: nn.GroupNorm(2, 4, eps=1e-2), IMAGE),
    "softmax": (lambda: nn.Softmax(1), TOKENS),
    "log_softmax": (lambda: nn.LogSoftmax(-1), TOKENS),
    "log_sigmoid": (lambda: Apply(lambda x: F.logsigmoid(x * 100)), TOKENS),
    "avg_pool2d": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE),
    "avg_pool2d-divisor": (lambda: nn.AvgPool2d(3, 2, 1, divisor_override=4), IMAGE),
    "avg_pool2d-ceil": (lambda: nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), IMAGE),
    "avg_pool3d": (lambda: nn.AvgPool3d(2, divisor_override=3), (1, 2, 4, 4, 4)),
    "max_pool2d": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE),
    "max_pool2d-dilated": (lambda: nn.MaxPool2d(2, 2, 0, 2, ceil_mode=True), IMAGE),
    "max_pool3d": (lambda: nn.MaxPool3d(2), (1, 2, 4, 4, 4)),
    "adaptive_avg_pool2d": (lambda: nn.AdaptiveAvgPool2d(3), IMAGE),
    "prelu": (lambda: nn.PReLU(4), IMAGE),
    "nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE),
    "nearest-size": (lambda: nn.Upsample(size=(13, 7)), IMAGE),
    "linear": (lambda: nn.Upsample(size=11, mode="linear"), (2, 3, 7)),
    "bilinear": (lambda: nn.Upsample(size=(13, 7), mode="bilinear"), IMAGE),
    "bilinear-corners": (lambda: nn.Upsample(size=(13, 7), mode="bilinear", align_corners=True), IMAGE),
    "bilinear-scale": (lambda: nn.Upsample(scale_factor=1.7, mode="bilinear"), IMAGE),
    "bicubic": (lambda: nn.Upsample(size=(13, 7), mode="bicubic"), IMAGE),
    "trilinear": (lambda: nn.Upsample(size=(3, 5, 6), mode="trilinear"), (1, 2, 4, 4, 4)),
    "to": (lambda: Apply(lambda x: x.to(torch.float64).float() + 1), TOKENS),
    "attention": (lambda: Apply(attention), TOKENS),
    "attention-causal": (lambda: Apply(functools.partial(attention, is_causal=True)), TOKENS),
    "attention-scale": (lambda: Apply(functools.partial(attention, scale=0.3)), TOKENS),
    "attention-mask": (lambda: Apply(functools.partial(attention, attn_mask=torch.ones(7, 7).tril().bool())), TOKENS),
    "attention-shared": (lambda: Apply(shared_heads), TOKENS),
    "in-place": (lambda: Apply(lambda x: x.clone().mul_(2).add_(1).relu_()), TOKENS),
    "split": (lambda: Apply(lambda x: torch.cat(x.split(3, -1)[::-1], -1)), TOKENS),
    "lstm": (lambda: nn.Sequential(nn.LSTM(8, 5), Apply(lambda out: out[0] + out[1][0] + out[1][1])), TOKENS),
    "gru": (lambda: nn.Sequential(nn.GRU(8, 5, batch_first=True), Apply(lambda out: out[0])), TOKENS),
}


@functools.cache
def recorded(name: str) -> Reference:
    build, shape = OPERATORS[name]
    x = noise(f"lowering.{name}", *shape)
    return open_reference(fill(build())).capture(next(iter(samples(x))))


def ends(reference: Reference) -> tuple[int, int]:
    """The value that goes in and the one that comes out."""
    return reference.calls[0].inputs[0], reference.calls[0].outputs[0]


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_replayed_computes_what_was_recorded(name: str) -> None:
    reference = recorded(name)
    into, out = ends(reference)
    module = replayed(reference, range(len(reference.sites)), [into], out)
    assert module is not None
    again = module(torch.from_numpy(reference.values[into].array)).detach().numpy()
    np.testing.assert_allclose(again, reference.values[out].array, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OPERATORS)
def test_what_is_lowered_computes_what_was_recorded(name: str) -> None:
    same_in_onnx(name, Exporter.TORCHSCRIPT)


@pytest.mark.parametrize("name", ["batch_norm", "attention-causal", "avg_pool2d-divisor", "bicubic"])
def test_what_the_dynamo_exporter_lowers_computes_what_was_recorded(name: str) -> None:
    same_in_onnx(name, Exporter.DYNAMO)


def same_in_onnx(name: str, exporter: Exporter) -> None:
    reference = recorded(name)
    into, out = ends(reference)
    fresh = lowered(reference, range(len(reference.sites)), [into], out, (exporter, 18))
    assert fresh is not None
    assert fresh.exporter is exporter
    ((port, value),) = fresh.inputs.items()
    assert value == into
    got = run(fresh.model, {port: reference.values[into].array})[fresh.output]
    np.testing.assert_allclose(got, reference.values[out].array, rtol=1e-4, atol=1e-5)


def test_the_callers_modules_keep_their_training_flag() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LSTM(8, 5))
    model.train()
    reference = open_reference(model).capture(next(iter(samples(noise("lowering.flag", *TOKENS)))))
    into, out = ends(reference)
    assert lowered(reference, range(len(reference.sites)), [into], out, (Exporter.TORCHSCRIPT, 17)) is not None
    assert [module.training for module in model.modules()] == [True, True, True]


def test_a_site_that_cannot_be_called_again_is_not_lowered() -> None:
    reference = recorded("softmax")
    into, out = ends(reference)
    assert lowered(reference, [], [into], out, (Exporter.TORCHSCRIPT, 17)) is None


def test_an_input_that_the_stretch_does_not_use_is_not_lowered() -> None:
    reference = recorded("in-place")
    into, out = ends(reference)
    last = len(reference.sites) - 1
    before = reference.sites[last].inputs[0]
    assert lowered(reference, [last], [before, into], out, (Exporter.TORCHSCRIPT, 17)) is None
