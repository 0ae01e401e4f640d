"""What it costs to compare two arrays on the host, as a share of what it costs to copy them once.

`python -m benchmarks.speed.passes`. What is to be compared on a GPU has to be sent there: with one, that is measured,
too (`--device cuda`). Without, the copy within memory stands for it, which no link to a device is faster than by much.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

import numpy as np
import torch

from layerdiff.blocks import apart, overall

if TYPE_CHECKING:
    from collections.abc import Callable


def _best(call: Callable[[], object], rounds: int) -> float:
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", help="cuda, say: what sending the arrays there takes")
    options.add_argument("--elements", type=int, default=1 << 25)
    options.add_argument("--rounds", type=int, default=7)
    given = options.parse_args()
    rng = np.random.default_rng(0)
    e = rng.standard_normal(given.elements, np.float32)
    a = e + np.float32(1e-6) * rng.standard_normal(given.elements, np.float32)
    room = np.empty_like(e), np.empty_like(a)
    steps: dict[str, Callable[[], object]] = {
        "copy both within memory": lambda: [np.copyto(to, of) for to, of in zip(room, (e, a), strict=True)],
        "the largest distance (pairing)": lambda: apart(e, a, np.inf),
        "all metrics of a pair": lambda: overall(e, a, 1e-5, 1e3),
    }
    if given.device:

        def send() -> None:
            there = [torch.from_numpy(x).to(given.device) for x in (e, a)]
            float((there[1][-1] - there[0][-1]).cpu())  # the copies have arrived

        steps[f"send both to {given.device}"] = send
    seconds = {name: _best(step, given.rounds) for name, step in steps.items()}
    base = seconds["copy both within memory"]
    print(f"| two arrays of {given.elements:,} float32 numbers | seconds | beside one copy |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.3f} | {taken / base:.2f} |")


if __name__ == "__main__":
    main()
