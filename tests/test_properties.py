"""What must hold for any network: random ones against their own exports, and against broken ones rewritten at will."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, event, given, note, settings
from hypothesis import strategies as st
from torch.onnx.errors import OnnxExporterError

import layerdiff
from layerdiff.errors import BackendError
from layerdiff.measure import measure
from layerdiff.model import Status
from tests.test_zoo import assert_quiet_and_complete
from tests.zoo import rewrites
from tests.zoo.exports import Exporter, export
from tests.zoo.random_nets import faithful, random_net, with_fault
from tests.zoo.scramble import scrambled

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import onnx

    from layerdiff.report import Report
    from tests.zoo.sample import Sample

# A norm of instances says so where it sees another number of channels, and works.
pytestmark = pytest.mark.filterwarnings("ignore:input's size at dim")

QUICK, DEEP = 12, 300
"""Networks for each test of the normal suite, and of the slow one."""

REWRITES: dict[str, Callable[[onnx.ModelProto, random.Random], onnx.ModelProto]] = {
    "names scrambled": lambda proto, _: scrambled(proto),
    "identities added": rewrites.with_identities,
    "nodes reordered": rewrites.reordered,
    "initializers as constants": rewrites.with_constant_nodes,
    "constants as initializers": lambda proto, _: rewrites.with_initializers(proto),
    "metadata stripped": lambda proto, _: rewrites.without_metadata(proto),
}

exporters = st.sampled_from(Exporter)
seeds = st.integers(0, 2**31)
# From a seed, not from draws: how many a network takes depends on what torch makes of it.
networks = seeds.map(lambda seed: random_net(random.Random(seed)))


def examples(count: int) -> settings:
    # An example is an export and a trace: to shrink one takes minutes, and the networks are small to begin with.
    phases = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
    return settings(max_examples=count, phases=phases, suppress_health_check=list(HealthCheck))


def exported(sample: Sample, exporter: Exporter) -> onnx.ModelProto:
    """The export; an example that the exporter refuses, or is known to get wrong, is none."""
    note(repr(sample.model))
    assume(faithful(sample.model, exporter))
    try:
        return export(sample.model, sample.inputs, exporter)
    except (OnnxExporterError, RuntimeError) as error:  # operators that this exporter does not know
        event(f"{exporter.value} refuses: {type(error).__name__}")
        assume(False)
        raise


def traced(sample: Sample, proto: onnx.ModelProto) -> Report:
    try:
        return layerdiff.trace(sample.model, proto, sample.inputs, progress=False)
    except BackendError as error:
        assume("; it runs without " not in str(error))  # a pass of the runtime that breaks a graph which is in order
        raise


def check_quiet(sample: Sample, exporter: Exporter) -> Report:
    report = traced(sample, exported(sample, exporter))
    assert_quiet_and_complete(report, {path for path, _ in sample.model.named_modules(remove_duplicate=False)})
    assert report.diagnoses == ()
    return report


def check_same_verdict(sample: Sample, exporter: Exporter, seed: int) -> None:
    planted = with_fault(sample, random.Random(seed))
    assume(planted is not None)
    assert planted is not None
    proto = exported(type(sample)(planted.model, sample.inputs), exporter)
    before = traced(sample, proto)
    assert not before.agrees, f"silent: {planted.layer!r} {planted.detail}"
    for name, rewrite in REWRITES.items():
        after = traced(sample, rewrite(proto, random.Random(seed)))
        assert not after.agrees, name
        assert _accused(after) == _accused(before), f"{name}: {planted.layer!r} {planted.detail}"


def _accused(report: Report) -> str | None:
    return None if report.first_divergence is None else report.first_divergence.layer


@examples(QUICK)
@given(networks, exporters)
def test_a_random_network_agrees_with_its_own_export(sample: Sample, exporter: Exporter) -> None:
    check_quiet(sample, exporter)


def test_a_value_put_in_for_a_pair_that_is_taken_back_makes_nothing_look_wrong() -> None:
    sample = random_net(random.Random(6668598))
    report = traced(sample, export(sample.model, sample.inputs, Exporter.DYNAMO))
    assert report.agrees
    assert report.confined == ()


def test_which_of_two_equal_tensors_a_value_is_does_not_hang_on_the_order_of_the_nodes() -> None:
    sample = random_net(random.Random(718))
    planted = with_fault(sample, random.Random(718))
    assert planted is not None
    proto = export(planted.model, sample.inputs, Exporter.TORCHSCRIPT)
    reordered = REWRITES["nodes reordered"](proto, random.Random(718))
    assert {_accused(traced(sample, file)) for file in (proto, reordered)} == {planted.layer}


@examples(QUICK // 2)
@given(networks, exporters, seeds)
def test_no_rewrite_of_a_faulty_file_changes_the_verdict(sample: Sample, exporter: Exporter, seed: int) -> None:
    check_same_verdict(sample, exporter, seed)


@examples(QUICK // 2)
@given(networks, exporters, seeds)
def test_no_rewrite_of_a_healthy_file_raises_an_alarm(sample: Sample, exporter: Exporter, seed: int) -> None:
    proto = exported(sample, exporter)
    for name, rewrite in REWRITES.items():
        report = traced(sample, rewrite(proto, random.Random(seed)))
        assert report.agrees, f"{name}: {report.verdict}"
        assert report.divergences == (), name


@examples(QUICK)
@given(networks)
def test_every_value_of_a_random_network_is_at_no_distance_from_itself(sample: Sample) -> None:
    reference = layerdiff.capture.capture(sample.model, sample.inputs, {})
    for value in reference.values:
        if value.array is None:
            continue
        metrics = measure(value.array, value.array.copy(), dtype=value.dtype, noise=None, tolerance=None)
        assert metrics.agrees
        assert (metrics.max_abs, metrics.mean_abs, metrics.rel_l2, metrics.nonfinite_mismatches) == (0, 0, 0, 0)
        assert metrics.within == 1


@examples(QUICK // 2)
@given(networks, exporters, seeds)
def test_a_report_on_a_random_network_survives_saving(
    tmp_path_factory: pytest.TempPathFactory, sample: Sample, exporter: Exporter, seed: int
) -> None:
    planted = with_fault(sample, random.Random(seed))
    assume(planted is not None)
    assert planted is not None
    report = traced(sample, exported(type(sample)(planted.model, sample.inputs), exporter))
    path: Path = tmp_path_factory.mktemp("report") / "report.json"
    report.save(path)
    loaded = layerdiff.load(path)
    assert loaded.to_dict() == report.to_dict()
    assert (loaded.verdict, loaded.agrees, _accused(loaded)) == (report.verdict, report.agrees, _accused(report))


@examples(QUICK)
@given(networks)
def test_a_trace_leaves_a_random_network_as_it_was(sample: Sample) -> None:
    before = {name: tensor.clone() for name, tensor in sample.model.state_dict().items()}
    inputs = [x.clone() for x in sample.inputs]
    layerdiff.capture.capture(sample.model, sample.inputs, {})
    after = sample.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(np.array_equal(x, y) for x, y in zip(inputs, sample.inputs, strict=True))


@pytest.mark.slow
@examples(DEEP)
@given(networks, exporters)
def test_hundreds_of_random_networks_agree_with_their_own_exports(sample: Sample, exporter: Exporter) -> None:
    report = check_quiet(sample, exporter)
    assert Status.DIVERGES not in {row.status for row in report.layers}


@pytest.mark.slow
@examples(DEEP)
@given(networks, exporters, seeds)
def test_no_rewrite_of_hundreds_of_faulty_files_changes_the_verdict(
    sample: Sample, exporter: Exporter, seed: int
) -> None:
    check_same_verdict(sample, exporter, seed)
