"""A model and a file beyond two gigabytes, which protobuf cannot hold in one message.

`python -m tests.zoo.heavy export FILE` writes the file with its data beside it, as torch's exporter does by itself;
`python -m tests.zoo.heavy trace FILE` traces it and prints what the process took, in bytes; with a layer behind the
file one row of that layer's weight is changed first. Each is a process of its own, so that its peak is its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.onnx import export

WIDTH, DEPTH = 4096, 40
ONE_WEIGHT = 4 * WIDTH * WIDTH
ALL_WEIGHTS = DEPTH * ONE_WEIGHT


class Heavy(nn.Module):
    """Forty linear layers in a row, 2.7 GB of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x


def heavy() -> tuple[nn.Module, torch.Tensor]:
    """The model with random weights, always the same, and an input."""
    torch.manual_seed(0)
    return Heavy().eval(), torch.randn(4, WIDTH)


def status(name: str) -> int:
    """A line of this process's memory, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def traced(file: Path, changed: str) -> dict[str, Any]:
    """What a trace says, and what the process held before it and took at most."""
    import layerdiff

    model, x = heavy()
    if changed:
        with torch.no_grad():
            model.get_parameter(f"{changed}.weight")[7] += 0.05
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    report = layerdiff.trace(model, file, x, progress=False)
    return {
        "before": before,
        "peak": status("VmHWM"),
        "agrees": report.agrees,
        "compared": report.coverage.compared,
        "layer": report.first_divergence.layer if report.first_divergence else None,
        "causes": [d.cause for d in report.diagnoses],
    }


def main() -> None:
    what, file, *layer = sys.argv[1:]
    if what == "export":
        model, x = heavy()
        export(model, (x,), file, dynamo=True, verbose=False)
    else:
        sys.stdout.write(json.dumps(traced(Path(file), layer[0] if layer else "")))


if __name__ == "__main__":
    main()
