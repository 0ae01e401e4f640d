"""float32 that torch may compute in TF32 or BF16: the file is judged in float32, and what is lost so is told."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from layerdiff.fp32 import CUDNN, MATMUL, full_float32, narrow_settings, plain_kernels
from tests.conftest import with_initializer
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from tests.conftest import Trace

X = torch.linspace(-2, 2, 64 * 256).reshape(64, 256).sin()
NEWER = hasattr(torch._C, "_get_fp32_precision_getter")
PLACES = [(library, kind) for library in ("mkldnn", "cuda") for kind in ("all", "matmul", "conv", "rnn")]


@contextmanager
def matmul(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def newer(place: Any, precision: str) -> Iterator[None]:
    before = place.fp32_precision
    place.fp32_precision = precision
    try:
        yield
    finally:
        place.fp32_precision = before


def narrows() -> bool:
    """Whether this torch, on this processor, computes a linear layer in BF16 where it may."""
    torch.manual_seed(0)
    layer = nn.Linear(256, 256)
    with torch.no_grad(), matmul("medium"):
        return bool((layer(X).double() - layer.double()(X.double())).abs().max() > 1e-4)


on_such_a_cpu = pytest.mark.skipif(not narrows(), reason="this processor computes float32 in float32 in any case")
with_newer = pytest.mark.skipif(not NEWER, reason="this torch has the older switches only")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    parts = (nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 10))
    return nn.Sequential(*parts).eval()


def exported(model: nn.Module, x: torch.Tensor) -> onnx.ModelProto:
    return export(model, (x,), Exporter.TORCHSCRIPT)


def state() -> Any:
    newest = [torch._C._get_fp32_precision_getter(*place) for place in PLACES] if NEWER else []
    return newest, torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.mkldnn.enabled


@on_such_a_cpu
def test_a_good_file_agrees_and_the_reference_is_said_to_compute_in_bf16(trace: Trace) -> None:
    model = net()
    proto = exported(model, X)
    with matmul("medium"):
        before = state()
        report = trace(model, proto, X)
        assert state() == before
        own = float((model(X).detach().double() - reference(model)).abs().max())
    (cause,) = report.diagnoses
    assert report.agrees
    assert report.divergences == ()
    assert (cause.cause, cause.layer, cause.verified) == ("precision", "0", True)
    assert cause.evidence["format"] == "BF16"
    assert cause.evidence["max_abs"] == pytest.approx(own, rel=1e-3)
    assert cause.remedy.startswith('torch.set_float32_matmul_precision("highest")')
    assert "computes matrix products in BF16 (torch.set_float32_matmul_precision)" in report.verdict


def reference(model: nn.Module) -> torch.Tensor:
    with full_float32():
        return model(X).detach().double()


@on_such_a_cpu
def test_a_small_fault_is_found_where_the_reference_may_round_to_bf16(trace: Trace) -> None:
    model = net()
    proto = with_initializer(exported(model, X), "2.weight", lambda weight: weight * 1.02)
    with matmul("medium"):
        report = trace(model, proto, X)
    assert report.first_divergence.layer == "2"
    assert [d.cause for d in report.diagnoses] == ["weights", "precision"]
    assert "2.weight is multiplied by 1.02" in report.verdict


@on_such_a_cpu
def test_two_torch_modules_are_compared_in_float32(trace: Trace) -> None:
    model, other = net(), net()
    with torch.no_grad():
        other[4].weight[0] += 1e-3
    with matmul("medium"):
        assert trace(model, net(), X).agrees
        assert trace(model, other, X).first_divergence.layer == "4"


@on_such_a_cpu
@with_newer
def test_the_setting_that_matters_is_named_among_several(trace: Trace) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 8)).eval()
    x = torch.randn(2, 16, 8, 8)
    proto = exported(model, x)
    one_dnn = torch.backends.mkldnn
    with newer(one_dnn.conv, "bf16"), newer(one_dnn.rnn, "bf16"):
        (cause,) = trace(model, proto, x).diagnoses
    assert (cause.layer, cause.evidence["setting"]) == ("0", "torch.backends.mkldnn.conv.fp32_precision")
    assert cause.remedy.startswith('torch.backends.mkldnn.conv.fp32_precision = "ieee"')
    assert trace(model, proto, x).diagnoses == ()


def test_a_setting_without_any_effect_is_not_told(trace: Trace) -> None:
    model = nn.Sequential(nn.ReLU(), nn.Flatten()).eval()
    x = torch.randn(2, 4, 4)
    with matmul("medium"):
        assert trace(model, exported(model, x), x).diagnoses == ()


def test_every_setting_is_as_before_behind_full_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for precision in ("highest", "high", "medium"):
        with matmul(precision):
            before = state()
            with full_float32():
                assert narrow_settings(("cpu", "cuda")) == ()
                assert torch.get_float32_matmul_precision() == "highest"
                assert not torch.backends.cudnn.allow_tf32
            assert state() == before


def test_one_setting_can_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with matmul("medium"):
        products, cudnn = narrow_settings(("cpu", "cuda"))
        assert (products.name, products.format, cudnn.name, cudnn.format) == (MATMUL, "BF16", CUDNN, "TF32")
        for kept in (products, cudnn):
            before = state()
            with full_float32((kept,)):
                assert narrow_settings(("cpu", "cuda")) == (kept,)
            assert state() == before


@with_newer
def test_what_is_inherited_is_still_inherited_afterwards() -> None:
    with torch.backends.flags(fp32_precision="bf16"):
        before = state()[0]
        with full_float32():
            assert narrow_settings(("cpu",)) == ()
        assert state()[0] == before
    assert narrow_settings(("cpu",)) == ()


@with_newer
def test_turning_onednn_off_does_not_reset_its_precision() -> None:
    torch._C._set_fp32_precision_setter("mkldnn", "all", "bf16")  # what torch.backends.mkldnn.flags sets
    try:
        with plain_kernels():
            assert not torch.backends.mkldnn.enabled
        assert torch.backends.mkldnn.enabled
        assert torch.backends.mkldnn.conv.fp32_precision == "bf16"
    finally:
        torch._C._set_fp32_precision_setter("mkldnn", "all", "none")


def test_the_settings_of_a_gpu_do_not_concern_a_model_on_the_cpu() -> None:
    assert narrow_settings(("cpu",)) == ()
    (setting,) = narrow_settings(("cuda",))  # torch's default
    assert (setting.format, setting.remedy) == ("TF32", "torch.backends.cudnn.allow_tf32 = False")
    assert setting.work == "convolutions and recurrent layers"
