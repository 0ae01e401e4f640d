"""How often the right layer is named: healthy exports must be quiet, planted faults must be found.

`make bench-faults`, or `python -m benchmarks.localisation --count 300 --seed 1 --jobs 2`. Prints the tables and writes
every case to benchmarks/out/localisation.csv. Misses are kept: `--replay NAME` traces one again.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.progress import track

from benchmarks import misses
from benchmarks.batches import QUOTAS, HealthyBatch, batches, run_all
from benchmarks.faults import Category
from benchmarks.healthy import recipes
from benchmarks.tables import tables
from tests.zoo import MODELS

OUT = Path(__file__).parent / "out"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=sum(QUOTAS.values()), help="faulty cases, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--models", nargs="*", choices=list(MODELS))
    parser.add_argument("--categories", nargs="*", type=Category, choices=list(Category), default=list(Category))
    parser.add_argument("--no-healthy", action="store_true")
    parser.add_argument("--replay", metavar="NAME", help="trace a miss of the last run again, and nothing else")
    options = parser.parse_args()
    if options.replay:
        misses.replay(options.replay)
        return
    misses.forget()
    pieces = list(batches(options.count, options.seed, options.categories, options.models))
    if not options.no_healthy:
        exports = recipes(options.models)
        pieces = [HealthyBatch(tuple(exports[i : i + 8])) for i in range(0, len(exports), 8)] + pieces
    done = track(run_all(pieces, options.jobs), "batches", total=len(pieces), console=Console(stderr=True))
    frame = pd.DataFrame([asdict(row) for rows in done for row in rows]).sort_values(["category", "case"])
    OUT.mkdir(exist_ok=True)
    frame.to_csv(OUT / "localisation.csv", index=False)
    print(tables(frame))


if __name__ == "__main__":
    main()
