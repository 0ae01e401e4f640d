"""What a trace of a good export costs by the number of its layers, and alignment alone.

`python -m benchmarks.speed.scale --layers 50 500 5000 --plot docs/images/scale.png`. A layer is a Linear, two
activations between, and an addition: four tensors of the file, narrow ones, so that what counts is their number.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import onnx
import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

import layerdiff
from layerdiff.align import only_by_values
from layerdiff.backends import OnnxRuntime
from layerdiff.measure import limits_for
from layerdiff.runner import Runner
from layerdiff.samples import samples
from layerdiff.sides import open_candidate, open_reference
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(torch.relu(self.linear(x)))


def _clock(call: Any) -> tuple[Any, float]:
    begin = time.process_time()
    found = call()
    return found, time.process_time() - begin


def measured(layers: int, folder: Path) -> dict[str, float]:
    """CPU seconds of a whole trace, and of pairing the values of both runs alone."""
    model = fill(nn.Sequential(*(_Layer(16) for _ in range(layers))), gain=0.5)
    x = noise("x", 4, 16)
    path = folder / f"{layers}.onnx"
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), path)
    backend = OnnxRuntime(threads=1)
    report, whole = _clock(lambda: layerdiff.trace(model, path, x, backend=backend, progress=False))
    assert report.agrees, report.verdict
    run = Runner(open_reference(model), open_candidate(path, backend), None, None)
    sample = next(iter(samples(x)))
    candidate, reference = run.fed(sample), run.reference.capture(sample)
    outputs, limits = run.paired(reference, {}, candidate.graph), limits_for(reference, {}, None)
    tensors = len(candidate.tapped)
    _, aligning = _clock(lambda: only_by_values(reference, candidate, outputs, limits))
    return {"layers": layers, "tensors": tensors, "trace": whole, "align": aligning}


def plotted(rows: list[dict[str, float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    xs = [row["layers"] for row in rows]
    for name, label in (("trace", "whole trace"), ("align", "alignment alone")):
        axes.loglog(xs, [row[name] for row in rows], marker="o", label=label)
    axes.loglog(xs, [rows[0]["trace"] * x / xs[0] for x in xs], ":", color="grey", label="linear in layers")
    axes.set(xlabel="layers", ylabel="CPU seconds")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="*", type=int, default=[50, 500, 5000])
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        measured(5, Path(folder))  # what is loaded once
        for layers in options.layers:
            rows.append(measured(layers, Path(folder)))
            print("  ".join(f"{name} {value:.3g}" for name, value in rows[-1].items()), flush=True)
    if options.plot:
        plotted(rows, options.plot)


if __name__ == "__main__":
    main()
