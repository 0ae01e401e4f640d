"""A reference that draws at random is named, and the rest is judged all the same."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from layerdiff import Tolerance
from layerdiff.samples import Sample
from layerdiff.sides import open_reference
from tests.conftest import with_initializer
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from tests.conftest import Trace

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before, self.behind = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.before(x)
        return self.behind(hidden + torch.randn_like(hidden))


def dropping() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)
    ).eval()


def test_a_reference_in_train_mode_is_said_to_drop(trace: Trace) -> None:
    model = dropping()
    proto = export(model, (X,), Exporter.TORCHSCRIPT)
    assert trace(model, proto, X).diagnoses == ()
    model.train()
    report = trace(model, proto, X)
    cause = report.diagnoses[0]
    assert (cause.cause, cause.layer, cause.verified) == ("training-mode", "2", True)
    assert report.first_divergence.layer == "2"
    assert "the rest agrees" in cause.summary
    assert model.training


def test_a_random_operator_of_the_reference_is_named(trace: Trace) -> None:
    model = Noisy().eval()
    report = trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X)
    assert (report.diagnoses[0].cause, report.first_divergence.layer) == ("random", "")
    assert report.first_divergence.healed.agrees


@torch.library.custom_op("layerdiff_tests::unsteady", mutates_args=(), schema="(Tensor x, float size) -> Tensor")
def unsteady(x: torch.Tensor, size: float) -> torch.Tensor:
    """Each number a little larger, otherwise each time, and from no generator that has a seed."""
    shares = np.frombuffer(os.urandom(4 * x.numel()), np.uint32).reshape(x.shape) / 2.0**32
    return x * (1 + size * torch.from_numpy(shares).to(x.dtype))


class Unsteady(nn.Module):
    """Off by a share of each number, unless it is exported."""

    def __init__(self, size: float, how: str = "kernel") -> None:
        super().__init__()
        self.size, self.how = size, how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.onnx.is_in_onnx_export():
            return x * 1.0
        if self.how == "kernel":
            return unsteady(x, self.size)
        return x * (1 + self.size * torch.from_numpy(np.random.rand(*x.shape)).float())  # noqa: NPY002


def unsteady_net(size: float, how: str = "kernel") -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), Unsteady(size, how), nn.Linear(8, 4)).eval()


def test_a_kernel_that_is_not_deterministic_is_named_where_the_outputs_differ(trace: Trace) -> None:
    model = unsteady_net(1e-2)
    report = trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X, tolerance=Tolerance(0, 1e-5))
    cause = report.diagnoses[0]
    assert (cause.cause, cause.layer, cause.verified) == ("random", "2", True)
    assert report.first_divergence.layer == "2"
    assert "the kernel of layerdiff_tests.unsteady in 2 is not deterministic" in cause.summary
    assert cause.remedy == "torch.use_deterministic_algorithms(True)  # before layerdiff.trace"


def test_what_such_a_kernel_hides_is_warned_of(trace: Trace) -> None:
    for size in (1e-4, 1e-2, 0.5):
        model = unsteady_net(size)
        report = trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X)
        assert report.agrees
        (warning,) = report.warnings
        assert "the kernel of layerdiff_tests.unsteady in 2 is not deterministic" in warning
        assert "Outputs that agree may be off by up to" in warning


def test_a_fault_beside_such_a_kernel_comes_first(trace: Trace) -> None:
    model = unsteady_net(1e-3)
    proto = with_initializer(export(model, (X,), Exporter.TORCHSCRIPT), "3.weight", lambda weight: weight * 1.5)
    report = trace(model, proto, X)
    assert report.first_divergence.layer == "3"
    assert [(d.cause, d.layer, d.verified) for d in report.diagnoses] == [
        ("weights", "3", True),
        ("random", "2", False),
    ]


def test_last_bits_that_differ_from_run_to_run_are_rounding(trace: Trace) -> None:
    model = unsteady_net(1e-7)
    report = trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X)
    assert report.agrees
    assert report.warnings == ()
    proto = with_initializer(export(model, (X,), Exporter.TORCHSCRIPT), "3.weight", lambda weight: weight * 1.5)
    assert [d.cause for d in trace(model, proto, X).diagnoses] == ["weights"]


def test_numbers_that_numpy_draws_are_no_kernel(trace: Trace) -> None:
    np.random.seed(0)  # noqa: NPY002
    model = unsteady_net(1e-2, "numpy")
    proto = export(model, (X,), Exporter.TORCHSCRIPT)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    report = trace(model, proto, X)
    cause = report.diagnoses[0]
    assert (cause.cause, cause.layer, cause.verified) == ("random", "2", True)
    assert "2 draws at random" in cause.summary
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


class Counting(nn.Module):
    """Counts its calls inside of an object that it holds, where a trace cannot put it back, unless it is exported."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.kept, self.rng = how, SimpleNamespace(calls=0), np.random.default_rng(0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.onnx.is_in_onnx_export():
            return x * 1.0
        self.kept.calls += 1
        if self.how == "number":
            return x * (1 + 0.01 * self.kept.calls)
        if self.how == "longer":
            for _ in range(self.kept.calls):
                x = x * 1.01
            return x
        return x * torch.from_numpy(1 + 0.1 * self.rng.random(x.shape)).float()


def counting(how: str) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Counting(how), nn.Linear(8, 4)).eval()


def test_what_a_model_keeps_from_call_to_call_is_not_taken_for_a_draw(trace: Trace) -> None:
    for how in ("number", "longer"):
        model = counting(how)
        report = trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X)
        assert report.first_divergence.layer == "1"
        assert "random" not in {d.cause for d in report.diagnoses}


def test_what_a_model_keeps_from_call_to_call_is_not_put_down_to_a_setting() -> None:
    side, sample = open_reference(nn.Sequential(nn.ReLU(), Counting("number"))), Sample((X,))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert list(side.as_set(sample, side.capture(sample)).values()) == [{}]
    finally:
        torch.set_float32_matmul_precision(before)


def test_numbers_of_a_generator_that_goes_on_are_said_to_come_from_outside(trace: Trace) -> None:
    model = counting("generator")
    cause = trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X).diagnoses[0]
    assert (cause.cause, cause.layer) == ("random", "1")
    assert "1 reads numbers from outside of torch that are others each time" in cause.summary


def test_a_model_of_steady_kernels_is_not_run_again_where_nothing_else_can_be_found(trace: Trace) -> None:
    runs: list[int] = []
    model = dropping()
    model.register_forward_hook(lambda *_: runs.append(1))
    healthy = export(model, (X,), Exporter.TORCHSCRIPT)
    for proto in (healthy, with_initializer(healthy, "3.weight", lambda weight: weight * 1.5)):
        runs.clear()
        trace(model, proto, X)
        assert len(runs) == 1
