"""Planted faults: the layer that holds the fault is the one that is named."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import pytest

from benchmarks.faults import generate
from layerdiff.model import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from benchmarks.faults import FaultyCase
    from layerdiff.report import Report

COUNT, SEED = 24, 7


@functools.cache
def _source() -> tuple[Iterator[FaultyCase], list[FaultyCase]]:
    return generate(COUNT, SEED), []


def case(number: int) -> FaultyCase:
    """The generator makes cases in order; each is made when it is first asked for."""
    source, made = _source()
    made += itertools.islice(source, max(0, number + 1 - len(made)))
    return made[number]


@pytest.mark.parametrize("number", range(COUNT))
def test_the_layer_with_the_planted_fault_is_named(trace: Callable[..., Report], number: int) -> None:
    faulty = case(number)
    report = trace(faulty.model, faulty.proto, faulty.inputs)
    first = report.first_divergence
    assert not report.agrees, faulty.name
    assert first is not None, faulty.name
    assert faulty.fault.accepts(first.layer), f"{faulty.name}: {faulty.fault.layer!r}, not {first.layer!r}"
    accused = [row for row in report.layers if row.status is Status.DIVERGES]
    assert (first.layer, first.call) in [(row.layer, row.call) for row in accused]


def test_the_same_seed_gives_the_same_faults() -> None:
    first, second = (next(generate(1, SEED, ["refiner"])) for _ in range(2))
    assert (first.name, first.fault) == (second.name, second.fault)
    assert first.proto.SerializeToString(deterministic=True) == second.proto.SerializeToString(deterministic=True)
