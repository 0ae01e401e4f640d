"""In what way a weight differs from the right one."""

from __future__ import annotations

import numpy as np
import pytest

from layerdiff import unlike
from layerdiff.unlike import Unlike

RIGHT = np.random.default_rng(3).normal(size=(96, 40)).astype(np.float32)


@pytest.fixture(params=["at once", "three rows at a time"], autouse=True)
def _few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param != "at once":
        monkeypatch.setattr(unlike, "AT_ONCE", 3 * RIGHT.shape[1])


@pytest.mark.parametrize("lying", [np.asarray, lambda a: np.ascontiguousarray(a.T).T], ids=["rows", "columns"])
def test_distances_are_those_of_double_precision(lying: object) -> None:
    got = RIGHT + np.random.default_rng(4).normal(size=RIGHT.shape).astype(np.float32)
    found = Unlike(RIGHT, lying(got))  # type: ignore[operator]
    gap = np.abs(got.astype(np.float64) - RIGHT)
    assert found.max_abs == gap.max()
    assert found.rel_l2 == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(RIGHT.astype(np.float64)), rel=1e-6)
    assert np.array_equal(found.along[0], gap.max(axis=1))
    assert np.array_equal(found.along[1], gap.max(axis=0))
    assert (found.factor, found.is_permuted, found.is_zero) == (None, False, False)


def test_one_channel_is_found_on_either_axis() -> None:
    for axis in (0, 1):
        got = RIGHT.copy()
        got[(slice(None),) * axis + (7,)] += 1
        assert list(np.flatnonzero(Unlike(RIGHT, got).along[axis])) == [7]


def test_the_channels_of_a_kernel_are_its_first_two_axes() -> None:
    kernel = RIGHT.reshape(12, 8, 4, 10)
    got = kernel.copy()
    got[:, 5] *= 2
    found = Unlike(kernel, got)
    assert [len(gaps) for gaps in found.along] == [12, 8]
    assert list(np.flatnonzero(found.along[1])) == [5]


def test_a_factor_is_told_and_not_where_some_rows_are_right() -> None:
    assert Unlike(RIGHT, RIGHT * np.float32(-0.3)).factor == pytest.approx(-0.3, rel=1e-6)
    half = RIGHT.copy()
    half[:48] *= 2
    assert Unlike(RIGHT, half).factor is None
    padded = np.vstack([np.zeros((4, 40), np.float32), RIGHT])
    assert Unlike(padded, padded * 2).factor == 2


def test_another_order_is_told_also_of_some_rows() -> None:
    assert Unlike(RIGHT, RIGHT[::-1]).is_permuted
    some = RIGHT.copy()
    some[[3, 9]] = some[[9, 3]]
    assert Unlike(RIGHT, some).is_permuted
    some[0, 0] += 1e-3
    assert not Unlike(RIGHT, some).is_permuted


def test_zeros_and_what_is_no_number() -> None:
    assert Unlike(RIGHT, np.zeros_like(RIGHT)).is_zero
    got, wanted = RIGHT.copy(), RIGHT.copy()
    wanted[2, 2] = got[2, 2] = np.nan
    assert Unlike(wanted, got).max_abs == 0
    got[5, 5] = np.nan
    assert Unlike(wanted, got).max_abs == np.inf
    assert Unlike(np.float32(2), np.float32(5)).max_abs == 3
