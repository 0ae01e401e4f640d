"""A short run of what `benchmarks/fuzz` does at length: a report or a LayerdiffError, within the time, nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from benchmarks.fuzz.targets import Case, Kind, Target

if TYPE_CHECKING:
    from pathlib import Path

COUNTS = {Kind.GRAPH: 400, Kind.REPORT: 200, Kind.TRACE: 60}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Target:
    return Target(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", Kind)
def test_a_mutated_file_ends_in_a_report_or_an_error_of_ours(target: Target, kind: Kind) -> None:
    ends = set()
    for number in range(COUNTS[kind]):
        begin = time.monotonic()
        ends.add(target.run(Case(kind, number)))  # anything that is no LayerdiffError is raised
        assert time.monotonic() - begin < 10, f"{kind.value}:{number}"
    assert ends.intersection({"read", "loaded", "agrees"}), "not one mutated file could be read: nothing was tried"
    assert ends.intersection({"ModelFileError", "InputError"})


def test_a_case_is_the_same_file_every_time(tmp_path: Path) -> None:
    for kind in Kind:
        first, second = (Case(kind, 7).write(tmp_path)[0].read_bytes() for _ in range(2))
        assert first == second
