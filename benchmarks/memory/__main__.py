"""How much memory a trace takes: limited to a quarter of the activations, and of a model with a billion parameters.

`make bench-memory`, or `python -m benchmarks.memory --networks "U-Net, 512"`; `--large` is the decoder, a file of 5 GB.
Every trace is a process of its own. Its peak is counted from what the process holds when the trace begins.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import onnx
import torch
from torch.onnx import export as to_onnx

from benchmarks.memory.networks import NETWORKS, decoder
from benchmarks.speed.__main__ import warm_up
from tests.zoo.exports import Exporter, export

LARGE = "decoder of 1.24 billion parameters"


def _status(name: str) -> float:
    """A line of this process's memory, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**20


def one(network: str, path: Path, limit: int | None) -> None:
    """Trace once and print the peak, what the activations of both sides come to, and a digest of the report."""
    import layerdiff
    from layerdiff.backends import OnnxRuntime

    torch.set_num_threads(2)
    warm_up("layerdiff", path.parent)
    sample = decoder() if network == LARGE else NETWORKS[network].build()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    report = layerdiff.trace(
        sample.model, path, sample.inputs, backend=OnnxRuntime(threads=2), memory_limit=limit, progress=False
    )
    peak = _status("VmHWM") - before
    said = {name: value for name, value in report.to_dict().items() if name != "environment"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:12]
    first = report.first_divergence.layer if report.first_divergence else ""
    print(json.dumps({"peak_gb": peak, "before_gb": before, "report": digest, "named": first, "agrees": report.agrees}))


def files(network: str, folder: Path) -> None:
    """A right export, and one with a parameter that the model does not have."""
    if network == LARGE:
        sample = decoder()
        to_onnx(sample.model, sample.inputs, folder / "good.onnx", dynamo=True, external_data=True, verbose=False)
        return
    known = NETWORKS[network]
    sample = known.build()
    for name in ("good", "bad"):
        if name == "bad":
            with torch.no_grad():
                sample.model.get_parameter(known.faulty).add_(0.5)
        onnx.save(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), folder / f"{name}.onnx")


def activations(network: str) -> int:
    """Bytes of all values that one forward pass makes, twice: both sides have them."""
    from layerdiff.capture import capture

    sample = NETWORKS[network].build()
    reference = capture(sample.model, sample.inputs, {})
    return 2 * sum(v.array.nbytes for v in reference.values if v.array is not None and not v.constant)


def _measured(network: str, path: Path, limit: int | None) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", "--one", network, str(path), str(limit or 0)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"peak_gb": float("nan"), "error": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--large", action="store_true", help="the decoder only")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "FILE", "LIMIT"), help="measure one thing once")
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), int(options.one[2]) or None)
        return
    for network in [LARGE] if options.large else options.networks:
        with tempfile.TemporaryDirectory() as folder:
            files(network, Path(folder))
            if options.large:
                print(network, _measured(network, Path(folder) / "good.onnx", None), flush=True)
                continue
            total = activations(network)
            for file in ("good", "bad"):
                for limit in (None, total // 4):
                    shown = "none" if limit is None else f"{limit / 2**30:.2f}"
                    found = _measured(network, Path(folder) / f"{file}.onnx", limit)
                    print(f"{network}, {file}, activations {total / 2**30:.2f} GB, limit {shown}: {found}", flush=True)


if __name__ == "__main__":
    main()
