"""A table of faulty exports and of how often each kind was made and rejected.

`python -m benchmarks.faults.generate --count 50 --seed 0 [--models resnet yolo] [--what pair]`
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import TYPE_CHECKING

import torch

from benchmarks.faults.cases import Foundry
from benchmarks.faults.category import Category, kinds_of
from tests.zoo import MODELS
from tests.zoo.control_flow import CONTROL_FLOW_MODELS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from benchmarks.faults.fault import Fault


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--models", nargs="*", choices=[*MODELS, *CONTROL_FLOW_MODELS])
    parser.add_argument("--what", choices=[*Category], type=Category, default=Category.SINGLE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    foundry = Foundry(options.seed, options.models, category=options.what)
    start = time.perf_counter()
    number = 0
    for name, faults in _made(foundry, options.what, options.count):
        number += 1
        print(f"{name:62} {' AND '.join(_text(fault) for fault in faults)}", flush=True)
    seconds = time.perf_counter() - start
    print(f"\n{number} made in {seconds:.0f} s, {seconds / max(1, number):.2f} s each\n")
    _summary(foundry, list(kinds_of(options.what)))


def _made(foundry: Foundry, what: Category, count: int) -> Iterable[tuple[str, tuple[Fault, ...]]]:
    if what is Category.PAIR:
        return ((pair.name, pair.faults) for pair in foundry.pairs(count))
    return ((case.name, (case.fault,)) for case in foundry.cases(count))


def _text(fault: Fault) -> str:
    also = f" (or {', '.join(repr(name) for name in fault.also_ok)})" if fault.also_ok else ""
    return f"{fault.layer!r}{also}: {fault.detail}"


def _summary(foundry: Foundry, kinds: list[str]) -> None:
    reasons: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
    for (kind, reason), times in foundry.rejected.items():
        reasons[kind][reason] += times
    for kind in kinds:
        rejected = "; ".join(f"{times} {reason}" for reason, times in reasons[kind].most_common())
        print(f"{kind:20} {foundry.made[f'kind {kind}']:4} made   rejected: {rejected or 'none'}")
    print()
    for what in ("model", "way"):
        counts = {key: n for key, n in sorted(foundry.made.items()) if key.startswith(f"{what} ")}
        print("  ".join(f"{key.partition(' ')[2]} {n}" for key, n in counts.items()))


if __name__ == "__main__":
    main()
