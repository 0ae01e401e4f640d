"""How far each healthy export is from its model: `python -m tests.zoo.healthy`."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

import numpy as np
import onnxruntime
import torch

from tests.zoo import MODELS
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, export, treat

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn


def run_torch(model: nn.Module, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """The model's output on copies of the inputs."""
    with torch.no_grad():
        return model(*(x.clone() for x in inputs)).numpy()


def run_onnx(proto: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> np.ndarray:
    """The file's first output in ONNX Runtime as shipped: all optimisations on."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {slot.name: x.numpy() for slot, x in zip(session.get_inputs(), inputs, strict=True)}
    return np.asarray(session.run(None, feeds)[0])


def relative_gap(expected: np.ndarray, actual: np.ndarray) -> float:
    """Largest absolute difference over the largest absolute expected value; NaN stays NaN."""
    difference = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    return float(difference.max() / np.abs(expected).max())


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    titles = " ".join(f"{treatment.value:>12}" for treatment in Treatment)
    _line(f"{'model':10} {'exporter':12} {titles}  export_s modules nodes")
    for name in names or MODELS:
        for exporter in Exporter:
            _line(_row(name, exporter))


def _row(name: str, exporter: Exporter) -> str:
    sample = MODELS[name]()
    expected = run_torch(sample.model, sample.inputs)
    start = time.perf_counter()
    proto = export(sample.model, sample.inputs, exporter)
    seconds = time.perf_counter() - start
    cells = []
    for treatment in Treatment:
        if (name, exporter, treatment) in UNSUPPORTED:
            cells.append(f"{'unsupported':>12}")
            continue
        gap = relative_gap(expected, run_onnx(treat(proto, treatment), sample.inputs))
        cells.append(f"{gap:12.1e}")
    modules = sum(1 for _ in sample.model.named_modules())
    return f"{name:10} {exporter.value:12} {' '.join(cells)} {seconds:9.2f} {modules:7} {len(proto.graph.node):5}"


def _line(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
