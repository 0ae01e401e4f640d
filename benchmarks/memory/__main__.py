"""How much memory a trace takes: limited to a quarter of the activations, and of a model with a billion parameters.

`make bench-memory`, or `python -m benchmarks.memory --networks "U-Net, 512"`; `--large` is the decoder, a file of 5 GB.
Every trace is a process of its own. Its peak is counted from what the process holds when the trace begins. Beside it
stands what one run of each side takes without layerdiff. Ends with 1 where a limit changes the report.
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
import onnxruntime
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


def _begin_anew() -> float:
    """What the process holds now, in GB; its peak is counted from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status("VmRSS")


def _since(before: float) -> float:
    """The peak since then, beyond what was held."""
    return _status("VmHWM") - before


def alone(network: str, path: Path) -> None:
    """Print the peaks of one forward pass and of one session, as anybody would run them."""
    torch.set_num_threads(2)
    warm_up("layerdiff", path.parent)
    sample = NETWORKS[network].build()
    before = _begin_anew()
    with torch.no_grad():
        sample.model(*sample.inputs)
    forward = _since(before)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    before = _begin_anew()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ports = session.get_inputs()
    session.run(None, {port.name: x.numpy() for port, x in zip(ports, sample.inputs, strict=True)})
    print(json.dumps({"forward_gb": forward, "session_gb": _since(before)}))


def one(network: str, path: Path, limit: int | None) -> None:
    """Trace once and print the peak, what the activations of both sides come to, and a digest of the report."""
    import layerdiff
    from layerdiff.backends import OnnxRuntime

    torch.set_num_threads(2)
    warm_up("layerdiff", path.parent)
    sample = decoder() if network == LARGE else NETWORKS[network].build()
    before = _begin_anew()
    report = layerdiff.trace(
        sample.model, path, sample.inputs, backend=OnnxRuntime(threads=2), memory_limit=limit, progress=False
    )
    peak = _since(before)
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


def _measured(*question: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.memory", *question]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"peak_gb": float("nan"), "report": "", "error": done.stderr.strip().splitlines()[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compared(network: str, folder: Path) -> bool:
    """Print what a good and a bad file take with and without a limit; whether their reports are the same."""
    files(network, folder)
    total, same = activations(network), True
    apart = _measured("--alone", network, str(folder / "good.onnx"))
    print(f"{network}: activations {total / 2**30:.2f} GB; one run of each side alone {apart}", flush=True)
    for file in ("good", "bad"):
        reports = set()
        for limit in (None, total // 4):
            found = _measured("--one", network, str(folder / f"{file}.onnx"), str(limit or 0))
            reports.add(found["report"])
            shown = "none" if limit is None else f"{limit / 2**30:.2f} GB"
            print(f"  {file}, limit {shown}: {found}", flush=True)
        same &= len(reports) == 1 and "" not in reports
    return same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--large", action="store_true", help="the decoder only")
    parser.add_argument("--one", nargs=3, metavar=("NETWORK", "FILE", "LIMIT"), help="measure one thing once")
    parser.add_argument("--alone", nargs=2, metavar=("NETWORK", "FILE"), help="one run of each side, without a trace")
    options = parser.parse_args()
    if options.one:
        one(options.one[0], Path(options.one[1]), int(options.one[2]) or None)
        return
    if options.alone:
        alone(options.alone[0], Path(options.alone[1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.large:
            files(LARGE, Path(folder))
            print(LARGE, _measured("--one", LARGE, str(Path(folder) / "good.onnx"), "0"), flush=True)
            return
        same = [compared(network, Path(folder)) for network in options.networks]
    sys.exit(0 if all(same) else 1)


if __name__ == "__main__":
    main()
