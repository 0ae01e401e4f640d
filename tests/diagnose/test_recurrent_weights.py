"""Weights of recurrent layers: ONNX keeps both directions, and two biases, in one constant each."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import layerdiff
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(6, 8)
        self.lstm = nn.LSTM(8, 5, batch_first=True, bidirectional=True)
        self.outlet = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        states: Tensor = self.lstm(torch.tanh(self.inlet(x)))[0]
        return self.outlet(states)  # type: ignore[no-any-return]


def diagnosed(change: str, exporter: Exporter) -> layerdiff.Diagnosis:
    model, x = fill(Reader()).eval(), noise("recurrent", 2, 7, 6)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        parameter = broken.get_parameter(change)
        parameter.mul_(1 + 0.05 * noise("recurrent.change", *parameter.shape))
    report = layerdiff.trace(model, export(broken, (x,), exporter), x, progress=False)
    return report.diagnoses[0]


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("name", ["lstm.weight_hh_l0", "lstm.weight_ih_l0_reverse", "lstm.bias_ih_l0_reverse"])
def test_a_weight_of_one_direction_is_named(name: str, exporter: Exporter) -> None:
    found = diagnosed(name, exporter)
    assert (found.cause, found.evidence["parameter"]) == ("weights", name)
    assert found.verified


@pytest.mark.parametrize("exporter", Exporter)
def test_exchanged_directions_are_no_change_of_weights(exporter: Exporter) -> None:
    model, x = fill(Reader()).eval(), noise("recurrent", 2, 7, 6)
    broken = copy.deepcopy(model)
    with torch.no_grad():
        for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
            one, other = (broken.get_parameter(f"lstm.{name}{end}") for end in ("", "_reverse"))
            kept = one.clone()
            one.copy_(other)
            other.copy_(kept)
    report = layerdiff.trace(model, export(broken, (x,), exporter), x, progress=False)
    assert report.diagnoses[0].cause == "recurrent"
