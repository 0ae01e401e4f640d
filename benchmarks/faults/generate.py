"""A table of faulty exports and of how often each kind was made and rejected.

`python -m benchmarks.faults.generate --count 50 --seed 0 [--models resnet yolo]`
"""

from __future__ import annotations

import argparse
import time
from collections import Counter

import torch

from benchmarks.faults.cases import Foundry
from benchmarks.faults.registry import KINDS
from tests.zoo import MODELS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="*", choices=list(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    foundry = Foundry(options.seed, options.models)
    start = time.perf_counter()
    for case in foundry.cases(options.count):
        also = f" (or {', '.join(repr(name) for name in case.fault.also_ok)})" if case.fault.also_ok else ""
        print(f"{case.name:62} {case.fault.layer!r}{also}: {case.fault.detail}", flush=True)
    number = sum(foundry.made[f"kind {kind}"] for kind in KINDS)
    seconds = time.perf_counter() - start
    print(f"\n{number} cases in {seconds:.0f} s, {seconds / max(1, number):.2f} s each\n")
    _summary(foundry)


def _summary(foundry: Foundry) -> None:
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    for (kind, reason), times in foundry.rejected.items():
        reasons[kind][reason] += times
    for kind in KINDS:
        rejected = "; ".join(f"{times} {reason}" for reason, times in reasons[kind].most_common())
        print(f"{kind:20} {foundry.made[f'kind {kind}']:4} made   rejected: {rejected or 'none'}")
    print()
    for what in ("model", "way"):
        counts = {key: n for key, n in sorted(foundry.made.items()) if key.startswith(f"{what} ")}
        print("  ".join(f"{key.partition(' ')[2]} {n}" for key, n in counts.items()))


if __name__ == "__main__":
    main()
