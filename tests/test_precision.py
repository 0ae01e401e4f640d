"""Rounding all over a graph is no one's fault; a range that is exceeded is."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16

from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

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
    quantize_static(source, target, _Calibration({name: images}), quant_format=QuantFormat.QDQ, per_channel=True)
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
