"""Many values and tensors at once are paired as one value and one tensor would be."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from layerdiff.align import matches
from layerdiff.align.matches import match_values
from layerdiff.align.values import largest_gap_in, same_in, same_numbers, says_nothing
from layerdiff.blocks import largest_gap
from layerdiff.calls import template_of
from layerdiff.limits import Limit, mask_bound
from layerdiff.model import Operand
from layerdiff.shelf import Shelf
from layerdiff.store import Store
from layerdiff.tensors import tensors_in

SPECIAL = (np.nan, np.inf, -np.inf, -1e9, -65504.0)
Pair = namedtuple("Pair", "one other")  # noqa: PYI024  a plain one, as torch's own walk knows it


def some_array(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Numbers of any size, some of them zero, masked or not finite."""
    found = rng.normal(size=shape) * 10.0 ** rng.integers(-4, 5)
    if rng.random() < 0.3:
        found = np.maximum(found, 0)
    if rng.random() < 0.3:
        found[rng.random(shape) < 0.2] = SPECIAL[rng.integers(len(SPECIAL))]
    return found.astype(np.float32)


def some_limit(rng: np.random.Generator, shape: tuple[int, ...]) -> Limit:
    atol = float(10.0 ** rng.integers(-6, 4))
    if rng.random() < 0.3:
        return Limit(0.0, atol * rng.random((*shape[:-1], 1)))
    return Limit(float(rng.choice([0.0, 1e-3])), atol)


def nudged(rng: np.random.Generator, array: np.ndarray[Any, Any], limit: Limit) -> np.ndarray[Any, Any]:
    """About the same numbers: some of them just within the limit, some just outside of it."""
    off = rng.uniform(-1.02, 1.02, array.shape) * limit.atol * rng.choice([0.0, 0.9, 1.0])
    return (array + off).astype(np.float32)


@given(st.integers(0, 10_000))
@np.errstate(all="ignore")
def test_all_values_together_are_matched_as_each_with_each(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(3,), (2, 4), (8,), (4, 16), (5, 20)]
    values = dict(enumerate(some_array(rng, shapes[rng.integers(len(shapes))]) for _ in range(12)))
    limits = {index: some_limit(rng, array.shape) for index, array in values.items()}
    copies = [(i, nudged(rng, a, limits[i])) for i, a in values.items() for _ in range(2)]
    run = Shelf({f"t{place}_of_{i}": Store().keep(array) for place, (i, array) in enumerate(copies)})
    alone = {
        index: [n for n, a in run.items() if a.size == array.size and same_numbers(array, a, limits[index])]
        for index, array in values.items()
        if not says_nothing(array, limits[index])
    }
    found = match_values(values, run, limits)
    assert found == {index: names for index, names in alone.items() if names}
    for index, names in found.items():
        for name in names:
            assert largest_gap_in(run, name, index, values[index]) == largest_gap(values[index], run[name])


@pytest.mark.parametrize("number", [0.0, 1.5])
@pytest.mark.parametrize("size", [16, 200])
def test_each_of_very_many_copies_is_found_although_few_are_compared(
    monkeypatch: pytest.MonkeyPatch, size: int, number: float
) -> None:
    compared = []
    monkeypatch.setattr(matches, "same_in", lambda *given: compared.append(given[1]) or same_in(*given))
    values = {index: np.full(size, number, np.float32) for index in range(30)}
    values[7] = values[7] + np.float32(1e-3)
    limits = {index: Limit(0.0, 0.0 if index % 2 else 1e-6) for index in values}
    run = Shelf({f"t{index}": Store().keep(array.copy()) for index, array in values.items()})
    run_names = [name for name in run if name != "t7"]
    assert match_values(values, run, limits) == {i: ["t7"] if i == 7 else run_names for i in values}
    assert len(compared) <= 2 * len(values)


@pytest.mark.parametrize("special", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("size", [16, 200])
def test_what_is_not_finite_anywhere_is_paired_by_no_value(size: int, special: float) -> None:
    values = {0: np.full(size, special, np.float32)}
    run = Shelf({"same": Store().keep(values[0])})
    assert match_values(values, run, {0: Limit(0.0, 1e-6)}) == {}


@given(st.integers(0, 10_000))
def test_a_mask_begins_at_a_multiple_of_the_lower_decile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ordinary = rng.uniform(0.01, 1.0, rng.integers(10, 60))
    array = np.append(ordinary, -1e9)
    assert mask_bound(array) == max(1e3, 1e5 * float(np.quantile(np.abs(array), 0.1)))


@pytest.mark.parametrize("wrapped", [tuple, list, lambda parts: {"a": parts}, lambda parts: Pair(*parts[:2])])
def test_tensors_are_found_in_every_container(wrapped: Any) -> None:
    one, other = torch.zeros(1), torch.ones(1)
    tree = (wrapped([one, other, 2.0]), {"dtype": torch.float32})
    assert [id(tensor) for tensor in tensors_in(tree)] == [id(one), id(other)]
    args, kwargs = template_of(tree, (7, 8))
    expected = wrapped([Operand(7), Operand(8), 2.0])
    assert (args, type(args)) == (expected, type(expected))
    assert kwargs == {"dtype": torch.float32}


def test_a_share_of_infinity_allows_for_nothing() -> None:
    wanted, got = np.array([1.0, np.inf], np.float32), np.array([1.0, 5.0], np.float32)
    assert not same_numbers(wanted, got, Limit(1e-3, 1e-6))
    assert same_numbers(wanted, wanted, Limit(1e-3, 1e-6))
