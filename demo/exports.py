"""A good and a bad ONNX export of the demo detector: the bad one has one BatchNorm from another checkpoint."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from typing import TYPE_CHECKING

import onnx
import onnxslim
import torch
from safetensors.torch import load_file
from torch import nn

from demo.detector import EARLIER_STATISTICS, example_images, load

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from demo.detector import Detector

# Where the bad export differs: the exporter folds this layer of the neck into the convolution before it.
FAULTY_LAYER = "model.18.bn"
OPSET = 17


def good_export(folder: Path) -> Path:
    """Return the path of a faithful, simplified ONNX export of the detector, written into `folder`."""
    return _export(load(), folder / "detector_good.onnx")


def bad_export(folder: Path) -> Path:
    """Return the path of an export whose `FAULTY_LAYER` was folded with an earlier checkpoint's statistics."""
    return _export(with_earlier_statistics(load(), FAULTY_LAYER), folder / "detector_bad.onnx")


def with_earlier_statistics(detector: Detector, layer: str) -> Detector:
    """Return a copy of the detector in which one BatchNorm has the running statistics of the earlier checkpoint."""
    changed = copy.deepcopy(detector)
    batchnorm = changed.get_submodule(layer)
    assert isinstance(batchnorm, nn.BatchNorm2d)
    earlier = load_file(EARLIER_STATISTICS)
    batchnorm.running_mean = earlier[f"{layer}.running_mean"]
    batchnorm.running_var = earlier[f"{layer}.running_var"]
    return changed


def _export(detector: Detector, path: Path) -> Path:
    """Write the detector to `path`: TorchScript exporter, then onnxslim, then no traces of this machine."""
    with _silence():
        torch.onnx.export(
            detector,
            (example_images(),),
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["detections"],
        )
        model = onnxslim.slim(onnx.load(path))
    _strip_traces(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return path


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the exporter and the simplifier from warning, logging or printing, and undo that."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def _strip_traces(model: onnx.ModelProto) -> None:
    """Remove doc strings and metadata, where exporters keep stack traces with paths of this machine."""
    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in (model, graph, *graph.node, *values):
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
