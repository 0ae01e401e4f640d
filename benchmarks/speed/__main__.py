"""What a trace costs, as a multiple of comparing the final outputs only.

`make bench-speed`, or `python -m benchmarks.speed --rounds 3 --networks "ResNet-50, 224"`. The floor is one forward
pass of PyTorch, the creation of a session and one run of it. Every measurement is a process of its own; the tools take
turns, and the medians of CPU time are compared. Peaks are those of the whole process, with both sides' weights.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pandas as pd
import torch
from torch import nn

from benchmarks.rivals import Fresh
from benchmarks.rivals.by_name import hook_and_name
from benchmarks.rivals.by_polygraphy import polygraphy_mark_all
from benchmarks.speed.networks import NETWORKS
from tests.zoo.exports import Exporter, export
from tests.zoo.sample import Sample

if TYPE_CHECKING:
    from collections.abc import Callable


ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # NumPy's, too


def floor(sample: Sample, path: Path) -> None:
    import onnxruntime as ort

    with torch.no_grad():
        sample.model(*sample.inputs)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    session.run(None, {port.name: x.numpy() for port, x in zip(session.get_inputs(), sample.inputs, strict=True)})


def traced(sample: Sample, path: Path) -> None:
    import layerdiff
    from layerdiff.backends import OnnxRuntime

    layerdiff.trace(sample.model, path, sample.inputs, backend=OnnxRuntime(threads=1), progress=False)


def hooks(sample: Sample, path: Path) -> None:
    hook_and_name(sample.model, onnx.load(path), sample.inputs, Fresh(onnx.load(path), None))


def polygraphy(sample: Sample, path: Path) -> None:
    fresh = Fresh(onnx.load(path.with_name("good.onnx")), None)
    polygraphy_mark_all(sample.model, onnx.load(path), sample.inputs, fresh)


TOOLS: dict[str, Callable[[Sample, Path], None]] = {
    "floor": floor,
    "layerdiff": traced,
    "hooks and names": hooks,
    "Polygraphy mark all": polygraphy,
}


def warm_up(tool: str, folder: Path) -> None:
    """One layer through a tool: Python loads its modules, which is no part of what is compared."""
    tiny = Sample(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.ones(1, 4),))
    other = Sample(nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval(), tiny.inputs)
    with tempfile.TemporaryDirectory(dir=folder) as own:
        for name, model in (("good", tiny.model), ("bad", other.model)):
            onnx.save(export(model, tiny.inputs, Exporter.TORCHSCRIPT), Path(own) / f"{name}.onnx")
        for name in ("good", "bad"):
            TOOLS[tool](tiny, Path(own) / f"{name}.onnx")


def one(network: str, tool: str, path: Path) -> None:
    """Run one tool once, after it and the floor have loaded what is loaded once, and print what it took."""
    torch.set_num_threads(1)
    warm_up(tool, path.parent)
    sample = NETWORKS[network].build()
    floor(sample, path)
    wall, cpu = time.perf_counter(), time.process_time()
    TOOLS[tool](sample, path)
    took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    print(json.dumps(took | {"peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}))


def files(network: str, folder: Path) -> None:
    """A right export, and one with a parameter that the model does not have."""
    torch.set_num_threads(1)  # as where it is traced: the statistics of BatchNorms depend on it, in their last digits
    known = NETWORKS[network]
    sample = known.build()
    for name in ("good", "bad"):
        if name == "bad":
            with torch.no_grad():
                sample.model.get_parameter(known.faulty).add_(0.5)
        onnx.save(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), folder / f"{name}.onnx")


def measured(network: str, rounds: int) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        files(network, Path(folder))
        for _ in range(rounds):
            for tool in TOOLS:
                for file in ("good", "bad") if tool != "floor" else ("good",):
                    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.speed", "--one", network, tool]
                    path = str(Path(folder) / f"{file}.onnx")
                    done = subprocess.run([*command, path], env=ONE_THREAD, capture_output=True, text=True, check=False)
                    if done.returncode:
                        print(f"{network}, {tool}, {file}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
                        continue
                    took = json.loads(done.stdout.splitlines()[-1])
                    rows.append({"network": network, "tool": tool, "file": file, **took})
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    frame = pd.DataFrame(rows).groupby(["network", "tool", "file"], sort=False).median()
    base = frame.xs("floor", level="tool").droplevel("file")
    frame["times floor"] = frame["cpu"] / base["cpu"].reindex(frame.index.get_level_values("network")).to_numpy()
    return frame.round(2).to_string()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "TOOL", "FILE"), help="measure one thing once")
    options = parser.parse_args()
    if options.one:
        one(options.one[0], options.one[1], Path(options.one[2]))
        return
    print(table([row for network in options.networks for row in measured(network, options.rounds)]))


if __name__ == "__main__":
    main()
