"""Faults from public bug reports: the layer is named exactly, the cause by its slug, and a healthy file stays quiet."""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING

import pytest

from benchmarks.faults.causes import SLUGS
from benchmarks.real_faults import is_quiet, measure, page
from layerdiff import trace
from tests.realfaults import REAL_FAULTS, Case

if TYPE_CHECKING:
    from layerdiff.report import Report

MISSES: dict[str, tuple[str, str]] = {
    "update-of-a-slice-lost": ("verified", "exporters lose the update again when the layer is lowered afresh"),
}
"""What is not found yet: which of "layer", "cause" and "verified", and what is said instead."""


@functools.cache
def case(name: str) -> Case:
    return REAL_FAULTS[name].build()


@functools.cache
def traced(name: str) -> Report:
    return trace(case(name).model, case(name).faulty, case(name).inputs, progress=False)


def each(what: str) -> pytest.MarkDecorator:
    """Every fault, the known misses expected to fail."""

    def marks(name: str) -> tuple[pytest.MarkDecorator, ...]:
        missed, reason = MISSES.get(name, ("", ""))
        return (pytest.mark.xfail(strict=True, reason=reason),) if what in missed.split() else ()

    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in REAL_FAULTS])


@each("layer")
def test_the_layer_that_the_report_is_about_is_named(name: str) -> None:
    report = traced(name)
    assert not report.agrees
    assert report.first_divergence is not None
    assert report.first_divergence.layer == REAL_FAULTS[name].layer


@each("cause")
def test_the_cause_that_the_report_found_is_named(name: str) -> None:
    report = traced(name)
    assert report.diagnoses
    assert report.diagnoses[0].cause in REAL_FAULTS[name].causes


@each("verified")
def test_a_cause_that_other_nodes_can_prove_is_verified(name: str) -> None:
    fault = REAL_FAULTS[name]
    if not fault.provable:
        pytest.skip("no other nodes agree with PyTorch here")
    diagnosis = traced(name).diagnoses[0]
    assert diagnosis.cause in fault.causes
    assert diagnosis.verified


@pytest.mark.parametrize("name", REAL_FAULTS)
def test_a_healthy_file_of_the_same_network_is_quiet(name: str) -> None:
    healthy = case(name)
    inputs = healthy.inputs if healthy.twin_inputs is None else healthy.twin_inputs
    assert is_quiet(trace(healthy.model, healthy.twin, inputs, progress=False), lossy=REAL_FAULTS[name].lossy_twin)


@pytest.mark.parametrize("name", REAL_FAULTS)
def test_a_real_fault_is_well_described(name: str) -> None:
    fault = REAL_FAULTS[name]
    assert fault.name == name
    assert fault.sources
    assert all(re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", source) for source in fault.sources)
    assert fault.causes
    assert fault.causes <= SLUGS - {"unknown"}
    assert fault.happened.endswith(".")


def test_known_misses_are_of_faults_that_exist() -> None:
    assert set(MISSES) <= set(REAL_FAULTS)
    assert {what for missed, _ in MISSES.values() for what in missed.split()} <= {"layer", "cause", "verified"}


def test_the_page_says_what_was_found() -> None:
    row = measure(REAL_FAULTS["subtraction-reversed"])
    text = page([row])
    assert "https://github.com/opencv/opencv/issues/20852" in text
    assert f"The layer is right in {int(row.layer_right)}, the cause in {int(row.cause_right)}" in text
    assert ("## Misses" in text) is not (row.layer_right and row.cause_right and row.quiet)
