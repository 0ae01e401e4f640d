"""Scores `layerdiff.compare_inputs` on generated pairs: ``python -m benchmarks.pipeline --seed 1``."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import cv2
import torch

from benchmarks.pipeline.equal import equal_pair
from benchmarks.pipeline.judging import faults
from benchmarks.pipeline.pairs import pair
from layerdiff.preprocessing.compare import compare_inputs

if TYPE_CHECKING:
    from benchmarks.pipeline.pairs import Pair
    from layerdiff.preprocessing.comparison import InputComparison


@dataclass
class Score:
    """What was counted so far."""

    exact: int = 0
    false: int = 0
    seconds: list[tuple[float, bool, str]] = field(default_factory=list)
    right: Counter[str] = field(default_factory=Counter)
    all: Counter[str] = field(default_factory=Counter)

    def compared(self, made: Pair, name: str) -> InputComparison:
        start = time.process_time()
        found = compare_inputs(made.expected, made.actual, image=made.image)
        self.seconds.append((time.process_time() - start, 640 in made.expected.shape, name))
        return found

    def judge(self, made: Pair) -> None:
        wrong = faults(made, self.compared(made, f"pair {made.number}"))
        kinds = sorted({t.kind for t in made.truth})
        self.exact += not wrong
        self.all.update(kinds)
        self.right.update([] if wrong else kinds)
        if wrong:
            given = "no image" if made.image is None else "image"
            print(f"pair {made.number} ({given}): {kinds}: {'; '.join(wrong)[:260]}")

    def judge_equal(self, made: Pair) -> None:
        found = self.compared(made, f"equal pair {made.number}")
        self.false += not found.agrees
        if not found.agrees:
            print(f"equal pair {made.number}: {found.verdict[:200]}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=240)
    parser.add_argument("--equal", type=int, default=60)
    parser.add_argument("--only", type=int, default=None, help="show one pair in full")
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if options.only is not None:
        _show(options.seed, options.only)
        return
    score = Score()
    for number in range(options.pairs):
        score.judge(pair(options.seed, number))
    for number in range(options.equal):
        score.judge_equal(equal_pair(options.seed, number))
    print(f"\nseed {options.seed}: exact chain {score.exact} of {options.pairs} ({score.exact / options.pairs:.1%})")
    print(f"false findings on equal pipelines: {score.false} of {options.equal}")
    _times(score)
    for kind in sorted(score.all):
        print(f"  {kind:14s} {score.right[kind]:3d} of {score.all[kind]:3d}")


def _times(score: Score) -> None:
    times = sorted(score.seconds)
    for name, items in (("all", times), ("640 x 640", [item for item in times if item[1]])):
        if items:
            middle, worst = items[len(items) // 2], items[-1]
            slow = [item[2] for item in items if item[0] > 2]
            ends = f"largest {worst[0]:.2f} s ({worst[2]}), above 2 s: {len(slow)} {', '.join(slow)}".rstrip()
            print(f"CPU time, {name}, {len(items)} pairs: median {middle[0]:.2f} s, {ends}")


def _show(seed: int, number: int) -> None:
    made = pair(seed, number)
    for truth in made.truth:
        print(truth)
    print(made.pipelines[0])
    print(made.pipelines[1])
    print(None if made.image is None else type(made.image), made.expected.shape, made.actual.shape)
    found = compare_inputs(made.expected, made.actual, image=made.image)
    print(found)
    print([(m.kind, dict(m.parameters)) for m in found.mismatches], found.residual, found.limit, found.reproduced)
    print(faults(made, found))


if __name__ == "__main__":
    main()
