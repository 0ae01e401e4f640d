"""Every kind of planted fault has the causes that are right for it."""

from __future__ import annotations

import itertools

from benchmarks.faults import KINDS, ONE_CALL_KINDS, Fault, Foundry
from benchmarks.faults.causes import CAUSES, SLUGS, causes_of
from benchmarks.faults.small import SMALL_KINDS


def test_every_kind_of_fault_has_causes_of_the_list() -> None:
    assert set(CAUSES) == {*KINDS, *ONE_CALL_KINDS, *SMALL_KINDS}
    for kind, causes in CAUSES.items():
        assert causes, kind
        assert causes <= SLUGS - {"unknown"}, kind


def test_a_fault_in_one_call_is_called_what_was_planted_there() -> None:
    fault = Fault("one-call", "block.conv", (), "weight-noise, only in call 1 of 3: weight: noise of 0.1 std", call=1)
    assert causes_of(fault) == CAUSES["weight-noise"]


def test_the_planted_kind_can_be_read_from_a_generated_fault() -> None:
    for case in itertools.islice(Foundry(3, ["refiner"], ONE_CALL_KINDS).cases(3), 3):
        assert causes_of(case.fault) < CAUSES["one-call"], case.fault.detail
