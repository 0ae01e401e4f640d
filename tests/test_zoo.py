"""No false alarm: every model of the zoo against its own export, from both exporters, after every treatment."""

from __future__ import annotations

import functools
import itertools
from typing import TYPE_CHECKING

import pytest

from layerdiff.model import Status
from tests.zoo import MODELS, Sample
from tests.zoo.control_flow import CONTROL_FLOW_MODELS
from tests.zoo.control_flow import export as export_control_flow
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, export, treat

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from layerdiff.report import Report

WAYS = [way for way in itertools.product(MODELS, Exporter, Treatment) if way not in UNSUPPORTED]
FLOWS = [(name, e, t) for name, flow in CONTROL_FLOW_MODELS.items() for e in flow.exporters for t in Treatment]


@functools.cache
def exported(name: str, exporter: Exporter) -> tuple[Sample, onnx.ModelProto]:
    sample = MODELS[name]()
    return sample, export(sample.model, sample.inputs, exporter)


@functools.cache
def exported_with_control_flow(name: str, exporter: Exporter) -> tuple[Sample, onnx.ModelProto]:
    sample = CONTROL_FLOW_MODELS[name].build()
    return sample, export_control_flow(sample.model, sample.inputs, exporter)


def assert_quiet_and_complete(report: Report, modules: set[str]) -> None:
    assert report.agrees, report.verdict
    assert report.divergences == ()
    assert report.warnings == ()
    statuses = {row.status for row in report.layers}
    assert statuses <= {Status.AGREES, Status.FOLDED, Status.UNMATCHED}
    unexplained = [row for row in report.layers if row.status is not Status.AGREES and not row.reason]
    assert unexplained == []
    coverage = report.coverage
    told = {row.layer for row in report.layers} | {name.partition(" call ")[0] for name in coverage.unmatched}
    assert modules <= told | set(coverage.containers)
    unmatched = sum(row.status is Status.UNMATCHED for row in report.layers)
    assert coverage.compared + coverage.folded + unmatched == len(report.layers)
    assert coverage.total == coverage.compared + coverage.folded + len(coverage.unmatched)


@pytest.mark.parametrize(("name", "exporter", "treatment"), WAYS, ids=lambda part: getattr(part, "value", part))
def test_a_healthy_export_is_quiet_and_every_module_accounted_for(
    trace: Callable[..., Report], name: str, exporter: Exporter, treatment: Treatment
) -> None:
    sample, proto = exported(name, exporter)
    report = trace(sample.model, treat(proto, treatment), sample.inputs)
    assert_quiet_and_complete(report, {path for path, _ in sample.model.named_modules(remove_duplicate=False)})
    assert report.coverage.compared > report.coverage.folded


@pytest.mark.parametrize(("name", "exporter", "treatment"), FLOWS, ids=lambda part: getattr(part, "value", part))
def test_a_healthy_export_with_a_branch_or_a_loop_is_quiet(
    trace: Callable[..., Report], name: str, exporter: Exporter, treatment: Treatment
) -> None:
    sample, proto = exported_with_control_flow(name, exporter)
    report = trace(sample.model, treat(proto, treatment), sample.inputs)
    assert_quiet_and_complete(report, {path for path, _ in sample.model.named_modules(remove_duplicate=False)})
