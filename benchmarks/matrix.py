"""Runs a part of the tests against the oldest and the newest versions that layerdiff says it works with.

``python -m benchmarks.matrix`` makes an environment for each combination under ``benchmarks/out/matrix`` (the oldest
torch brings gigabytes of CUDA packages: have 15 GB free), runs the tests there, and prints a table. ``--only oldest``
runs one; an environment that is there is used again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "out" / "matrix"
# What is told in a report, found in a graph, run in a process and refused: no test that needs an exporter of its own.
TESTS = (
    "test_trace",
    "test_measure",
    "test_hostile_files",
    "test_isolation",
    "test_report",
    "test_graph",
    "test_valid",
)
LEFT_OUT = "not browser and not dynamo and not scrambled_graph"
OTHERS = (
    "pytest>=8.2",
    "hypothesis>=6.100",
    "pyyaml",
    "psutil",
    "matplotlib",
    "rich",
    "typer",
    "scipy",
)


@dataclass(frozen=True)
class Combination:
    """Versions that are installed together; "" is the newest that pip finds."""

    name: str
    torch: str
    onnxruntime: str
    onnx: str
    numpy: str
    pandas: str = ""

    def requirements(self) -> list[str]:
        """What pip is asked for."""
        named = {n: getattr(self, n) for n in ("torch", "onnxruntime", "onnx", "numpy", "pandas")}
        return [f"{name}=={version}" if version else name for name, version in named.items()]


COMBINATIONS = (
    Combination("oldest", "2.4.0", "1.17.3", "1.16.2", "1.26.4", "2.1.4"),
    Combination("old torch, numpy 2", "2.4.0", "1.19.2", "1.16.2", "2.0.2", "2.2.3"),
    Combination("new torch, numpy 1.26", "2.13.0", "1.17.3", "1.17.0", "1.26.4", "2.1.4"),
    Combination("newest but torch", "2.13.0", "", "", ""),  # the torch that constraints.txt pins
    Combination("newest", "", "", "", ""),
)


def main() -> int:
    """Run the combinations; 1 where a test fails or nothing could be installed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[c.name for c in COMBINATIONS])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    rows, bad = [], False
    for combination in COMBINATIONS:
        if options.only and combination.name not in options.only:
            continue
        begin = time.monotonic()
        ended, versions = run(combination, options.folder / re.sub(r"\W+", "-", combination.name))
        bad = bad or "passed" not in ended or "failed" in ended or "error" in ended
        rows.append((combination.name, versions, ended, f"{time.monotonic() - begin:.0f} s"))
        print(" | ".join(rows[-1]), flush=True)
    print("\n| combination | versions | tests |\n|---|---|---|")
    for name, versions, ended, _ in rows:
        print(f"| {name} | {versions} | {ended} |")
    return int(bad)


def run(combination: Combination, folder: Path) -> tuple[str, str]:
    """How the tests ended in an environment, and the versions in it."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        made = subprocess.run([*pip, *combination.requirements(), *OTHERS], capture_output=True, text=True, check=False)
        if made.returncode:
            python.unlink()
            return f"not installed: {made.stderr.strip().splitlines()[-1][:200]}", "none"
    code = "import numpy, onnx, onnxruntime, torch; print(*(m.__version__ for m in (torch, onnxruntime, onnx, numpy)))"
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    if found.returncode:
        return f"does not import: {found.stderr.strip().splitlines()[-1][:200]}", "none"
    names = zip(("torch", "onnxruntime", "onnx", "numpy"), found.stdout.split(), strict=True)
    files = [f"tests/{name}.py" for name in TESTS]
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT, "--show-capture=no", *files]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith(("FAILED", "ERROR")):
            print(f"  {line[:200]}")
    return done.stdout.strip().splitlines()[-1], ", ".join(f"{name} {version}" for name, version in names)


if __name__ == "__main__":
    sys.exit(main())
