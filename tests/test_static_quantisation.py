"""Files that a static quantiser wrote: a good one has no culprit, and a number that is wrong in one layer is found."""

from __future__ import annotations

import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from layerdiff.weights import WeightVerdict
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

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
