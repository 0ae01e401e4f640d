"""Guards that the sample leaves idle: what the file has in their place is no extra, and a repair puts them back."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import layerdiff

    Trace = Callable[..., layerdiff.Report]


class Guarded(nn.Module):
    """Something between two layers that is for numbers which the sample does not have."""

    def __init__(self, guard: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.guard = nn.Linear(6, 6), nn.Linear(6, 3), guard

    def forward(self, x: Tensor) -> Tensor:
        return self.last(1 / self.guard(self.first(x) ** 2 + x[:, :1]))


X = noise("guards.x", 4, 6).abs() + 1
ELSEWHERE = torch.zeros(4, 6) - 0.01


@pytest.mark.parametrize("exporter", [Exporter.TORCHSCRIPT, Exporter.DYNAMO])
@pytest.mark.parametrize(
    ("guard", "wrong"),
    [
        (lambda h: h.clamp(min=0.5), lambda h: h + 0.3),
        (lambda h: torch.relu(h) + 1e-3, lambda h: h * 1.2 + 1e-3),
        (lambda h: torch.maximum(h, torch.tensor(0.5)), lambda h: h * 1.1),
    ],
)
def test_what_stands_in_the_place_of_an_idle_guard_is_told_as_that_and_the_guard_comes_back(
    trace: Trace,
    tmp_path: Path,
    exporter: Exporter,
    guard: Callable[[Tensor], Tensor],
    wrong: Callable[[Tensor], Tensor],
) -> None:
    model = fill(Guarded(guard)).eval()
    with torch.no_grad():
        model.first.bias.zero_()
    other = Guarded(wrong).eval()
    other.load_state_dict(model.state_dict())
    report = trace(model, export(other, (X,), exporter), X)
    (found,) = report.divergences
    assert found.layer == ""
    assert found.op in ("aten.clamp", "aten.relu", "aten.maximum")
    (cause,) = report.diagnoses
    assert cause.cause != "extra-op"
    assert cause.verified
    fixed = report.repair(tmp_path / "fixed.onnx")
    assert fixed.agrees
    session = onnxruntime.InferenceSession(tmp_path / "fixed.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: ELSEWHERE.numpy()})
    np.testing.assert_allclose(got, model(ELSEWHERE).detach().numpy(), rtol=1e-4)


def test_a_guard_that_the_file_has_is_left_in_peace(trace: Trace) -> None:
    model = fill(Guarded(lambda h: h.clamp(min=0.5))).eval()
    assert trace(model, export(model, (X,), Exporter.TORCHSCRIPT), X).agrees


def test_of_two_guards_in_a_row_the_one_that_is_wrong_is_told_with_its_limit(trace: Trace) -> None:
    model = fill(Guarded(lambda h: h.clamp(0, 1e6).clamp(min=1e-5))).eval()
    other = Guarded(lambda h: h.clamp(0, 1e6).clamp(min=3.0)).eval()
    other.load_state_dict(model.state_dict())
    report = trace(model, export(other, (X,), Exporter.TORCHSCRIPT), X)
    (cause,) = report.diagnoses
    assert "is 3.0; the model's is 9.99" in cause.summary
    assert cause.verified


def test_an_extra_node_behind_a_guard_that_the_file_has_is_still_extra(trace: Trace) -> None:
    model = fill(Guarded(lambda h: h.clamp(min=0.5))).eval()
    other = Guarded(lambda h: h.clamp(min=0.5) * 1.2).eval()
    other.load_state_dict(model.state_dict())
    report = trace(model, export(other, (X,), Exporter.TORCHSCRIPT), X)
    assert report.diagnoses[0].cause == "extra-op"
