"""A reference that draws at random is named, and the rest is judged all the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

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
