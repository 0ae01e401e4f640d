"""What a trace costs by the number of layers, of a good export and of two bad ones, and parts of it.

`python -m benchmarks.speed.scale --layers 50 500 5000 --plot docs/images/scale.png`. A layer is a Linear, two
activations between, and an addition: four tensors of the file, narrow ones, so that what counts is their number. In the
bad export one Linear in the middle has its weight negated, which is beyond doubt at any depth; in the slight one the
weight is one percent too large, which only the float64 twin tells from rounding.
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
from layerdiff.limits import limits_for
from layerdiff.runner import Runner
from layerdiff.samples import samples
from layerdiff.sides import open_candidate, open_reference
from layerdiff.twinless import collected
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

FACTORS = {"good": 1.0, "bad": -1.0, "slight": 1.01}
"""What the weight of one Linear in the middle is multiplied by in the file."""


class _Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        # With a ReLU the sums would only grow: a fault would fade, and numbers would count as large, with depth.
        return x + torch.tanh(nn.functional.leaky_relu(self.linear(x), 0.1))


def _clock(call: Any) -> tuple[Any, float]:
    begin = time.process_time()
    found = call()
    return found, time.process_time() - begin


def measured(layers: int, folder: Path) -> dict[str, float]:
    """CPU seconds of whole traces, and of what pairs the values of both runs alone."""
    model = fill(nn.Sequential(*(_Layer(16) for _ in range(layers))), gain=0.5)
    x = noise("x", 4, 16)
    middle = f"{layers // 2}.linear"
    files = {name: folder / f"{layers}_{name}.onnx" for name in FACTORS}
    for name, factor in FACTORS.items():
        onnx.save(_export(model, x, f"{middle}.weight", factor), files[name])
    seconds = {}
    for name, path in files.items():
        report, seconds[name] = _clock(lambda path=path: _traced(model, path, x))
        found = [divergence.layer for divergence in (*report.divergences, *report.confined)]
        assert found == ([] if name == "good" else [middle]), report.verdict
    return {"layers": layers} | seconds | _parts(model, files["good"], x)


def _export(model: nn.Module, x: Tensor, weight: str, factor: float) -> onnx.ModelProto:
    """The model, exported with one of its weights multiplied."""
    parameter = model.get_parameter(weight)
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.mul_(factor)
        proto = export(model, (x,), Exporter.TORCHSCRIPT)
        parameter.copy_(before)
    return proto


def _traced(model: nn.Module, path: Path, x: Tensor) -> layerdiff.Report:
    return layerdiff.trace(model, path, x, backend=OnnxRuntime(threads=1), progress=False)


def _parts(model: nn.Module, path: Path, x: Tensor) -> dict[str, float]:
    """How many tensors there are, and the CPU seconds of parts of a trace.

    They are one run of the file as it ships, which is the runtime's own, and the pairing of values with tensors.
    """
    run = Runner(open_reference(model), open_candidate(path, OnnxRuntime(threads=1)), None, None)
    sample = next(iter(samples(x)))
    candidate, reference = run.fed(sample), run.reference.capture(sample)
    _, shipping = _clock(lambda: candidate.shipped)
    outputs, limits = run.paired(reference, {}, candidate.graph), collected(limits_for(reference, {}, None))
    tensors = len(candidate.tapped)
    found, aligning = _clock(lambda: only_by_values(reference, candidate, outputs, limits))
    assert found is not None, f"{path}: not all that is computed was paired"
    return {"tensors": tensors, "ships": shipping, "align": aligning}


def plotted(rows: list[dict[str, float]], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    xs = [row["layers"] for row in rows]
    traces = {"slight": "trace, slightly bad", "bad": "trace, bad", "good": "trace, good"}
    labels = traces | {"ships": "one run as it ships", "align": "pairing alone"}
    for name, label in labels.items():
        axes.loglog(xs, [row[name] for row in rows], marker="o", label=label)
    axes.loglog(xs, [rows[0]["good"] * x / xs[0] for x in xs], ":", color="grey", label="linear in layers")
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
