"""A short run of what `benchmarks/fuzz` does at length: a report or a LayerdiffError, within the time, nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import onnx
import pytest

from benchmarks.fuzz import guided, seeds
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


# What `benchmarks/fuzz/guided.py` gives to atheris and takes from it; atheris itself is not needed here.

BY_BYTES = b"by bytes"


def guided_files(name: str, data: bytes) -> list[bytes]:
    others = [path.read_bytes() for path in seeds.models()]
    mutated = guided.mutator(name, others, lambda _data, _most: BY_BYTES)
    return [mutated(data, guided.LONGEST_BYTES, seed) for seed in range(80)]


@pytest.mark.parametrize(("name", "files"), [("graph", seeds.models()), ("report", seeds.reports())])
def test_half_of_what_guides_is_changed_where_it_means_something(name: str, files: list[Path]) -> None:
    data = files[0].read_bytes()
    found = guided_files(name, data)
    meant = [file for file in found if file != BY_BYTES]
    assert 20 < len(meant) < 60
    assert len(set(meant)) > 10
    if name == "graph":
        assert all(onnx.ModelProto.FromString(file) for file in meant)
    assert found == guided_files(name, data)  # one number, one file


@pytest.mark.parametrize("name", guided.SEEDS)
def test_what_means_nothing_is_left_to_the_bytes(name: str) -> None:
    assert set(guided_files(name, b"\xff\xfe{")) == {BY_BYTES}


def test_a_finding_is_kept_once_for_each_place_and_the_run_goes_on(tmp_path: Path) -> None:
    def run(data: bytes) -> str:
        if data.startswith(b"bad"):
            raise KeyError(data.decode())
        return "read"

    watched = guided.Watched(run, tmp_path)
    for data in (b"good", b"bad 1", b"bad 2", b"good"):
        watched(data)
    kept = {path.suffix: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(kept) == {"", ".txt"}
    assert kept[""] == b"bad 1"
    assert b"KeyError: 'bad 1'" in kept[".txt"]
