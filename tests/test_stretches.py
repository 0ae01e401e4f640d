"""A long graph is paired stretch by stretch, cut where weights tell the layer beyond doubt."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from layerdiff.align.stretches import best_pairs
from layerdiff.align.structure import best_pairing

SIZE = 1500


@dataclass
class Table:
    """Scores that are known beforehand: the numbers of rows and columns are the values and the tensors."""

    scores: np.ndarray
    ties: dict[tuple[int, int], float]
    largest: int = 0

    def of(self, values: list[int], tensors: list[str]) -> np.ndarray:
        self.largest = max(self.largest, len(values) * len(tensors))
        return self.scores[np.ix_(values, [int(name) for name in tensors])]

    def tied_pairs(self, values: list[int], tensors: list[str]) -> list[tuple[int, int]]:
        return list(self.ties)

    def tie(self, value: int, tensor: str) -> float:
        return self.ties[value, int(tensor)]

    def paired(self) -> list[tuple[int, int]]:
        rows, columns = self.scores.shape
        return [(i, int(t)) for i, t, _ in best_pairs(self, list(range(rows)), [str(j) for j in range(columns)])]


def near_the_diagonal(seed: int) -> np.ndarray:
    """Scores of a graph in which every third tensor has no counterpart, and neighbours look alike."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(0.0, 2.0, (SIZE, SIZE))
    scores[np.arange(SIZE), np.arange(SIZE)] += 2.5 * (np.arange(SIZE) % 3 > 0)
    return scores


def test_a_cut_graph_is_paired_like_the_whole_one() -> None:
    scores = near_the_diagonal(0)
    whole = best_pairing(scores, 0.9)
    table = Table(scores, {pair: 2.0 for pair in whole if pair[0] == pair[1]})
    assert table.paired() == whole
    assert table.largest < scores.size / 4


def test_a_graph_of_ordinary_size_is_not_cut() -> None:
    scores = near_the_diagonal(1)[:600, :600]
    table = Table(scores, {(i, i): 2.0 for i in range(600)})
    assert table.paired() == best_pairing(scores, 0.9)
    assert table.largest == scores.size


def test_exchanged_weights_cut_nothing_between_them() -> None:
    scores = near_the_diagonal(2)
    ties = {(i, i): 2.0 for i in range(SIZE)} | {(0, SIZE - 1): 2.0, (SIZE - 1, 0): 2.0}
    del ties[0, 0], ties[SIZE - 1, SIZE - 1]
    table = Table(scores, ties)
    assert table.paired() == best_pairing(scores, 0.9)
    assert table.largest == scores.size


def test_weights_that_many_layers_share_cut_nothing() -> None:
    scores = near_the_diagonal(3)
    table = Table(scores, {(i, j): 2.0 for i in range(0, SIZE, 100) for j in range(0, SIZE, 100)})
    assert table.paired() == best_pairing(scores, 0.9)
    assert table.largest == scores.size


def test_weights_that_are_nearly_a_layers_cut_nothing() -> None:
    table = Table(near_the_diagonal(4), {(i, i): 1.5 for i in range(SIZE)})
    table.paired()
    assert table.largest == SIZE * SIZE
