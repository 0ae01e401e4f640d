"""What an optimiser folded into a layer: another factor, a wrong weight or bias beneath it, or nothing wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.conftest import with_initializer
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    import layerdiff

    Trace = Callable[..., layerdiff.Report]

X = noise("folded.x", 2, 6, 8, 8)


class Branch(nn.Module):
    """A convolution whose result is halved before it is added."""

    def __init__(self, factor: float = 0.5) -> None:
        super().__init__()
        self.inside, self.outside = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.outside(torch.relu(x + self.factor * self.inside(x)))


def folded(model: nn.Module) -> onnx.ModelProto:
    """An export in which the factor went into weight and bias."""
    proto = treat(export(model, (X,), Exporter.TORCHSCRIPT), Treatment.ORT_BASIC)
    assert not any(node.op_type == "Mul" for node in proto.graph.node)
    return proto


def cause_of(trace: Trace, proto: onnx.ModelProto) -> layerdiff.Diagnosis:
    report = trace(fill(Branch()), proto, X)
    (found,) = report.divergences
    assert found.layer in ("inside", "")
    return report.diagnoses[0]


def changed(which: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]) -> onnx.ModelProto:
    """The folded export with another weight or bias of the layer inside."""
    proto = folded(fill(Branch()))
    node = next(n for n in proto.graph.node if n.op_type == "Conv" and "inside" in n.name)
    return with_initializer(proto, node.input[{"weight": 1, "bias": 2}[which]], change)


def test_a_right_fold_is_quiet(trace: Trace) -> None:
    assert trace(fill(Branch()), folded(fill(Branch())), X).agrees


def test_another_factor_is_told_with_both_numbers(trace: Trace) -> None:
    cause = cause_of(trace, folded(fill(Branch(0.8))))
    assert (cause.cause, cause.verified) == ("constant", True)
    assert cause.evidence["wanted"] == pytest.approx(0.5)
    assert cause.evidence["got"] == pytest.approx(0.8)


def test_a_wrong_channel_is_told_by_the_parameter_that_it_was_made_of(trace: Trace) -> None:
    def damage(weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        weight = weight.copy()
        weight[3] = np.abs(weight[3])
        return weight

    cause = cause_of(trace, changed("weight", damage))
    assert (cause.cause, cause.layer, cause.verified) == ("weights", "inside", True)
    assert cause.evidence["parameter"] == "inside.weight"
    assert cause.evidence["channels"] == [3]


def test_a_lost_bias_is_told_as_zeros(trace: Trace) -> None:
    cause = cause_of(trace, changed("bias", np.zeros_like))
    assert (cause.cause, cause.layer, cause.verified) == ("weights", "inside", True)
    assert cause.evidence["parameter"] == "inside.bias"
    assert cause.evidence["zero"]


def test_weights_that_were_rounded_before_the_fold_are_told_so(trace: Trace) -> None:
    model = fill(Branch())
    with torch.no_grad():
        model.inside.weight.copy_(model.inside.weight.bfloat16().float())
    cause = cause_of(trace, folded(model))
    assert (cause.cause, cause.layer, cause.verified) == ("weights", "inside", True)
    assert cause.evidence["format"] == "bfloat16"
