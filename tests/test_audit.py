"""The weights audit: what became of every parameter, also where the outputs agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import layerdiff
from layerdiff.weights import Carried, WeightResult, WeightVerdict
from tests.conftest import with_initializer
from tests.zoo import MODELS
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from layerdiff.report import Report

    Trace = Callable[..., Report]


def rows(report: Report) -> dict[str, WeightResult]:
    return {weight.parameter: weight for weight in report.weights}


def wrong(report: Report) -> dict[str, WeightResult]:
    return {name: row for name, row in rows(report).items() if row.verdict is not WeightVerdict.AGREES}


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_healthy_export_is_found(trace: Trace, name: str, exporter: Exporter) -> None:
    sample = MODELS[name]()
    report = trace(sample.model, export(sample.model, sample.inputs, exporter), sample.inputs)
    assert wrong(report) == {}
    assert report.weights
    assert {row.parameter for row in report.weights} <= set(sample.model.state_dict()) | set(
        dict(sample.model.named_buffers(remove_duplicate=False))
    )


@pytest.mark.slow
@pytest.mark.parametrize("treatment", [t for t in Treatment if t is not Treatment.RAW])
@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("name", MODELS)
def test_no_tool_makes_the_audit_tell_of_a_difference_that_is_none(
    trace: Trace, name: str, exporter: Exporter, treatment: Treatment
) -> None:
    if (name, exporter, treatment) in UNSUPPORTED:
        pytest.skip(UNSUPPORTED[name, exporter, treatment])
    sample = MODELS[name]()
    proto = treat(export(sample.model, sample.inputs, exporter), treatment)
    assert wrong(trace(sample.model, proto, sample.inputs)) == {}


def test_a_folded_batchnorm_is_recomputed_and_found(
    trace: Trace, classifier: nn.Module, image: Tensor, healthy: onnx.ModelProto
) -> None:
    report = trace(classifier, healthy, image)
    for name in ("stem.weight", "stem.bias", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"):
        row = rows(report)[name]
        assert (row.how, row.verdict) == (Carried.FOLDED, WeightVerdict.AGREES)
        assert row.max_abs < 1e-5
    assert "weights: 10 of 10 parameters found unchanged (6 folded)" in str(report)


def test_a_changed_channel_of_a_folded_weight_is_told(
    trace: Trace, classifier: nn.Module, image: Tensor, healthy: onnx.ModelProto
) -> None:
    name = next(t.name for t in healthy.graph.initializer if tuple(t.dims) == (8, 3, 3, 3))
    report = trace(classifier, with_initializer(healthy, name, _raised(5)), image)
    row = rows(report)["stem.weight"]
    assert (row.how, row.verdict, row.channels, row.initializer) == (Carried.FOLDED, WeightVerdict.DIFFERS, (5,), name)
    assert row.max_abs == pytest.approx(0.1, rel=1e-4)
    assert {name.partition(".")[0] for name in wrong(report)} == {"stem", "norm"}


def _raised(channel: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(weight: np.ndarray) -> np.ndarray:
        raised = weight.copy()
        raised[channel] += np.float32(0.1)
        return raised

    return change


class Dead(nn.Module):
    """The second channel of `first` never gets past the activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.act = nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.act(self.first(x)))


@pytest.fixture
def dead() -> nn.Module:
    model = fill(Dead()).eval()
    with torch.no_grad():
        model.first.bias[1] = -1e4
    return model


def test_a_weight_that_differs_while_the_outputs_agree_is_visible(trace: Trace, dead: nn.Module, image: Tensor) -> None:
    proto = export(dead, (image,), Exporter.TORCHSCRIPT)
    clean = trace(dead, proto, image)
    assert wrong(clean) == {}
    report = trace(dead, with_initializer(proto, "first.weight", _raised(1)), image)
    assert report.agrees
    row = wrong(report)["first.weight"]
    assert (row.channels, row.initializer, row.how) == ((1,), "first.weight", Carried.CHANGED)
    assert "weights: 3 of 4 parameters found unchanged, 1 differs" in str(report)
    assert "first.weight is not what first.weight holds" in str(report)


class Twins(nn.Module):
    """Two layers of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))


X = noise("audit.twins", 3, 6)
DAMAGE: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "zero": (np.zeros_like, "all zeros"),
    "a multiple": (lambda w: w * np.float32(1.5), "multiplied by 1.5"),
    "permuted": (lambda w: w[::-1].copy(), "the right numbers in another order"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_the_way_in_which_a_weight_differs_is_named(trace: Trace, how: str) -> None:
    model = fill(Twins()).eval()
    change, note = DAMAGE[how]
    proto = export(model, (X,), Exporter.TORCHSCRIPT)
    report = trace(model, with_initializer(proto, "one.weight", change), X)
    assert set(wrong(report)) == {"one.weight"}
    assert wrong(report)["one.weight"].note == note


def test_swapped_weights_are_told_by_the_parameter_that_they_are(trace: Trace) -> None:
    model = fill(Twins()).eval()
    proto = export(model, (X,), Exporter.TORCHSCRIPT)
    arrays = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
    swapped = with_initializer(proto, "one.weight", lambda _: arrays["two.weight"])
    swapped = with_initializer(swapped, "two.weight", lambda _: arrays["one.weight"])
    found = wrong(trace(model, swapped, X))
    assert {name: row.note for name, row in found.items()} == {
        "one.weight": "holds two.weight",
        "two.weight": "holds one.weight",
    }


def test_rounding_and_quantising_are_forms_and_no_differences(trace: Trace) -> None:
    model = fill(Twins()).eval()
    proto = export(model, (X,), Exporter.TORCHSCRIPT)
    half = _stored_as_half(proto, "one.weight")
    row = rows(trace(model, half, X))["one.weight"]
    assert (row.how, row.verdict, row.note) == (Carried.ROUNDED, WeightVerdict.AGREES, "to float16")
    assert 0 < row.max_abs < 1e-2
    eight = _stored_as_int8(proto, "one.weight")
    row = rows(trace(model, eight, X))["one.weight"]
    assert (row.how, row.verdict, row.note) == (Carried.QUANTISED, WeightVerdict.AGREES, "to int8")


def test_a_dequantised_weight_that_is_off_by_more_than_a_step_differs(trace: Trace) -> None:
    model = fill(Twins()).eval()
    eight = _stored_as_int8(export(model, (X,), Exporter.TORCHSCRIPT), "one.weight")
    report = trace(model, with_initializer(eight, "one.weight/stored", lambda q: np.clip(q, -60, 60)), X)
    assert "one.weight" in wrong(report)


def _stored_as_half(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    half = numpy_helper.to_array(tensor).astype(np.float16)
    tensor.CopyFrom(numpy_helper.from_array(half, f"{name}/stored"))
    copy.graph.node.insert(0, helper.make_node("Cast", [f"{name}/stored"], [name], to=1))
    return copy


def _stored_as_int8(proto: onnx.ModelProto, name: str) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    weight = numpy_helper.to_array(tensor)
    scale = np.float32(np.abs(weight).max() / 127)
    stored = np.clip(np.round(weight / scale), -128, 127).astype(np.int8)
    tensor.CopyFrom(numpy_helper.from_array(stored, f"{name}/stored"))
    copy.graph.initializer.append(numpy_helper.from_array(np.array(scale), f"{name}/scale"))
    names = [f"{name}/stored", f"{name}/scale"]
    copy.graph.node.insert(0, helper.make_node("DequantizeLinear", names, [name]))
    return copy


def test_gates_of_a_recurrent_layer_are_found_in_the_order_of_onnx(trace: Trace) -> None:
    model: Any = fill(nn.LSTM(4, 5)).eval()
    x = noise("audit.lstm", 3, 2, 4)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    clean = trace(model, proto, x)
    assert wrong(clean) == {}
    assert {rows(clean)[name].verdict for name in ("weight_ih_l0", "bias_hh_l0")} == {WeightVerdict.AGREES}
    name = next(node.input[1] for node in proto.graph.node if node.op_type == "LSTM")
    torch_order = with_initializer(proto, name, lambda w: w.reshape(1, 4, 5, 4)[:, [0, 2, 3, 1]].reshape(w.shape))
    assert set(wrong(trace(model, torch_order, x))) == {"weight_ih_l0"}


def test_the_audit_is_saved_and_is_a_frame(
    trace: Trace, classifier: nn.Module, image: Tensor, healthy: onnx.ModelProto, tmp_path: Path
) -> None:
    report = trace(classifier, healthy, image)
    assert layerdiff.load(report.save(tmp_path / "r.json")).weights == report.weights
    frame = report.weights_frame()
    assert list(frame["parameter"]) == [weight.parameter for weight in report.weights]
    assert set(frame["verdict"]) == {"agrees"}
    assert "weights: 10 of 10 parameters found unchanged (6 folded)" in report._repr_html_()


@pytest.mark.parametrize("tool", [Treatment.ONNXSIM, Treatment.ONNXSLIM])
def test_the_audit_of_one_file_against_another_is_quiet(
    trace: Trace, image: Tensor, healthy: onnx.ModelProto, tool: Treatment
) -> None:
    assert wrong(trace(healthy, treat(healthy, tool), image)) == {}


def test_statistics_that_were_updated_before_the_export_are_told(
    trace: Trace, classifier: nn.Module, image: Tensor
) -> None:
    later = settle(classifier, noise("audit.later", 4, 3, 10, 10))
    proto = export(later, (image,), Exporter.TORCHSCRIPT)
    torch.manual_seed(0)
    with torch.no_grad():
        classifier.norm.running_var.mul_(1.5)
    assert {"stem.weight", "norm.running_var"} <= set(wrong(trace(classifier, proto, image)))
