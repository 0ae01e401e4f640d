"""Inputs that an initializer fills unless they are fed: files of IR version 3, and keep_initializers_as_inputs."""

from __future__ import annotations

import io
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import layerdiff
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

X, SCALE = noise("x", 2, 6), noise("scale", 6)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        return self.last(torch.relu(self.first(x)) * (torch.ones(6) if scale is None else scale))


def exported(*inputs: torch.Tensor, names: tuple[str, ...] = ("x", "scale")) -> onnx.ModelProto:
    """The model as TorchScript's exporter writes it with every initializer listed as an input."""
    buffer: Any = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            fill(Scaled()).eval(), inputs, buffer, input_names=list(names[: len(inputs)]),
            dynamo=False, keep_initializers_as_inputs=True, opset_version=13,
        )  # fmt: skip
    return onnx.load_from_string(buffer.getvalue())


def with_default(proto: onnx.ModelProto, name: str = "scale") -> onnx.ModelProto:
    """The export with a scale of one, which whoever calls it may override."""
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(6, np.float32), name))
    return proto


def test_weights_that_are_listed_as_inputs_are_not_fed(trace: Callable[..., Report]) -> None:
    proto = exported(X)
    listed = {port.name for port in proto.graph.input}
    assert listed > {tensor.name for tensor in proto.graph.initializer}
    assert trace(fill(Scaled()).eval(), proto, X).agrees


@pytest.mark.parametrize("names", [("x", "scale"), ("in0", "in1")])
def test_a_default_is_fed_what_the_sample_has_for_it(names: tuple[str, ...], trace: Callable[..., Report]) -> None:
    report = trace(fill(Scaled()).eval(), with_default(exported(X, SCALE, names=names), names[1]), (X, SCALE))
    assert report.agrees
    assert report.coverage.compared > 1


def test_a_default_stands_where_the_sample_has_nothing_for_it(trace: Callable[..., Report]) -> None:
    proto = with_default(exported(X, SCALE))
    assert trace(fill(Scaled()).eval(), proto, X).agrees
    assert not trace(fill(Scaled()).eval(), with_other_default(proto), X).agrees


def with_other_default(proto: onnx.ModelProto) -> onnx.ModelProto:
    proto.graph.initializer[-1].CopyFrom(numpy_helper.from_array(np.full(6, 2, np.float32), "scale"))
    return proto


def test_samples_with_and_without_a_value_for_a_default_are_judged_each_by_its_own(
    trace: Callable[..., Report],
) -> None:
    proto = with_other_default(with_default(exported(X, SCALE)))
    report = trace(fill(Scaled()).eval(), proto, [{"x": X, "scale": SCALE}, {"x": X}])
    assert [sample.agrees for sample in report.samples] == [True, False]


def test_a_fault_is_found_beside_a_default_that_is_fed(trace: Callable[..., Report]) -> None:
    model = fill(Scaled()).eval()
    with torch.no_grad():
        model.first.weight[2] += 0.3
    report = trace(model, with_default(exported(X, SCALE)), (X, SCALE))
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "first"
    assert report.diagnoses[0].cause == "weights"


def test_a_file_with_a_default_is_fed_alike_as_a_reference() -> None:
    before, after = with_default(exported(X, SCALE)), exported(X, SCALE)
    for inputs in ((X, SCALE), {"x": X, "scale": SCALE}):
        assert layerdiff.trace(before, after, inputs, progress=False).agrees


def test_a_value_of_another_shape_than_the_default_is_refused(trace: Callable[..., Report]) -> None:
    with pytest.raises(layerdiff.InputError, match="'scale'"):
        trace(fill(Scaled()).eval(), with_default(exported(X, SCALE)), (X, noise("wide", 2, 6)))
