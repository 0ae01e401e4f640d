"""A fault beyond doubt is found, proven and explained without a float64 twin, and the twin would say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import layerdiff
from layerdiff import judging
from tests.test_sound import twins_run
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable

    Trace = Callable[..., layerdiff.Report]


def damaged(name: str, factor: float) -> tuple[Any, onnx.ModelProto]:
    """An export in which the largest weight of the middle of the file is multiplied by a factor."""
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    weights = [t for t in proto.graph.initializer if len(t.dims) > 1]
    chosen = weights[len(weights) // 2]
    chosen.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(chosen) * np.float32(factor), chosen.name))
    return sample, proto


def told(report: layerdiff.Report) -> Any:
    """All that does not depend on how noise is measured."""
    return (
        [(d.layer, d.call, d.op, d.onnx_nodes, d.healed is not None and d.healed.agrees) for d in report.divergences],
        [(d.cause, d.layer, d.verified) for d in report.diagnoses],
        [(r.layer, r.call, r.status, r.onnx_tensor) for r in report.layers],
    )


@pytest.mark.parametrize("name", ["resnet", "yolo", "unet", "vit", "gpt", "bert", "densenet"])
def test_a_large_fault_needs_no_twin_and_the_twin_would_say_the_same(
    name: str, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, proto = damaged(name, 1.5)
    twins = twins_run(monkeypatch)
    quick = trace(sample.model, proto, sample.inputs)
    assert twins == []
    assert quick.first_divergence is not None
    assert quick.first_divergence.noise is not None
    assert quick.first_divergence.noise.assumed
    monkeypatch.setattr(judging, "evident", lambda *_: None)
    full = trace(sample.model, proto, sample.inputs)
    assert len(twins) == 1
    assert told(quick) == told(full)


def test_what_lies_between_rounding_and_a_large_error_is_left_to_the_twin(
    trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second, small fault behind a large one: only the noise floor can tell that it is none of rounding."""
    sample, proto = damaged("resnet", 1.5)
    last = next(t for t in reversed(proto.graph.initializer) if len(t.dims) > 1)
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(1 + 1e-4), last.name))
    twins = twins_run(monkeypatch)
    report = trace(sample.model, proto, sample.inputs)
    assert len(twins) == 1
    assert len(report.divergences) == 2


def test_rounding_ahead_of_a_fault_at_the_end_counts_for_what_is_put_right_there(trace: Trace) -> None:
    """With the right value put in at the last layer nothing is off; with the right weights rounding still is."""
    sample = MODELS["resnet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    last = next(t for t in reversed(proto.graph.initializer) if len(t.dims) > 1)
    last.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(last) * np.float32(1.5), last.name))
    report = trace(sample.model, proto, sample.inputs)
    assert [(d.cause, d.verified) for d in report.diagnoses] == [("weights", True)]
    value = report.outputs[0]
    assert value.shipped is not None
    right = trace(sample.model, export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), sample.inputs)
    assert right.outputs[0].shipped is not None
    assert right.outputs[0].shipped.max_abs <= value.shipped.limit


def test_a_stream_of_bad_samples_runs_no_twin(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    sample, proto = damaged("resnet", 1.5)
    twins = twins_run(monkeypatch)
    report = trace(sample.model, proto, [sample.inputs[0] + torch.randn_like(sample.inputs[0]) for _ in range(3)])
    assert [one.agrees for one in report.samples] == [False, False, False]
    assert twins == []


def test_what_is_far_off_by_cancellation_alone_is_no_fault(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of two sums but their rounding: far off by the size of what is left, right by the twin."""

    class Cancelled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.Linear(64, 64), torch.nn.Linear(128, 8, bias=False)
            with torch.no_grad():
                self.a.weight.mul_(4)
                self.b.weight[:, 64:] = -self.b.weight[:, :64].flip(-1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            hidden = torch.tanh(self.a(x))
            return self.b(torch.cat([hidden, hidden.flip(-1)], -1))

    torch.manual_seed(0)
    model, x = Cancelled().eval(), torch.randn(4, 64)
    twins = twins_run(monkeypatch)
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), [x, x + 1])
    assert report.agrees
    assert [one.agrees for one in report.samples] == [True, True]
    assert len(twins) == 2
