"""Files that a static quantiser wrote: a good one has no culprit, and a number that is wrong in one layer is found."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import nn

from layerdiff.weights import WeightVerdict
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

pytestmark = pytest.mark.filterwarnings("ignore")  # the quantiser warns about models that were not preprocessed


class Calibration(CalibrationDataReader):
    """One sample."""

    def __init__(self, feeds):
        self._feeds = iter([feeds])

    def get_next(self):
        return next(self._feeds, None)


def quantised(model, inputs, folder, exporter=Exporter.TORCHSCRIPT, **options):
    """The export of a model in eight bits, calibrated on the very inputs that it is asked about."""
    proto = export(model, inputs, exporter)
    onnx.save(proto, folder / "fp32.onnx")
    feeds = {port.name: x.numpy() for port, x in zip(proto.graph.input, inputs, strict=True)}
    quantize_static(folder / "fp32.onnx", folder / "int8.onnx", Calibration(feeds), **options)
    return onnx.load(folder / "int8.onnx")


def unlike(report):
    """The parameters that the file is said to lack, or to hold otherwise."""
    return [w.parameter for w in report.weights if w.verdict is not WeightVerdict.AGREES]


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_a_detector_in_eight_bits_only_rounds(trace, tmp_path, form, per_channel):
    sample = MODELS["yolo"]()
    proto = quantised(sample.model, sample.inputs, tmp_path, quant_format=form, per_channel=per_channel)
    report = trace(sample.model, proto, sample.inputs)
    assert report.divergences == ()
    assert report.diffuse.format == "int8"
    assert unlike(report) == []


def test_a_tensor_that_is_read_for_its_shape_only_is_no_counterpart(trace, tmp_path):
    """What comes out right from it says nothing of its numbers: queries were taken for the keys."""
    sample = MODELS["vit"]()
    report = trace(
        sample.model,
        quantised(sample.model, sample.inputs, tmp_path, quant_format=QuantFormat.QOperator),
        sample.inputs,
    )
    assert report.divergences == ()


def test_a_range_that_leaves_out_the_few_largest_numbers_is_no_fault(trace, tmp_path):
    """Some rows are much larger than the others, and calibration leaves out four in a thousand at either end."""
    layers = (layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.SiLU()))
    model = fill(nn.Sequential(*layers)).eval()
    x = noise("static.outliers", 64, 64) * (1 + 2 * (noise("static.rows", 64, 1) > 1.0))
    options = {"calibrate_method": CalibrationMethod.Percentile, "extra_options": {"CalibPercentile": 99.6}}
    report = trace(model, quantised(model, (x,), tmp_path, **options), x)
    assert report.divergences == ()


def test_the_weights_of_a_norm_that_were_quantised_are_the_models(trace, tmp_path):
    """The exporter writes them with axes of one behind, and the quantiser takes the product with them."""
    layers = (layer for _ in range(2) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU()))
    model, x = fill(nn.Sequential(*layers)).eval(), noise("static.norm", 1, 8, 12, 12)
    report = trace(model, quantised(model, (x,), tmp_path), x)
    assert report.divergences == ()
    assert unlike(report) == []


class Reader(nn.Module):
    """Two recurrent layers, the first in both directions, between layers that a quantiser takes."""

    def __init__(self, kind):
        super().__init__()
        self.stem = nn.Linear(12, 16)
        self.both, self.over = kind(16, 16, bidirectional=True, batch_first=True), kind(32, 16, batch_first=True)
        self.mid, self.head = nn.Linear(16, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.mid(self.over(self.both(x)[0])[0]).tanh())


@pytest.mark.parametrize("exporter", [Exporter.TORCHSCRIPT, Exporter.DYNAMO])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_that_stay_in_floats_are_not_accused(trace, tmp_path, kind, exporter):
    model, x = fill(Reader(kind)).eval(), noise("static.reader", 2, 10, 12)
    report = trace(model, quantised(model, (x,), tmp_path, exporter), x)
    assert report.divergences == ()
    assert report.diffuse.format == "int8"
    assert unlike(report) == []


@pytest.mark.parametrize("exporter", [Exporter.TORCHSCRIPT, Exporter.DYNAMO])
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_the_weights_of_recurrent_layers_in_half_precision_are_the_models(trace, kind, exporter):
    model, x = fill(Reader(kind)).eval(), noise("static.reader", 2, 10, 12)
    report = trace(model, convert_float_to_float16(export(model, (x,), exporter), keep_io_types=True), x)
    assert report.divergences == ()
    assert unlike(report) == []
    assert {w.note for w in report.weights if w.parameter.startswith(("both", "over"))} == {"to float16"}


@pytest.mark.parametrize("form", [QuantFormat.QDQ, QuantFormat.QOperator])
def test_steps_of_a_layer_that_was_unrolled_only_round(trace, tmp_path, form):
    """The dynamo exporter writes out every step of an Elman layer, and the quantiser takes each of them."""
    model = fill(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.RNN(16, 16, batch_first=True))).eval()
    x = noise("static.unrolled", 2, 4, 8)
    report = trace(model, quantised(model, (x,), tmp_path, Exporter.DYNAMO, quant_format=form), x)
    assert report.divergences == ()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", [QuantType.QUInt16, QuantType.QInt16])
def test_activations_in_sixteen_bits_only_round(trace, tmp_path, kind, symmetric):
    layers = (layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU()))
    model, x = fill(nn.Sequential(*layers, nn.Linear(64, 8))).eval(), noise("static.sixteen", 16, 64)
    options = {"activation_type": kind, "per_channel": True, "extra_options": {"ActivationSymmetric": symmetric}}
    report = trace(model, quantised(model, (x,), tmp_path, **options), x)
    assert report.divergences == ()
    assert unlike(report) == []


def _layers():
    layers = (layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU()))
    return fill(nn.Sequential(*layers, nn.Linear(64, 8))).eval(), noise("static.layers", 16, 64)


@pytest.mark.parametrize(
    ("weights", "activations", "formats"),
    [
        (QuantType.QInt16, QuantType.QUInt16, {"int16"}),
        (QuantType.QInt8, QuantType.QUInt16, {"int8", "int16"}),
        (QuantType.QInt4, QuantType.QUInt8, {"int4", "int8"}),
        (QuantType.QInt8, QuantType.QUInt8, {"int8"}),
    ],
)
def test_each_layer_is_told_the_bits_of_its_own_numbers(trace, tmp_path, weights, activations, formats):
    model, x = _layers()
    report = trace(model, quantised(model, (x,), tmp_path, weight_type=weights, activation_type=activations), x)
    assert report.divergences == ()
    assert set(report.diffuse.formats) == formats
    assert f"layers compute in {' and '.join(report.diffuse.formats)}, each within" in report.verdict


_STATIC = {
    "QDQ": {},
    "QOperator": {"quant_format": QuantFormat.QOperator},
    "four bits": {"weight_type": QuantType.QInt4, "per_channel": True},
    "sixteen bits": {"activation_type": QuantType.QUInt16},
}
# Where a node has the scale of its weights; the zero point is the next operand.
_SCALE = {"DequantizeLinear": 1, "QGemm": 4, "QLinearMatMul": 4, "MatMulNBits": 2}


def _change(proto, index, slot, change):
    """Numbers of one weight's scheme, changed for it alone: of its scale (0) or its zero point (1)."""
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    node = [
        node
        for node in proto.graph.node
        if node.op_type in _SCALE and len(getattr(stored.get(node.input[_SCALE[node.op_type] - 1]), "dims", ())) > 1
    ][index]
    slot += _SCALE[node.op_type]
    before = stored[node.input[slot]]
    numbers = change(numpy_helper.to_array(before).astype(np.float64)).reshape(-1)
    numbers = numbers.tolist() if before.data_type == onnx.TensorProto.FLOAT else np.rint(numbers).astype(int).tolist()
    proto.graph.initializer.append(helper.make_tensor("seeded", before.data_type, before.dims, numbers))
    node.input[slot] = "seeded"
    return proto


@pytest.mark.parametrize("form", _STATIC)
@pytest.mark.parametrize(
    ("slot", "change", "says"),
    [
        (0, lambda scale: scale * 1.3, "have a scale that is 1.3"),
        (0, lambda scale: scale / 2, "have a scale that is 0.5"),
        (1, lambda zero: zero + 3, "have the zero point 3 instead of 0"),
    ],
    ids=["larger", "half", "zero point"],
)
def test_a_wrong_scheme_of_one_layers_weights_is_named(trace, tmp_path, form, slot, change, says):
    model, x = _layers()
    bad = _change(quantised(model, (x,), tmp_path, **_STATIC[form]), 2, slot, change)
    report = trace(model, bad, x)
    assert [d.layer for d in report.divergences] == ["4"]
    assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == ("quantization", True)
    assert says in report.diagnoses[0].summary
    assert report.diffuse is not None


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("form", [QuantFormat.QOperator, QuantFormat.QDQ])
@pytest.mark.parametrize("factor", [0.5, 1.3, 1.0])
def test_a_wrong_scale_of_one_layer_in_blocks_of_four_bits_is_named(trace, form, symmetric, factor):
    model, _ = _layers()
    x = noise("static.blocks", 2, 8, 64)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    quantiser = MatMulNBitsQuantizer(proto, block_size=16, is_symmetric=symmetric, quant_format=form)
    quantiser.process()
    report = trace(model, _change(quantiser.model.model, 2, 0, lambda scale: factor * scale), x)
    assert [d.layer for d in report.divergences] == ([] if factor == 1.0 else ["4"])
    assert [d.cause for d in report.diagnoses] == ([] if factor == 1.0 else ["quantization"])
    if factor == 1.0:
        assert unlike(report) == []
    else:
        assert f"int4 numbers of MatMul have a scale that is {factor:.1f}" in report.diagnoses[0].summary


@pytest.mark.parametrize("form", ["QDQ", "four bits"])
@pytest.mark.parametrize("factor", [2.0, 0.3])
def test_a_wrong_scale_of_a_stored_bias_is_named(trace, tmp_path, form, factor):
    model, x = _layers()
    proto = quantised(model, (x,), tmp_path, **_STATIC[form])
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    (scale,) = (node.input[1] for node in proto.graph.node if node.input[0] == "2.bias_quantized")
    changed = numpy_helper.to_array(stored[scale]) * np.float32(factor)
    stored[scale].CopyFrom(numpy_helper.from_array(changed, scale))
    report = trace(model, proto, x)
    assert [d.layer for d in report.divergences] == ["2"]
    assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == ("quantization", True)
    assert "The int32 biases 2.bias_quantized have a scale that is" in report.diagnoses[0].summary
    assert unlike(report) == ["2.bias"]
