"""Several samples: each is judged, and agreement at one size with divergence at another is a finding of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import layerdiff
from layerdiff import FixedShapeError, SampleError
from tests.conftest import graph_of
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

    Trace = Callable[..., Report]

SMALL, LARGE = noise("samples.small", 1, 3, 8, 8), noise("samples.large", 1, 3, 12, 10)


class Network(nn.Module):
    """A convolution, something in the middle, and an activation."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.conv, self.middle, self.act = nn.Conv2d(3, 4, 3, padding=1), middle, nn.Sigmoid()

    def forward(self, image: Tensor) -> Tensor:
        return self.act(self.middle(self.conv(image)))


class ByWidth(nn.Module):
    """Divides by the width of the map; by the width of another one once that has been frozen."""

    def __init__(self, width: int | None = None) -> None:
        super().__init__()
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        return x / (x.shape[-1] if self.width is None else self.width)


class Flat(nn.Module):
    """Puts all positions in one row; in a row of another length once that has been frozen."""

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[2] * x.shape[3] if self.length is None else self.length
        return x.reshape(1, 4, length).mean(-1)


def pair(middle: nn.Module, frozen: nn.Module, *, dynamic: bool = True) -> tuple[nn.Module, onnx.ModelProto]:
    """A network, and the export of the same one with something frozen in its middle."""
    model = fill(Network(middle)).eval()
    other = Network(frozen).eval()
    other.load_state_dict(model.state_dict())
    axes = {"image": {2: "height", 3: "width"}} if dynamic else None
    return model, export(other, (SMALL,), Exporter.TORCHSCRIPT, input_names=["image"], dynamic_axes=axes)


def test_a_frozen_size_is_found_by_a_second_sample(trace: Trace) -> None:
    model, proto = pair(ByWidth(), ByWidth(8))
    report = trace(model, proto, [SMALL, LARGE, SMALL * 2])
    assert not report.agrees
    assert [(s.agrees, s.shapes) for s in report.samples] == [
        (True, {"image": (1, 3, 8, 8)}),
        (False, {"image": (1, 3, 12, 10)}),
        (True, {"image": (1, 3, 8, 8)}),
    ]
    assert report.sample == 1
    assert report.first_divergence.layer == "middle"
    assert report.first_divergence.healed.agrees
    cause = report.diagnoses[0]
    assert (cause.cause, cause.layer, cause.verified) == ("baked-constant", "middle", True)
    assert cause.evidence["agrees"] == ["1x3x8x8"]
    assert cause.evidence["diverges"] == ["1x3x12x10"]
    assert report.verdict.startswith("Agrees at 1x3x8x8 and diverges at 1x3x12x10: something was frozen")
    assert "dynamic_shapes" in report.verdict


def test_an_export_that_follows_the_size_agrees_at_both(trace: Trace) -> None:
    report = trace(*pair(ByWidth(), ByWidth()), [SMALL, LARGE])
    assert report.agrees
    assert report.diagnoses == ()
    assert [sample.agrees for sample in report.samples] == [True, True]
    assert all(sample.times_limit < 1 for sample in report.samples)


def test_a_fault_that_depends_on_values_and_not_on_the_size_is_no_frozen_size(trace: Trace) -> None:
    nodes = [onnx.helper.make_node("Min", ["x", "top"], ["low"]), onnx.helper.make_node("Tanh", ["low"], ["y"])]
    proto = graph_of(nodes, {"x": ("rows", 3)}, ["y"], {"top": np.float32(1)})
    low, high = torch.zeros(2, 3), torch.full((2, 3), 2.0)
    report = trace(nn.Tanh(), proto, [low, high, torch.zeros(4, 3)])
    assert not report.agrees
    assert all(diagnosis.cause != "baked-constant" for diagnosis in report.diagnoses)
    assert report.verdict.startswith("2 of 3 samples agree.")


def test_a_size_at_which_nothing_agrees_does_not_blame_the_size(trace: Trace) -> None:
    report = trace(*pair(ByWidth(), ByWidth(5)), [SMALL, LARGE])
    assert [sample.agrees for sample in report.samples] == [False, False]
    assert report.sample == 0
    assert all(diagnosis.cause != "baked-constant" for diagnosis in report.diagnoses)


def test_a_size_that_fails_inside_of_the_graph_names_the_node_and_its_layer(trace: Trace) -> None:
    model, proto = pair(Flat(), Flat(64))
    report = trace(model, proto, [SMALL, LARGE])
    assert not report.agrees
    assert report.divergences == ()
    assert all(output.agrees for output in report.outputs)
    cause = report.diagnoses[0]
    assert (cause.cause, cause.layer) == ("baked-constant", "middle")
    assert cause.evidence["nodes"] == ["/middle/Reshape"]
    assert "cannot be reshaped" in report.samples[1].refused
    assert "is refused at 1x3x12x10" in report.verdict
    assert "The runtime gave up in middle." in report.verdict


def test_the_layer_of_a_refusing_node_is_found_without_names(trace: Trace) -> None:
    model, proto = pair(Flat(), Flat(64))
    for number, node in enumerate(proto.graph.node):
        node.name = f"n{number}"
    cause = trace(model, proto, [SMALL, LARGE]).diagnoses[0]
    assert cause.layer == "middle"
    assert cause.evidence["nodes"][0].startswith("n")


def test_a_graph_that_flattens_any_size_is_not_refused(trace: Trace) -> None:
    assert trace(*pair(Flat(), Flat()), [SMALL, LARGE]).agrees


def test_a_file_with_fixed_sizes_is_a_finding_beside_a_sample_that_agrees(trace: Trace) -> None:
    model, proto = pair(ByWidth(), ByWidth(), dynamic=False)
    report = trace(model, proto, (x for x in [LARGE, SMALL]))
    assert not report.agrees
    assert report.sample == 1
    assert "wants shape (1, 3, 8, 8)" in report.samples[0].refused
    assert report.diagnoses[0].evidence["refused"] == ["1x3x12x10"]
    assert "wants shape (1, 3, 8, 8), the sample has (1, 3, 12, 10)" in report.verdict


def test_a_file_with_fixed_sizes_and_no_sample_that_fits_is_an_error(trace: Trace) -> None:
    model, proto = pair(ByWidth(), ByWidth(), dynamic=False)
    with pytest.raises(FixedShapeError, match=r"wants shape \(1, 3, 8, 8\)"):
        trace(model, proto, LARGE)


@pytest.mark.parametrize("misfit", [SMALL[0], SMALL.double()], ids=["rank", "dtype"])
def test_a_sample_that_is_a_mistake_is_an_error_also_beside_others(trace: Trace, misfit: Any) -> None:
    with pytest.raises(SampleError, match="input 'image'"):
        trace(*pair(ByWidth(), ByWidth()), [SMALL, misfit])


def test_a_size_that_the_model_does_not_take_either_is_the_samples_fault(trace: Trace) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(1, 4, 64).mean(-1)

    with pytest.raises(layerdiff.LayerdiffError):
        trace(*pair(Fixed(), Fixed(), dynamic=False), [SMALL, LARGE])


def test_a_report_with_a_refused_sample_survives_its_file(trace: Trace, tmp_path: Any) -> None:
    report = trace(*pair(Flat(), Flat(64)), [SMALL, LARGE])
    again = layerdiff.load(report.save(tmp_path / "report.json"))
    assert again.samples == report.samples
    assert (again.agrees, again.verdict) == (False, report.verdict)
    report.plot(tmp_path / "plot.png")
