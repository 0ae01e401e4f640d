"""Order-keeping pairs in a graph of any length: cut where weights tell the layer, a stretch costs its own square only.

A tensor whose node carries the weights of one layer alone, and of no other, is that layer's. Where no such pair crosses
another, what comes before one belongs to what comes before the other. Graphs of ordinary size are not cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.align.structure import best_pairing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerdiff.align.scores import Scores

THRESHOLD = 0.9
WHOLE = 1 << 20
"""Up to so many pairs are weighed at once."""
LENGTH = 256
"""Values that a stretch has at least, where the graph is cut."""
CERTAIN = 2.0
"""The score of weights that are the layer's, number for number."""


def best_pairs(scores: Scores, values: Sequence[int], tensors: Sequence[str]) -> Iterator[tuple[int, str, float]]:
    """The pairs with the largest total score that keep the order of both, each with its score."""
    uncut = len(values) * len(tensors) <= WHOLE
    cuts = [] if uncut else _cuts(_told_by_weights(scores, values, tensors))
    begins, ends = [(0, 0), *cuts], [*cuts, (len(values), len(tensors))]
    for (row, column), (last_row, last_column) in zip(begins, ends, strict=True):
        rows, columns = values[row:last_row], tensors[column:last_column]
        if rows and columns:
            table = scores.of(rows, columns)
            yield from ((rows[i], columns[j], float(table[i, j])) for i, j in best_pairing(table, THRESHOLD))


def _told_by_weights(scores: Scores, values: Sequence[int], tensors: Sequence[str]) -> list[tuple[int, int]]:
    """The rows and columns of the pairs whose weights are equal, and speak for no other pair of the two as much."""
    ties = {(i, j): scores.tie(values[i], tensors[j]) for i, j in scores.tied_pairs(values, tensors)}
    by_row: dict[int, list[tuple[float, int]]] = {}
    by_column: dict[int, list[tuple[float, int]]] = {}
    for (i, j), score in ties.items():
        by_row.setdefault(i, []).append((score, j))
        by_column.setdefault(j, []).append((score, i))
    own = {i: _clearly_best(found) for i, found in by_row.items()}
    return [(i, j) for i, j in sorted(own.items()) if j is not None and _clearly_best(by_column[j]) == i]


def _clearly_best(found: list[tuple[float, int]]) -> int | None:
    """The place of the one certain score that no other reaches."""
    best = max(found)
    alone = best[0] >= CERTAIN and sum(score == best[0] for score, _ in found) == 1
    return best[1] if alone else None


def _cuts(told: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The pairs, in the order of their rows, that no other crosses, so far apart that a stretch is worth it."""
    if not told:
        return []
    columns = np.array([column for _, column in told])
    before = np.concatenate([[-1], np.maximum.accumulate(columns)[:-1]])
    behind = np.concatenate([np.minimum.accumulate(columns[::-1])[::-1][1:], [columns.max() + 1]])
    found: list[tuple[int, int]] = []
    for (row, column), clear in zip(told, (before < columns) & (columns < behind), strict=True):
        if clear and row - (found[-1][0] if found else 0) >= LENGTH:
            found.append((row, column))
    return found
