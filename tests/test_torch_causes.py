"""A torch module against another: the causes, each proven by running the recorded candidate with one thing changed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from tests.zoo import MODELS
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

    Trace = Callable[..., Report]


class Mixed(nn.Module):
    """One layer of each kind that a fault below is planted in."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1, padding_mode="zeros")
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.LeakyReLU(0.1)
        self.pool = nn.AvgPool2d(3, 2, 1)
        self.soft = nn.Softmax(1)
        self.head = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm(self.conv(x)))
        return self.head(self.soft(self.pool(x)))


X = noise("torch.causes", 2, 3, 8, 8)


def slope(model: Any) -> None:
    model.act.negative_slope = 0.2


def epsilon(model: Any) -> None:
    model.norm.eps = 0.3


def axis(model: Any) -> None:
    model.soft.dim = 3


def pooling(model: Any) -> None:
    model.pool.count_include_pad = False


def activation(model: Any) -> None:
    model.act = nn.ReLU()


def weight(model: Any) -> None:
    with torch.no_grad():
        model.head.weight *= 2


def statistics(model: Any) -> None:
    model.norm.running_mean += 1


def training(model: Any) -> None:
    model.norm.train()


FAULTS = {
    "slope": (slope, "activation"),
    "epsilon": (epsilon, "epsilon"),
    "axis": (axis, "axis"),
    "pooling": (pooling, "pooling"),
    "activation": (activation, "activation"),
    "weight": (weight, "weights"),
    "statistics": (statistics, "weights"),
    "training": (training, "training-mode"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_cause_is_named_and_a_run_proves_it(trace: Trace, fault: str) -> None:
    model = fill(Mixed()).eval()
    change, cause = FAULTS[fault]
    other = copy.deepcopy(model)
    assert trace(model, other, X).diagnoses == ()
    change(other)
    report = trace(model, other, X)
    assert [(d.cause, d.verified) for d in report.diagnoses] == [(cause, True)], report.diagnoses


def test_the_argument_is_told_with_both_values(trace: Trace) -> None:
    sample = MODELS["resnet"]()
    other: Any = copy.deepcopy(sample.model)
    other.layer3[0].bn1.eps = 0.1
    found = trace(sample.model, other, sample.inputs).diagnoses[0]
    assert (found.cause, found.layer, found.verified) == ("epsilon", "layer3.0.bn1", True)
    assert (found.evidence["wanted"], found.evidence["got"]) == ("1e-05", "0.1")


def test_a_dropped_operator_is_put_back(trace: Trace) -> None:
    model = fill(Mixed()).eval()
    other = copy.deepcopy(model)
    other.act = nn.Identity()
    found = trace(model, other, X).diagnoses[0]
    assert (found.cause, found.verified) == ("dropped-op", True)


def test_weights_of_two_modules_are_audited(trace: Trace) -> None:
    model = fill(Mixed()).eval()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.head.bias[2] += 1
    report = trace(model, other, X)
    assert {w.parameter: w.channels for w in report.weights if str(w.verdict) != "agrees"} == {"head.bias": (2,)}
    assert all(str(w.verdict) == "agrees" for w in trace(model, model, X).weights)
