"""Rounding all over a graph is no one's fault; a range that is exceeded is."""

from __future__ import annotations

import copy

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from layerdiff.model import Diffuse, RoundedLayer
from layerdiff.report import text
from layerdiff.weights import WeightVerdict
from tests.conftest import report_of, run
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise, settle

pytestmark = pytest.mark.filterwarnings("ignore")  # the converters warn about truncated weights


class _Calibration(CalibrationDataReader):
    def __init__(self, feeds):
        self._feeds = iter([feeds])

    def get_next(self):
        return next(self._feeds, None)


@pytest.fixture(scope="module")
def resnet():
    sample = MODELS["resnet"]()
    return sample, export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)


def _static(proto, folder, factor=1.0):
    source, target = folder / "fp32.onnx", folder / "int8.onnx"
    onnx.save(proto, source)
    name = proto.graph.input[0].name
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32) * factor
    return _calibrated(source, target, {name: images})


def _calibrated(source, target, feeds):
    quantize_static(source, target, _Calibration(feeds), quant_format=QuantFormat.QDQ, per_channel=True)
    return onnx.load(target)


def test_a_model_in_half_precision_has_no_single_culprit(trace, resnet):
    sample, proto = resnet
    report = trace(sample.model, convert_float_to_float16(proto, keep_io_types=True), sample.inputs)
    assert not report.agrees
    assert report.divergences == ()
    assert report.diffuse.format == "float16"
    errors = [layer.rel_l2 for layer in report.diffuse.layers]
    assert errors == sorted(errors, reverse=True)
    assert max(errors) < 16 * 2.0**-11
    assert any(layer.healed is not None and layer.healed.after < layer.healed.before for layer in report.diffuse.layers)
    assert "no single layer is to blame" in report.verdict


def test_dynamic_quantisation_is_diffuse(trace, resnet, tmp_path):
    sample, proto = resnet
    onnx.save(proto, tmp_path / "fp32.onnx")
    quantize_dynamic(tmp_path / "fp32.onnx", tmp_path / "int8.onnx")
    report = trace(sample.model, tmp_path / "int8.onnx", sample.inputs)
    assert report.divergences == ()
    assert report.diffuse.format == "int8"


def test_a_quantised_input_out_of_its_calibrated_range_is_an_origin(trace, resnet, tmp_path):
    sample, proto = resnet
    report = trace(sample.model, _static(proto, tmp_path, factor=0.05), sample.inputs)
    assert report.first_divergence.layer == "conv1"
    assert report.layers[0].status.value in ("diverges", "folded")


def test_one_rounded_layer_alone_is_an_origin(trace):
    from benchmarks.faults import KINDS
    from benchmarks.faults.cases import Foundry

    case = next(iter(Foundry(5, ["resnet"], kinds={"half-output": KINDS["half-output"]}).cases(1)))
    report = trace(case.model, case.proto, case.inputs)
    assert report.diffuse is None
    assert case.fault.accepts(report.first_divergence.layer)


class Bottleneck(nn.Module):
    """Wide layers that are clipped at six, far below their largest values, beside a shortcut."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.up = nn.Sequential(nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32), nn.ReLU6())
        self.down = nn.Sequential(nn.Conv2d(32, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head((x + self.down(self.up(x))).mean((2, 3)))


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_clip_that_the_quantiser_left_to_the_range_is_no_saturation(trace, form, tmp_path):
    model, x = settle(fill(Bottleneck()), noise("precision.batch", 8, 3, 12, 12)), noise("precision.x", 1, 3, 12, 12)
    with torch.no_grad():
        for part in (model.stem, model.up, model.down):
            part[1].weight *= 3
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    source, target = tmp_path / "source.onnx", tmp_path / "target.onnx"
    onnx.save(proto, source)
    feeds = {proto.graph.input[0].name: x.numpy()}
    quantize_static(source, target, _Calibration(feeds), quant_format=form, activation_type=QuantType.QUInt8)
    report = trace(model, target, x)
    assert report.divergences == ()
    assert report.diffuse.format == "int8"


class Scaled(nn.Module):
    """A block that is scaled by 1e-6 before it is added, as ConvNeXt begins."""

    def __init__(self, width=16):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 32), nn.Linear(32, width)

    def forward(self, x):
        return x + 1e-6 * self.down(nn.functional.gelu(self.up(self.norm(x))))


def test_a_factor_too_small_for_half_precision_is_rounding_like_any_other(trace):
    x = noise("precision.vector", 4, 16)
    model = fill(nn.Sequential(nn.Linear(16, 16), Scaled(), Scaled(), nn.Linear(16, 4)))
    proto = convert_float_to_float16(export(model, (x,), Exporter.TORCHSCRIPT), keep_io_types=True)
    report = trace(model, proto, x)
    assert report.divergences == ()
    assert report.diffuse.format == "float16"


def test_a_range_from_other_data_is_named_with_the_range_that_was_needed(trace, resnet, tmp_path):
    sample, proto = resnet
    report = trace(sample.model, _static(proto, tmp_path, factor=0.05), sample.inputs)
    first = report.diagnoses[0]
    assert first.cause == "quantization"
    assert "lie outside the range of its scale and zero point" in first.summary
    low, high = first.evidence["range"]
    smallest, largest = first.evidence["values"]
    assert smallest < low or largest > high
    wanted_low, wanted_high = first.evidence["wanted_range"]
    step = first.evidence["wanted_scale"]
    assert wanted_low <= smallest + step
    assert wanted_high >= largest - step
    assert "quantize_static" in first.remedy


def _with_scale(proto, factor, index):
    """The scale of one stored weight, multiplied; the zero point and the integers as they are."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    nodes = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in stored]
    node = [n for n in nodes if len(stored[n.input[0]].dims) > 1][index]
    scale = numpy_helper.to_array(stored[node.input[1]]) * np.float32(factor)
    proto.graph.initializer.append(numpy_helper.from_array(scale, "seeded.scale"))
    node.input[1] = "seeded.scale"
    return node.input[0]


@pytest.mark.parametrize("factor", [1.15, 2.0], ids=["within what eight bits allow", "beyond"])
def test_a_wrong_scale_of_stored_weights_is_named_however_little_it_shows(trace, resnet, tmp_path, factor):
    sample, proto = resnet
    onnx.save(proto, tmp_path / "fp32.onnx")
    feeds = {proto.graph.input[0].name: sample.inputs[0].numpy()}
    quantised = _calibrated(tmp_path / "fp32.onnx", tmp_path / "int8.onnx", feeds)
    weights = _with_scale(quantised, factor, 4)
    report = trace(sample.model, quantised, sample.inputs)
    assert len(report.diagnoses) == 1
    first = report.diagnoses[0]
    assert (first.cause, first.verified) == ("quantization", True)
    assert f"The int8 weights {weights} have a scale that is {factor:.4g} times theirs" in first.summary


def test_rounded_weights_of_square_matrices_are_the_models(trace, tmp_path):
    x = noise("precision.square", 3, 8, 16)
    model = fill(nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16)))
    report = trace(model, _static(export(model, (x,), Exporter.TORCHSCRIPT), tmp_path), x)
    assert [w for w in report.weights if len(w.shape) > 1 and w.verdict is not WeightVerdict.AGREES] == []


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 24)
        self.norm = nn.LayerNorm(24)
        self.up = nn.ModuleList(nn.Linear(24, 48) for _ in range(3))
        self.act = nn.ModuleList(nn.GELU() for _ in range(3))
        self.down = nn.ModuleList(nn.Linear(48, 24) for _ in range(3))
        self.head = nn.Linear(24, 6)

    def forward(self, x):
        x = self.norm(self.stem(x))
        for up, act, down in zip(self.up, self.act, self.down, strict=True):
            x = x + down(act(up(x)))
        return self.head(x)


def _halved(proto, folder):
    return convert_float_to_float16(proto, keep_io_types=True)


def _eight_bits(proto, folder):
    onnx.save(proto, folder / "fp32.onnx")
    quantize_dynamic(folder / "fp32.onnx", folder / "int8.onnx", per_channel=True)
    return onnx.load(folder / "int8.onnx")


def _four_bits(proto, folder):
    quantiser = MatMulNBitsQuantizer(proto, block_size=16, is_symmetric=False)
    quantiser.process()
    return quantiser.model.model


def _another_bias(model):
    model.up[1].bias.data[7] += 1.0


def _weight_too_large(model):
    model.down[1].weight.data.mul_(1.3)


def _another_activation(model):
    model.act[0] = nn.ReLU()


@pytest.mark.parametrize("convert", [_halved, _eight_bits])
@pytest.mark.parametrize(
    ("fault", "layer", "says"),
    [
        (_another_bias, "up.1", "up.1.bias differs in channel 7 of 48"),
        (_weight_too_large, "down.1", "1.3"),
        (_another_activation, "act.0", "gelu became Relu"),
        (lambda model: None, None, ""),
    ],
    ids=["bias", "weight", "activation", "healthy"],
)
def test_a_fault_in_a_file_of_a_narrow_format_is_told_from_its_rounding(trace, tmp_path, convert, fault, layer, says):
    model, x = fill(Encoder()).eval(), noise("precision.encoder", 4, 5, 12)
    bad = copy.deepcopy(model)
    fault(bad)
    proto = convert(export(bad, (x,), Exporter.TORCHSCRIPT), tmp_path)
    report = trace(model, proto, x)
    assert [d.layer for d in report.divergences] == ([layer] if layer else [])
    assert len(report.diffuse.layers) > 2
    if layer is None:
        return
    assert report.diagnoses[0].verified
    assert says in report.diagnoses[0].summary
    healthy = convert(export(model, (x,), Exporter.TORCHSCRIPT), tmp_path)
    repaired = onnx.load(_repaired(report, tmp_path))
    assert error(model, repaired, x) < 2 * error(model, healthy, x) < error(model, proto, x)


def _repaired(report, folder):
    report.repair(folder / "fixed.onnx")
    return folder / "fixed.onnx"


def error(model, proto, x):
    (name,) = (port.name for port in proto.graph.input)
    (output,) = run(proto, {name: x.numpy()}).values()
    return float(np.abs(output - model(x).detach().numpy()).max())


@pytest.mark.parametrize(
    ("fault", "cause", "says"),
    [
        (lambda layer: layer.bias.data[9].add_(0.6), "weights", "4.bias differs in channel 9 of 64"),
        (lambda layer: layer.weight.data.mul_(1.4), "quantization", "have a scale that is 1.4"),
        (lambda layer: layer.weight.data.copy_(layer.weight.data.T.clone()), "quantization", "are not the model's"),
        (lambda layer: None, "", ""),
    ],
    ids=["bias", "scale", "transposed", "healthy"],
)
def test_a_fault_beside_weights_of_four_bits_is_told_from_their_rounding(trace, tmp_path, fault, cause, says):
    layers = (layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU()))
    model, x = fill(nn.Sequential(*layers, nn.Linear(64, 8))).eval(), noise("precision.four", 2, 3, 64)
    bad = copy.deepcopy(model)
    with torch.no_grad():
        fault(bad[4])
    report = trace(model, _four_bits(export(bad, (x,), Exporter.TORCHSCRIPT), tmp_path), x)
    assert [d.layer for d in report.divergences] == (["4"] if cause else [])
    assert len(report.diffuse.layers) >= 4
    assert "int4" in report.verdict
    assert "int8" not in report.verdict
    assert {w.note for w in report.weights if len(w.shape) > 1 and w.parameter != "4.weight"} == {"to int4"}
    if cause:
        assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == (cause, True)
        assert says in report.diagnoses[0].summary


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 16)
        self.both, self.over = nn.LSTM(16, 16, bidirectional=True, batch_first=True), nn.LSTM(32, 16, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, ids):
        return self.head(torch.tanh(self.over(self.both(self.table(ids))[0])[0]))


class Masked(nn.Module):
    """Two layers of attention under a mask of constants far beyond half precision."""

    def __init__(self, mask):
        super().__init__()
        self.mask = mask
        self.q, self.k, self.v = (nn.ModuleList(nn.Linear(16, 16) for _ in range(2)) for _ in range(3))
        self.head = nn.Linear(16, 4)

    def forward(self, x, kept):
        mask = (1.0 - kept[:, None, :]) * self.mask
        for q, k, v in zip(self.q, self.k, self.v, strict=True):
            x = x + torch.softmax(q(x) @ k(x).transpose(1, 2) / 4 + mask, -1) @ v(x)
        return self.head(x)


@pytest.mark.parametrize("convert", [_halved, _eight_bits])
def test_recurrent_layers_in_a_narrow_format_only_round(trace, tmp_path, convert):
    model, ids = fill(Tagger()).eval(), torch.arange(24).reshape(2, 12)
    report = trace(model, convert(export(model, (ids,), Exporter.TORCHSCRIPT), tmp_path), ids)
    assert report.divergences == ()
    assert report.diffuse is not None


@pytest.mark.parametrize("mask", [-1e9, float(np.finfo(np.float32).min)])
def test_a_mask_that_half_precision_cannot_hold_is_no_fault(trace, tmp_path, mask):
    model, x = fill(Masked(mask)).eval(), noise("precision.masked", 2, 6, 16)
    kept = torch.tensor([[1.0] * 6, [1.0] * 4 + [0.0] * 2])
    report = trace(model, _halved(export(model, (x, kept), Exporter.TORCHSCRIPT), tmp_path), (x, kept))
    assert report.divergences == ()
    assert report.diffuse.format == "float16"


def _quantised(model, x, folder, **options):
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), folder / "fp32.onnx")
    name = onnx.load(folder / "fp32.onnx").graph.input[0].name
    quantize_static(folder / "fp32.onnx", folder / "int8.onnx", _Calibration({name: x.numpy()}), **options)
    return onnx.load(folder / "int8.onnx")


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_layers_that_are_calibrated_well_only_round(trace, tmp_path, form):
    layers = (layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU()))
    model, x = fill(nn.Sequential(*layers, nn.Linear(64, 8))).eval(), noise("precision.calibrated", 16, 64)
    report = trace(model, _quantised(model, x, tmp_path, quant_format=form), x)
    assert report.divergences == ()
    assert report.diffuse.format == "int8"


def test_a_range_that_leaves_a_few_numbers_out_on_purpose_is_no_fault(trace, tmp_path):
    model, x = fill(nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)))).eval(), noise("precision.clipped", 32, 64)
    method = CalibrationMethod.Percentile
    options = {"calibrate_method": method, "extra_options": {"CalibPercentile": 99.9, "percentile": 99.9}}
    report = trace(model, _quantised(model, x, tmp_path, **options), x)
    assert report.divergences == ()


def test_an_epsilon_in_a_norm_that_stays_in_float32_is_proven(trace, tmp_path):
    model, x = fill(Encoder()).eval(), noise("precision.mixed", 4, 5, 12)
    bad = copy.deepcopy(model)
    bad.norm.eps = 0.3
    proto = export(bad, (x,), Exporter.TORCHSCRIPT)
    mixed = convert_float_to_float16(proto, keep_io_types=True, op_block_list=["LayerNormalization"])
    report = trace(model, mixed, x)
    assert [d.layer for d in report.divergences] == ["norm"]
    assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == ("epsilon", True)


def test_a_file_whose_inputs_are_in_half_precision_is_fed_so(trace):
    model, x = fill(Encoder()).eval(), noise("precision.inputs", 4, 5, 12)
    halved = convert_float_to_float16(export(model, (x,), Exporter.TORCHSCRIPT))
    assert halved.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    report = trace(model, halved, x)
    assert report.divergences == ()
    assert report.diffuse.format == "float16"


def test_four_bits_beside_half_precision_only_round(trace, tmp_path):
    layers = (layer for _ in range(3) for layer in (nn.Linear(64, 64), nn.ReLU()))
    model, x = fill(nn.Sequential(*layers, nn.Linear(64, 8))).eval(), noise("precision.both", 2, 64)
    packed = _four_bits(export(model, (x,), Exporter.TORCHSCRIPT), tmp_path)
    report = trace(model, convert_float_to_float16(packed, keep_io_types=True), x)
    assert report.divergences == ()
    assert report.diffuse is not None


@pytest.mark.parametrize(("second", "told"), [(0.02, True), (0.1, False)])
def test_a_layer_that_rounds_far_more_than_the_others_is_pointed_out(second, told):
    layers = tuple(RoundedLayer(n, 0, "Linear", "int8", e, None) for n, e in (("a", 0.2), ("b", second), ("c", 0.01)))
    said = text._diffuse(Diffuse("int8", layers), report_of(), "")
    assert ("a introduces 10 × as much as the next: it is worth a look." in said) is told
