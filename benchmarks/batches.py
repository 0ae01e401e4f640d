"""The benchmark in pieces: the same cases however many processes share them."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import random
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from benchmarks import misses
from benchmarks.faults import Category, Foundry
from benchmarks.faults.category import kinds_of, models_of
from benchmarks.healthy import Recipe, Unmade
from benchmarks.judging import RIGHT, Row, judged

if TYPE_CHECKING:
    from collections.abc import Iterator

    from benchmarks.faults import FaultyCase, FaultyPair
    from benchmarks.healthy import HealthyCase

QUOTAS = {
    Category.SINGLE: 240,
    Category.PAIR: 60,
    Category.ONE_CALL: 48,
    Category.IF_BODY: 36,
    Category.LOOP_BODY: 24,
    Category.LOCAL_FUNCTION: 48,
    Category.ROOT_FORWARD: 36,
    Category.FIRST_LAYER: 36,
    Category.LAST_LAYER: 36,
    Category.SMALL: 56,
}
"""How many cases of each category make the whole benchmark."""

REPAIR_EVERY = 5
"""Of so many cases one is repaired, too: that takes longer than the trace."""

CHUNK = 40
"""About how many cases of one category are one batch."""


@dataclass(frozen=True)
class Batch:
    """Some cases of one category: those of every `of`-th kind, from the `part`-th on."""

    category: Category
    seed: int
    count: int
    start: int
    part: int
    of: int
    models: tuple[str, ...]

    def run(self) -> list[Row]:
        rows = [_scored(case, repair=number % REPAIR_EVERY == 0) for number, case in enumerate(self._cases())]
        if len(rows) < self.count:
            print(f"{self.category}: {self.count - len(rows)} of {self.count} cases could not be made")
        return rows

    def _cases(self) -> Iterator[FaultyCase | FaultyPair]:
        kinds = kinds_of(self.category)
        names = random.Random(self.seed).sample(list(kinds), len(kinds))
        chosen = names if self.category is Category.PAIR or len(names) < self.of else names[self.part :: self.of]
        seed = zlib.crc32(f"{self.seed} {self.category} {self.part}".encode())
        foundry = Foundry(seed, self.models, {kind: kinds[kind] for kind in chosen}, self.category)
        made = foundry.pairs if self.category is Category.PAIR else foundry.cases
        yield from made(self.count, self.start)


@dataclass(frozen=True)
class HealthyBatch:
    """The cases of some healthy exports."""

    recipes: tuple[Recipe, ...]

    def run(self) -> list[Row]:
        rows = []
        for case in (case for recipe in self.recipes for case in recipe.cases()):
            if isinstance(case, Unmade):
                print(f"not made: {case.name}: {case.reason}")
            else:
                rows.append(_scored(case))
        return rows


def batches(count: int, seed: int, categories: list[Category], models: list[str] | None) -> list[Batch]:
    """About `count` faulty cases of these categories, in the proportions of QUOTAS."""
    scale = count / sum(QUOTAS[category] for category in categories)
    found = []
    for category in categories:
        names = tuple(name for name in models_of(category) if models is None or name in models)
        wanted = max(1, round(QUOTAS[category] * scale)) if names else 0
        of = max(1, round(wanted / CHUNK))
        start = 0
        for part in range(of if wanted else 0):
            size = wanted // of + (part < wanted % of)
            found.append(Batch(category, seed, size, start, part, of, names))
            start += size
    return found


def run_all(pieces: list[Batch | HealthyBatch], jobs: int) -> Iterator[list[Row]]:
    """The rows of each piece as it is done; a piece that dies leaves one crashed row."""
    if jobs == 1:
        yield from map(_run, pieces)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        running = {pool.submit(_run, piece): piece for piece in pieces}
        for done in concurrent.futures.as_completed(running):
            error = done.exception()
            if error is None:
                yield done.result()
            else:
                yield [_died(running[done], error)]


def _run(piece: Batch | HealthyBatch) -> list[Row]:
    torch.set_num_threads(1)
    return piece.run()


def _scored(case: FaultyCase | FaultyPair | HealthyCase, *, repair: bool = False) -> Row:
    row = judged(case, repair=repair)
    if row.outcome not in RIGHT or row.both is False:
        misses.keep(case)
    return row


def _died(piece: Batch | HealthyBatch, error: BaseException) -> Row:
    category = piece.category.value if isinstance(piece, Batch) else "healthy"
    return Row(f"{category} batch", category, "", "", "", "", "crashed", named=f"{type(error).__name__}: {error}")
