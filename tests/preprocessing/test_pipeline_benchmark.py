"""The benchmark of input pairs: its truth holds, and a few of its pairs are solved each time."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.pipeline.alike import same_resize
from benchmarks.pipeline.equal import equal_pair
from benchmarks.pipeline.judging import faults
from benchmarks.pipeline.pairs import Pair, pair
from benchmarks.pipeline.pipelines import Pipeline
from layerdiff.preprocessing.compare import compare_inputs
from layerdiff.preprocessing.comparison import InputComparison


def test_a_pair_is_the_same_for_the_same_seed() -> None:
    one, other = pair(5, 3), pair(5, 3)
    assert one.truth == other.truth
    assert np.array_equal(one.actual, other.actual)


def test_an_answer_without_the_differences_is_wrong() -> None:
    made = pair(5, 3)
    assert faults(made, InputComparison((), 0.0, 0.0))


def test_two_kernels_are_one_only_where_they_make_the_same_of_every_picture() -> None:
    box = {"library": "PIL", "kernel": "box", "options": "", "digits": "rounded"}
    nearest = Pipeline(kernel=("pil", "nearest"), mode="stretch", size=224)
    for side, alike in ((100, True), (700, False)):  # enlarged, and reduced
        made = Pair(0, np.zeros(0), np.zeros(0), np.zeros((side, side, 3), np.uint8), (), (nearest, nearest))
        assert same_resize(nearest, box, made) is alike


def test_most_of_a_few_pairs_are_solved() -> None:
    made = [pair(11, number) for number in range(5)]
    wrong = [p.number for p in made if faults(p, compare_inputs(p.expected, p.actual, image=p.image))]
    assert len(wrong) <= 1, wrong


@pytest.mark.parametrize("number", range(6))
def test_equal_pipelines_agree(number: int) -> None:
    made = equal_pair(11, number)
    assert compare_inputs(made.expected, made.actual, image=made.image).agrees


@pytest.mark.slow
def test_nearly_all_pairs_of_a_seed_are_solved() -> None:
    made = [pair(12, number) for number in range(60)]
    wrong = [p.number for p in made if faults(p, compare_inputs(p.expected, p.actual, image=p.image))]
    assert len(wrong) <= 6, wrong  # docs/benchmarks.md says how many are solved of how many
