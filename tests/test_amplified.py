"""A difference that is rounding in its tensor, and that what reads it makes large, is found and named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn import functional

from tests.realfaults.edit import without
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

    Trace = Callable[..., Report]

X = noise("amplified.x", 2, 4, 10)


class Net(nn.Module):
    """Two of eight channels are a millionth of the others where the function reads them."""

    def __init__(self, function: Callable[[Tensor], Tensor], bias: float = -13.0) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(4, 8, 3, padding=1), nn.Conv1d(8, 8, 3, padding=1)
        self.function = function
        fill(self)
        with torch.no_grad():
            self.first.bias[[0, 3]] = bias
            self.first.weight[[0, 3]] *= 0.3

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(functional.softplus(self.first(x))))


def logarithm(y: Tensor) -> Tensor:
    return torch.log(y + 1e-7)


def normed(y: Tensor) -> Tensor:
    centred = y - y.mean(2, keepdim=True)
    return centred / torch.sqrt(y.var(2, keepdim=True, unbiased=False) + 1e-14)


def with_number(proto: onnx.ModelProto, old: float, new: float) -> onnx.ModelProto:
    """A copy with one constant changed."""
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    held = [a.t for n in result.graph.node for a in n.attribute if n.op_type == "Constant"]
    found = [
        tensor
        for tensor in (*held, *result.graph.initializer)
        if (array := numpy_helper.to_array(tensor)).size == 1
        and array.dtype == np.float32
        and np.isclose(array, old, 1e-3)
    ]
    assert len(found) == 1
    found[0].CopyFrom(numpy_helper.from_array(np.full(found[0].dims, new, np.float32), found[0].name))
    return result


@pytest.mark.parametrize(
    ("function", "old", "new"), [(logarithm, 1e-7, 2e-6), (normed, 1e-14, 1e-9)], ids=["logarithm", "norm"]
)
def test_another_epsilon_beside_large_numbers_is_named(
    trace: Trace, function: Callable[[Tensor], Tensor], old: float, new: float
) -> None:
    """The dynamo exporter would take 1e-14 out of its own accord."""
    model = Net(function)
    proto = export(model, (X,), Exporter.TORCHSCRIPT)
    assert trace(model, proto, X).agrees
    report = trace(model, with_number(proto, old, new), X)
    assert not report.agrees
    found = report.diagnoses[0]
    assert (found.cause, found.verified) == ("epsilon", True)
    assert report.first_divergence is not None
    assert report.first_divergence.op == "aten.add.Tensor"
    assert report.first_divergence.healed is not None
    assert report.first_divergence.healed.agrees


def test_a_lost_epsilon_is_missing_from_the_file(trace: Trace) -> None:
    model = Net(logarithm)
    report = trace(model, without(export(model, (X,), Exporter.TORCHSCRIPT), "Add"), X)
    found = report.diagnoses[0]
    assert (found.cause, found.summary, found.verified) == ("epsilon", "add.Tensor is missing from the file.", True)


def test_a_lost_clamp_that_leads_to_no_number_is_missing_from_the_file(trace: Trace) -> None:
    model = Net(lambda y: functional.normalize(functional.relu(y - 1), dim=2), bias=-50.0)
    report = trace(model, without(export(model, (X,), Exporter.TORCHSCRIPT), "Clip"), X)
    assert not report.agrees
    assert report.diagnoses[0].summary == "clamp_min is missing from the file."


def test_an_error_that_no_twin_would_explain_is_no_agreement(trace: Trace) -> None:
    """Every layer is right to a few units of its largest number; what is off at the end is a thousand times as much."""
    model = Net(logarithm, bias=-11.0)
    report = trace(model, with_number(export(model, (X,), Exporter.TORCHSCRIPT), 1e-7, 2e-7), X)
    metrics = report.outputs[0].shipped
    assert metrics is not None
    assert 1e-4 < metrics.max_abs < 1e-1
    assert not report.agrees
