"""Metrics of one pair of arrays, and the verdict on them."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from layerdiff.align.matches import match_values
from layerdiff.align.values import same_numbers
from layerdiff.limits import EPSILON_FACTOR, NOISE_FACTOR, limit_for, mask_like
from layerdiff.measure import measure
from layerdiff.model import Metrics, Noise, Tolerance

NAN, INF = math.nan, math.inf
EXACTLY = Tolerance(0.0, 0.0)


def up_to(limit: float) -> Tolerance:
    return Tolerance(rtol=0.0, atol=limit)


def compare(expected: Any, actual: Any, kind: str = "float32", **options: Any) -> Metrics:
    options.setdefault("tolerance", None)
    return measure(np.array(expected, kind), np.array(actual, kind), **options)


# Each metric by hand: expected (3, 4), actual (3, 5).


BY_HAND = {
    "max_abs": 1.0,
    "mean_abs": 0.5,
    "rms": math.sqrt(0.5),
    "rel_l2": 1 / 5,
    "cosine": (9 + 20) / (5 * math.sqrt(34)),
    "sqnr_db": 20 * math.log10(5 / 1),
    "max_ulp": 2.0**21,  # one unit in the last place of 4.0 is 2 ** -21
    "norm_ratio": math.sqrt(34) / 5,
    "within": 0.5,
    "worst_index": (1,),
    "nonfinite_expected": 0,
    "nonfinite_actual": 0,
    "nonfinite_mismatches": 0,
    "agrees": False,
}


@pytest.mark.parametrize(("name", "value"), BY_HAND.items(), ids=BY_HAND.keys())
def test_a_metric_is_what_its_formula_gives_by_hand(name: str, value: object) -> None:
    assert getattr(compare([3, 4], [3, 5]), name) == pytest.approx(value)


def test_the_limit_is_the_noise_and_the_resolution_of_the_largest_value() -> None:
    found = compare([1, 8], [1, 8], noise=Noise(max_abs=1e-3, rms=1e-4))
    assert found.limit == pytest.approx(NOISE_FACTOR * 1e-3 + EPSILON_FACTOR * 2.0**-23 * 8)


@pytest.mark.parametrize(("dtype", "resolution"), [("float16", 2.0**-10), ("bfloat16", 2.0**-7), ("float64", 2.0**-52)])
def test_the_resolution_is_that_of_the_dtype_the_model_computed_in(dtype: str, resolution: float) -> None:
    assert limit_for(np.array([2.0, 1.0]), dtype, None) == pytest.approx(EPSILON_FACTOR * resolution * 2)


def test_the_error_as_a_multiple_of_what_was_allowed_for_its_element() -> None:
    found = compare([1.0, 100.0], [1.5, 101.0], tolerance=Tolerance(rtol=0.01, atol=0.24))
    assert found.worst_index == (1,)
    assert found.limit == pytest.approx(1.24)
    assert found.times_limit == pytest.approx(2.0)  # of the first element: 0.5 / 0.25
    assert compare([1], [1], "int64").times_limit == 0
    assert compare([1], [2], "int64").times_limit == INF
    assert compare([1, NAN], [1, 2]).times_limit == INF


@given(st.floats(0, 3))
def test_what_agrees_is_within_its_limit_once_at_most(error: float) -> None:
    found = compare([5.0], [5.0 + error], "float64", tolerance=Tolerance(0.1, 0.5))
    assert found.agrees == (found.times_limit <= 1)


@pytest.mark.parametrize("value", [1.0, 3.0, 1.9999, 1000.0, 1e-20])
def test_the_next_float_is_one_unit_in_the_last_place_away(value: float) -> None:
    here = np.array([value], np.float32)
    assert measure(here, np.nextafter(here, np.float32(INF)), tolerance=None).max_ulp == pytest.approx(1.0)


def test_a_fixed_tolerance_is_absolute_plus_relative() -> None:
    tolerance = Tolerance(rtol=0.1, atol=1.0)
    assert compare([100.0], [110.9], tolerance=tolerance).agrees
    assert not compare([100.0], [111.1], tolerance=tolerance).agrees


def test_the_share_within_tolerance_counts_elements() -> None:
    assert compare([1, 2, 3, 4], [1, 2, 3, 9], tolerance=Tolerance(0, 0.5)).within == 0.75


# Types that wrap, overflow or lose what they subtract.


def test_unsigned_bytes_do_not_wrap() -> None:
    found = compare([1], [3], "uint8")
    assert (found.max_abs, found.agrees) == (2.0, False)
    assert compare([3], [1], "uint8").max_abs == 2.0


def test_half_precision_does_not_overflow() -> None:
    found = compare([60000, 1], [-60000, 1], "float16", dtype="float16")
    assert found.max_abs == 120000.0
    assert found.norm_ratio == pytest.approx(1.0)
    assert found.cosine == pytest.approx(-1.0)
    assert found.nonfinite_mismatches == 0


def test_large_floats_do_not_overflow_in_the_norms() -> None:
    found = compare([1e30, 1e30], [1e30, -1e30], tolerance=EXACTLY)
    assert found.rel_l2 == pytest.approx(math.sqrt(2))


def test_huge_doubles_do_not_overflow_in_the_norms() -> None:
    found = compare([1e200, 1e200], [1e200, -1e200], "float64", tolerance=EXACTLY)
    assert found.max_abs == 2e200
    assert not found.agrees


def test_integers_are_compared_exactly_beyond_what_float64_can_tell_apart() -> None:
    assert not compare([2**53], [2**53 + 1], "int64").agrees


def test_the_error_of_large_integers_that_differ_is_not_zero() -> None:
    assert compare([2**53], [2**53 + 1], "int64").max_abs > 0


def test_no_tolerance_excuses_an_integer() -> None:
    assert not compare([7], [8], "int64", tolerance=Tolerance(1.0, 10.0)).agrees


def test_booleans_are_compared_exactly() -> None:
    found = compare([True, False], [True, True], "bool")
    assert (found.agrees, found.within, found.worst_index) == (False, 0.5, (1,))


def test_complex_numbers_are_compared_by_the_distance_in_the_plane() -> None:
    found = compare([1 + 1j, 2], [4 + 5j, 2], "complex64")
    assert found.max_abs == pytest.approx(5.0)
    assert not found.agrees


def test_a_conjugate_is_not_equal() -> None:
    assert not compare([1 + 2j, 3], [1 - 2j, 3], "complex64").agrees


# What is not finite.


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ([1, 2], [1, NAN]),
        ([1, NAN], [1, 2]),
        ([1, 2], [1, INF]),
        ([1, INF], [1, 2]),
        ([1, INF], [1, -INF]),
        ([1, -INF], [1, -1e9]),
        ([1, NAN], [1, INF]),
    ],
    ids=str,
)
def test_what_is_finite_on_one_side_only_or_of_another_kind_differs(expected: list, actual: list) -> None:
    found = compare(expected, actual)
    assert not found.agrees
    assert found.nonfinite_mismatches == 1
    assert found.worst_index == (1,)
    assert not same_numbers(np.array(expected, np.float32), np.array(actual, np.float32), up_to(1e-3))


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_what_is_not_finite_agrees_with_its_like(special: float) -> None:
    found = compare([1, special], [1, special])
    assert found.agrees
    assert (found.nonfinite_expected, found.nonfinite_actual, found.nonfinite_mismatches) == (1, 1, 0)
    assert found.max_abs == 0
    assert same_numbers(np.array([1, special]), np.array([1, special]), EXACTLY)


def test_the_sums_are_taken_where_both_sides_are_finite() -> None:
    found = compare([3, 4, NAN], [3, 5, NAN])
    assert found.rel_l2 == pytest.approx(BY_HAND["rel_l2"])
    assert found.cosine == pytest.approx(BY_HAND["cosine"])


def test_infinite_attention_masks_on_both_sides_leave_the_scores_to_be_compared() -> None:
    expected = np.array([[0.5, -INF], [0.25, 0.75]], np.float32)
    assert measure(expected, expected.copy(), tolerance=None).agrees
    found = measure(expected, expected + np.float32(1e-3), tolerance=None)
    assert (found.agrees, found.within) == (False, 0.25)


@pytest.mark.parametrize("special", [NAN, INF, -INF])
def test_an_array_of_nothing_but_specials_agrees_with_itself(special: float) -> None:
    assert compare([special] * 3, [special] * 3).agrees
    assert not compare([special] * 3, [0] * 3).agrees


# Mask constants among ordinary numbers.


MASKS = [-1e4, -65504.0, -1e9, float(np.finfo(np.float32).min)]


def scores(mask: float) -> np.ndarray:
    found = np.linspace(-2, 2, 64, dtype=np.float32).reshape(8, 8)
    found[np.triu_indices(8, 1)] = mask
    return found


@pytest.mark.parametrize("mask", MASKS[2:])
def test_a_mask_constant_does_not_excuse_an_error_of_the_scores(mask: float) -> None:
    expected = scores(mask)
    actual = expected.copy()
    actual[3, 1] += 1e-3
    found = measure(expected, actual, tolerance=None)
    assert found.limit < 1e-4
    assert not found.agrees
    assert not same_numbers(expected, actual, up_to(found.limit))


@pytest.mark.parametrize("mask", MASKS)
def test_a_mask_constant_that_absorbed_a_score_agrees(mask: float) -> None:
    expected = scores(mask)
    actual = np.where(expected == np.float32(mask), np.nextafter(expected, np.float32(0)), expected)
    assert measure(expected, actual, tolerance=None).agrees


@pytest.mark.parametrize("mask", MASKS[2:])
def test_another_mask_constant_differs(mask: float) -> None:
    expected = scores(mask)
    assert not measure(expected, np.where(expected == np.float32(mask), 0, expected), tolerance=None).agrees


def test_an_array_of_mostly_the_smallest_float_is_judged_without_a_warning() -> None:
    smallest = np.finfo(np.float32).min
    mask = np.full((4, 4), smallest, np.float32)
    mask[np.tril_indices(4)] = 0
    assert measure(mask, mask.copy(), tolerance=None).agrees


def test_large_half_precision_numbers_are_judged_without_a_warning() -> None:
    x = np.array([2000.0, 1000.0, 3.0, 1.0], np.float16)
    assert measure(x, x.copy(), dtype="float16", tolerance=None).agrees


def test_numbers_that_are_all_large_are_no_masks() -> None:
    assert not mask_like(np.linspace(1e4, 1e5, 50)).any()


def test_integers_are_never_masks() -> None:
    assert limit_for(np.array([0, 1, 2**40]), "int64", None) == 0


# Shapes.


def test_arrays_of_no_elements_agree() -> None:
    found = compare(np.zeros((0, 3)), np.zeros((0, 3)))
    assert found.agrees
    assert (found.max_abs, found.within, found.worst_index, found.cosine) == (0.0, 1.0, (), 1.0)


def test_scalars_are_compared() -> None:
    assert compare(2.0, 2.0).agrees
    found = compare(2.0, 3.0)
    assert (found.agrees, found.max_abs, found.worst_index) == (False, 1.0, ())


def test_the_worst_index_is_that_of_the_largest_error() -> None:
    expected = np.zeros((2, 3, 4), np.float32)
    actual = expected.copy()
    actual[1, 2, 0], actual[0, 1, 3] = -5, 4
    assert measure(expected, actual, tolerance=None).worst_index == (1, 2, 0)


@pytest.mark.parametrize(("one", "other"), [((4, 1), (1, 4)), ((4,), (4, 1)), ((2, 3), (3, 2)), ((), (1,))])
def test_arrays_are_never_broadcast(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="shapes differ") as caught:
        measure(np.zeros(one), np.zeros(other), tolerance=None)
    assert str(one) in str(caught.value)
    assert str(other) in str(caught.value)


def test_all_zeros_against_all_zeros_is_perfect_and_against_numbers_is_not() -> None:
    same, apart = compare([0, 0], [0, 0]), compare([0, 0], [0, 1])
    assert (same.agrees, same.rel_l2, same.cosine, same.norm_ratio, same.sqnr_db) == (True, 0.0, 1.0, 1.0, INF)
    assert (apart.agrees, apart.rel_l2, apart.cosine, apart.norm_ratio) == (False, INF, 0.0, INF)


# For any array.


anything = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5), elements=st.floats(width=32)
)


def pairs_of(elements: st.SearchStrategy[float]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
    """Two arrays of one shape, many of their elements equal."""

    def of_shape(shape: tuple[int, ...]) -> st.SearchStrategy[tuple[np.ndarray, np.ndarray]]:
        array = hnp.arrays(np.float32, shape, elements=elements)
        keep = hnp.arrays(np.bool_, shape)
        return st.tuples(array, array, keep).map(lambda three: (three[0], np.where(three[2], *three[:2])))

    return hnp.array_shapes(max_dims=3, max_side=5).flatmap(of_shape)


pairs = pairs_of(st.floats(-1e6, 1e6, width=32))
any_pairs = pairs_of(st.sampled_from([0.0, 1.0, 1.25, -3.0, 1e9, -1e9, NAN, INF, -INF]))


@given(anything)
@example(np.full(2, 3.4e33, np.float32))
@example(np.array([NAN, INF, -INF, 0.0], np.float32))
def test_an_array_agrees_with_itself(x: np.ndarray) -> None:
    found = measure(x, x.copy(), tolerance=None)
    assert found.agrees
    assert (found.max_abs, found.mean_abs, found.rms, found.rel_l2, found.max_ulp) == (0, 0, 0, 0, 0)
    assert (found.within, found.norm_ratio, found.sqnr_db, found.nonfinite_mismatches) == (1.0, 1.0, INF, 0)
    assert found.cosine == pytest.approx(1.0)
    assert same_numbers(x, x.copy(), EXACTLY)


@given(pairs)
def test_errors_are_the_same_in_both_directions(pair: tuple[np.ndarray, np.ndarray]) -> None:
    there, back = measure(*pair, tolerance=EXACTLY), measure(*pair[::-1], tolerance=EXACTLY)
    for name in ("max_abs", "mean_abs", "rms", "cosine", "agrees", "within"):
        assert getattr(there, name) == pytest.approx(getattr(back, name))


@given(anything, st.data())
def test_one_changed_element_is_found(x: np.ndarray, data: st.DataObject) -> None:
    assume(x.size)
    where = tuple(data.draw(st.integers(0, side - 1)) for side in x.shape)
    actual = x.copy()
    actual[where] = 1 if not np.isfinite(x[where]) else NAN
    found = measure(x, actual, tolerance=None)
    assert not found.agrees
    assert found.worst_index == where
    assert found.within == pytest.approx(1 - 1 / x.size)


@given(any_pairs)
@example((np.array([INF, 1], np.float32), np.array([1, 1], np.float32)))
def test_the_search_for_equal_numbers_and_the_verdict_are_of_one_mind(pair: tuple[np.ndarray, np.ndarray]) -> None:
    limit = up_to(limit_for(pair[0], "float32", None))
    assert same_numbers(*pair, limit) == measure(*pair, tolerance=None).agrees


@given(pairs)
def test_an_array_agrees_with_another_exactly_when_all_its_elements_do(pair: tuple[np.ndarray, np.ndarray]) -> None:
    expected, actual = pair
    limit = limit_for(expected, "float32", None)
    assume(not mask_like(expected).any())
    apart = np.abs(expected.astype(np.float64) - actual.astype(np.float64))
    assert measure(expected, actual, tolerance=None).agrees == bool(np.all(apart <= limit))


# Finding the tensors that hold the same numbers.


def test_equal_numbers_are_found_whatever_their_shape_and_name() -> None:
    x, y = np.arange(24.0).reshape(2, 3, 4), np.linspace(5, 6, 24)
    found = match_values(
        {1: x, 2: y}, {"b": x.reshape(6, 4), "c": y.reshape(4, 6), "d": x + 1}, {1: up_to(1e-6), 2: up_to(1e-6)}
    )
    assert found == {1: ["b"], 2: ["c"]}


def test_permuted_numbers_are_not_the_same() -> None:
    x = np.arange(24.0).reshape(4, 6)
    assert match_values({1: x}, {"t": np.ascontiguousarray(x.T)}, {1: up_to(1e-6)}) == {}


def test_integers_do_not_match_floats_that_look_alike() -> None:
    assert match_values({1: np.arange(4)}, {"f": np.arange(4.0)}, {1: EXACTLY}) == {}


def test_a_difference_outside_of_the_sampled_positions_is_seen() -> None:
    x = np.zeros(10_000, np.float32)
    for index in range(0, 10_000, 997):
        other = x.copy()
        other[index] = 1
        assert match_values({1: x}, {"t": other}, {1: up_to(1e-6)}) == {}


@given(
    shape=st.sampled_from([(1,), (3, 5), (7, 1, 2), (200, 300), (16_384,), (16_385,)]),
    scale=st.sampled_from([1e-42, 1e-6, 1.0, 80.0, 5e3]),
    apart=st.sampled_from([0.0, 1e-8, 1e-6, 1e-3, 2.0]),
    seed=st.integers(0, 1000),
)
def test_the_pass_over_blocks_gives_what_whole_arrays_in_double_precision_give(
    shape: tuple[int, ...], scale: float, apart: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    expected = (scale * rng.standard_normal(shape)).astype(np.float32)
    actual = (expected + scale * apart * rng.standard_normal(shape)).astype(np.float32)
    noise = Noise(1e-7 * scale, 0.0)
    blocks = measure(expected, actual, noise=noise, tolerance=None)
    # Arrays of doubles take the other way; the type that they stand for is given.
    whole = measure(expected.astype(float), actual.astype(float), dtype="float32", noise=noise, tolerance=None)
    exact = ("within", "limit", "agrees")
    assert all(getattr(blocks, name) == getattr(whole, name) for name in exact)
    rest = [field.name for field in fields(Metrics) if field.name not in (*exact, "worst_index")]
    assert [getattr(blocks, name) for name in rest] == pytest.approx([getattr(whole, name) for name in rest], rel=2e-5)
    assert 1 - blocks.cosine == pytest.approx(1 - whole.cosine, rel=1e-3, abs=1e-15 + 1e-6 * whole.rel_l2**2)
    gap = np.abs(actual.astype(float) - expected)
    assert gap[blocks.worst_index] == blocks.max_abs == pytest.approx(gap.max(), rel=1e-6)
