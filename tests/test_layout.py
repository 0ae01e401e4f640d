"""Channels last in the file: compared after a permutation and said so; an output in another layout is a difference."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import Tensor, nn

import layerdiff
from layerdiff.layout import after, inverse, is_trivial, moved, named, one_axis_moved
from layerdiff.model import Kind
from tests.zoo import MODELS
from tests.zoo.channels_last import LAST, channels_last
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.gate = nn.SiLU()
        self.down = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.bend = nn.LeakyReLU(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        return self.bend(self.down(x + self.gate(self.block(x))))


IMAGES = {"oblong": noise("layout", 2, 3, 10, 12), "square like its channels": noise("layout", 2, 3, 8, 8)}
CHANGES = {
    "stem": lambda net: net.stem.weight[0].mul_(1.5),
    "act": lambda net: setattr(net, "act", nn.ELU()),
    "block": lambda net: net.block.bias.add_(0.1),
    "gate": lambda net: setattr(net, "gate", nn.Sigmoid()),
    "down": lambda net: net.down.weight[2].mul_(-1),
    "bend": lambda net: setattr(net, "bend", nn.LeakyReLU(0.3)),
}


@pytest.fixture(params=IMAGES)
def image(request: pytest.FixtureRequest) -> Tensor:
    return IMAGES[request.param]


@pytest.mark.parametrize("exporter", Exporter)
def test_a_file_with_channels_last_is_quiet_and_says_what_it_compared(trace, image, exporter):
    model = fill(Net())
    report = trace(model, channels_last(export(model, (image,), exporter)), image)
    assert report.agrees
    assert report.warnings == ()
    rows = {row.layer: row for row in report.layers}
    for name in ("act", "gate"):
        assert rows[name].status.value == "agrees"
        assert rows[name].reason == "channels last (NHWC) in the file, compared after (0, 3, 1, 2)"
        assert rows[name].accumulated.max_abs < 1e-5
    assert rows["stem"].reason == ""


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("layer", CHANGES)
def test_a_fault_between_tensors_with_channels_last_is_named_exactly(trace, image, layer, exporter):
    model = fill(Net())
    damaged = copy.deepcopy(model)
    with torch.no_grad():
        CHANGES[layer](damaged)
    report = trace(model, channels_last(export(damaged, (image,), exporter)), image)
    assert [found.layer for found in report.divergences] == [layer]
    assert report.first_divergence.healed.agrees


def test_a_real_network_with_channels_last_is_covered_as_well_as_without(trace):
    sample = MODELS["mobilenet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    plain, turned = (trace(sample.model, p, sample.inputs) for p in (proto, channels_last(proto)))
    assert turned.agrees
    assert (turned.coverage.compared, turned.coverage.folded) == (plain.coverage.compared, plain.coverage.folded)


def test_an_input_with_channels_last_is_fed_so_and_the_report_says_it(trace):
    model, image = fill(Net()), IMAGES["oblong"]
    report = trace(model, channels_last(export(model, (image,), Exporter.DYNAMO), inputs=True), image)
    assert report.agrees
    assert report.warnings == ("input 'x' is channels last (NHWC) in the file: fed after (0, 2, 3, 1)",)
    with torch.no_grad():
        damaged = copy.deepcopy(model)
        damaged.stem.bias.add_(0.1)
    wrong = trace(model, channels_last(export(damaged, (image,), Exporter.DYNAMO), inputs=True), image)
    assert wrong.first_divergence.layer == "stem"
    assert wrong.first_divergence.healed.agrees


def _with_turned_output(proto: onnx.ModelProto, axes: tuple[int, ...]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(proto)
    port = result.graph.output[0]
    result.graph.node.append(helper.make_node("Transpose", [port.name], ["turned"], name="turn", perm=axes))
    port.CopyFrom(helper.make_tensor_value_info("turned", port.type.tensor_type.elem_type, [None] * len(axes)))
    return result


@pytest.mark.parametrize("axes", [LAST, (0, 1, 3, 2)])
def test_an_output_in_another_layout_is_a_divergence_and_never_accepted(trace, image, axes):
    model = fill(Net())
    report = trace(model, _with_turned_output(export(model, (image,), Exporter.TORCHSCRIPT), axes), image)
    assert not report.agrees
    first = report.first_divergence
    assert (first.kind, first.onnx_nodes) == (Kind.INSERTED, ("turn",))
    assert first.healed.agrees
    causes = [cause for cause in report.diagnoses if cause.cause == "layout"]
    assert [cause.evidence["axes"] for cause in causes] == [list(inverse(axes))]
    assert causes[0].verified
    assert f"after {inverse(axes)} it agrees" in causes[0].summary


def test_an_agreeing_export_gives_no_layout_cause(trace, image):
    model = fill(Net())
    assert trace(model, export(model, (image,), Exporter.TORCHSCRIPT), image).diagnoses == ()


def test_permutations_are_undone_and_put_together():
    x = np.arange(24).reshape(2, 3, 4)
    for axes in one_axis_moved(3):
        np.testing.assert_array_equal(x.transpose(axes).transpose(inverse(axes)), x)
        np.testing.assert_array_equal(x.transpose(axes).transpose((1, 2, 0)), x.transpose(after(axes, (1, 2, 0))))
        assert not is_trivial(axes)
        assert is_trivial(after(axes, inverse(axes)))


@pytest.mark.parametrize(
    ("shape", "wanted", "axes"),
    [
        ((2, 3, 8, 9), (2, 8, 9, 3), (0, 2, 3, 1)),
        ((2, 8, 9, 3), (None, 3, None, None), (0, 3, 1, 2)),
        ((2, 3, 8, 9), (2, 3, 8, 9), None),
        ((2, 3, 8, 9), (2, 3, 9, 8), None),
        ((2, 3, 8, 9), (2, 4, 8, 9), None),
        ((2, 3), (3, 2), None),
        ((2, 3, 8), (2, 3, 8, 1), None),
    ],
)
def test_only_the_channel_axis_is_moved_and_only_where_that_is_needed(shape, wanted, axes):
    assert moved(shape, wanted) == axes


def test_a_layout_has_the_name_that_people_know():
    assert named((0, 3, 1, 2)) == "channels last (NHWC)"
    assert named((0, 2, 3, 1)) == "channels first (NCHW)"
    assert named((0, 2, 1)) == "channels last"
    assert named((1, 0)) == "with its axes permuted"


class Attention(nn.Module):
    """Attention as one operator, which exporters take apart: the file transposes keys, the model does not."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.mixed, self.behind = (nn.Linear(16, width) for width in (16, 48, 16))

    def forward(self, x: Tensor) -> Tensor:
        parts = self.mixed(self.before(x)).view(1, 6, 3, 2, 8).permute(2, 0, 3, 1, 4)
        found = nn.functional.scaled_dot_product_attention(*parts.unbind(0))
        return self.behind(found.transpose(1, 2).reshape(1, 6, 16))


def test_what_is_multiplied_with_a_key_on_its_side_does_not_stand_on_its_side() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Attention(), Attention()).eval(), torch.randn(1, 6, 16)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    with torch.no_grad():
        model[1].before.weight.mul_(1.5)
    report = layerdiff.trace(model, proto, x, granularity="op", progress=False)
    mixed = [row for row in report.layers if row.op is not None and "scaled_dot_product" in row.op]
    assert [row.onnx_tensor for row in mixed] == ["/0/MatMul_1_output_0", "/1/MatMul_1_output_0"]
