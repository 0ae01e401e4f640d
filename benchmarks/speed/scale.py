"""What a trace costs by the number of layers, of a good export and of a bad one, and pairing alone.

`python -m benchmarks.speed.scale --layers 50 500 5000 --plot docs/images/scale.png`. A layer is a Linear, two
activations between, and an addition: four tensors of the file, narrow ones, so that what counts is their number. In the
bad export one Linear in the middle has its weight negated.
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
from layerdiff.twinless import collected
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
    """CPU seconds of whole traces, and of what pairs the values of both runs alone."""
    model = fill(nn.Sequential(*(_Layer(16) for _ in range(layers))), gain=0.5)
    x = noise("x", 4, 16)
    good, bad = folder / f"{layers}.onnx", folder / f"{layers}_bad.onnx"
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), good)
    middle = f"{layers // 2}.linear"
    _negate(model, middle)
    onnx.save(export(model, (x,), Exporter.TORCHSCRIPT), bad)
    _negate(model, middle)
    backend = OnnxRuntime(threads=1)
    report, right = _clock(lambda: layerdiff.trace(model, good, x, backend=backend, progress=False))
    assert report.agrees, report.verdict
    found, wrong = _clock(lambda: layerdiff.trace(model, bad, x, backend=backend, progress=False))
    assert [divergence.layer for divergence in found.divergences] == [middle], found.verdict
    tensors, aligning = _pairing(model, good, x)
    return {"layers": layers, "tensors": tensors, "trace": right, "bad": wrong, "align": aligning}


def _negate(model: nn.Module, layer: str) -> None:
    with torch.no_grad():
        model.get_parameter(f"{layer}.weight").neg_()


def _pairing(model: nn.Module, path: Path, x: Tensor) -> tuple[int, float]:
    """How many tensors there are, and the CPU seconds of pairing them with values as a trace does first."""
    run = Runner(open_reference(model), open_candidate(path, OnnxRuntime(threads=1)), None, None)
    sample = next(iter(samples(x)))
    candidate, reference = run.fed(sample), run.reference.capture(sample)
    outputs, limits = run.paired(reference, {}, candidate.graph), collected(limits_for(reference, {}, None))
    tensors = len(candidate.tapped)
    found, aligning = _clock(lambda: only_by_values(reference, candidate, outputs, limits))
    assert found is not None, f"{path}: not all that is computed was paired"
    return tensors, aligning


def plotted(rows: list[dict[str, float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    xs = [row["layers"] for row in rows]
    for name, label in (("bad", "trace, bad"), ("trace", "trace, good"), ("align", "pairing alone")):
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
