"""The benchmark itself: faults are where and as large as it says, and no case is lost."""

from __future__ import annotations

import dataclasses
import random

import onnx
import pytest
import torch

from benchmarks import misses
from benchmarks.batches import QUOTAS, batches
from benchmarks.faults import Category, Foundry
from benchmarks.faults.category import kinds_of
from benchmarks.faults.proof import Rejected
from benchmarks.faults.registry import plant
from benchmarks.faults.small import SIZE, SLACK, SMALL_KINDS
from benchmarks.faults.subject import subject
from benchmarks.judging import judged, outcome
from tests.zoo import MODELS, functions
from tests.zoo.exports import Exporter, Treatment, treat
from tests.zoo.healthy import relative_gap, run_onnx, run_torch


def first_output(model, path, inputs):
    """What the module gives in its first call."""
    seen = []
    handle = model.get_submodule(path).register_forward_hook(lambda _m, _a, y: seen.append(y.double()))
    with torch.no_grad():
        model(*(x.clone() for x in inputs))
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("kind", SMALL_KINDS)
def test_a_small_fault_changes_its_layer_by_the_size_it_has_by_definition(kind):
    target = subject("mobilenet")
    made = 0
    for seed in range(12):
        piece = target.piece()
        try:
            fault = plant(SMALL_KINDS, kind, piece, random.Random(seed))
        except Rejected:
            continue
        healthy = first_output(target.sample.model, fault.layer, target.sample.inputs)
        broken = first_output(piece.model, fault.layer, target.sample.inputs)
        size = float((broken - healthy).norm() / healthy.norm())
        assert abs(size - SIZE) <= SLACK * SIZE
        made += 1
    assert made >= 6


@pytest.mark.parametrize(
    ("category", "model", "layers"),
    [
        (Category.FIRST_LAYER, "resnet", {"conv1"}),
        (Category.LAST_LAYER, "resnet", {"fc"}),
        (Category.LAST_LAYER, "bert", {"bert.encoder.layer.1.output.LayerNorm"}),  # nothing reads the pooler
        (Category.ROOT_FORWARD, "vit", {""}),
    ],
)
def test_faults_of_a_place_are_in_that_place(category, model, layers):
    cases = list(Foundry(5, [model], category=category).cases(4))
    assert {case.fault.layer for case in cases} == layers
    assert {case.category for case in cases} == {category}


@pytest.mark.parametrize("exporter", Exporter)
def test_a_class_of_modules_becomes_a_function_in_the_file(exporter):
    sample = MODELS["unet"]()
    proto = functions.export(sample.model, sample.inputs, exporter)
    calls = [node for node in proto.graph.node if node.op_type in {function.name for function in proto.functions}]
    assert len(calls) > len(proto.functions) > 0  # one function for several modules
    hidden = treat(proto, Treatment.SCRAMBLED)
    assert len(hidden.functions) == len(proto.functions)
    assert not {f.name for f in hidden.functions} & {f.name for f in proto.functions}
    for file in (proto, hidden):
        onnx.checker.check_model(file)
        assert relative_gap(run_torch(sample.model, sample.inputs), run_onnx(file, sample.inputs)) < 1e-5


def test_a_fault_in_a_function_body_is_named(trace):
    for case in Foundry(9, ["unet", "densenet"], category=Category.LOCAL_FUNCTION).cases(4):
        first = trace(case.model, case.proto, case.inputs).first_divergence
        assert first is not None
        assert case.fault.accepts(first.layer), (case.name, case.fault, first.layer)


def test_a_trace_that_raises_is_an_outcome_and_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(misses, "FOLDER", tmp_path)
    case = next(Foundry(4, ["refiner"]).cases(1))
    assert judged(case).outcome == "exact"
    unusable = dataclasses.replace(case, proto=onnx.ModelProto())
    row = judged(unusable)
    assert row.outcome == "crashed"
    assert "Error" in row.named
    misses.keep(case)
    again = misses.kept(case.name)
    assert again.fault == case.fault
    assert judged(again).named == judged(case).named


def test_silence_and_another_layer_are_misses(trace):
    case = next(Foundry(4, ["refiner"]).cases(1))
    report = trace(case.model, case.proto, case.inputs)
    assert outcome(report, (case.fault,)) == "exact"
    elsewhere = dataclasses.replace(case.fault, layer="inlet", also_ok=())
    beside = dataclasses.replace(elsewhere, also_ok=(case.fault.layer,))
    assert outcome(report, (elsewhere,)) == "wrong"
    assert outcome(report, (beside,)) == "neighbour"
    assert outcome(report, ()) == "alarm"
    assert outcome(dataclasses.replace(report, divergences=()), (case.fault,)) == "silent"


def test_batches_share_the_quotas_and_the_kinds():
    found = batches(sum(QUOTAS.values()), 3, list(Category), None)
    for category in Category:
        parts = [batch for batch in found if batch.category is category]
        assert sum(batch.count for batch in parts) == QUOTAS[category]
        numbers = [n for batch in parts for n in range(batch.start, batch.start + batch.count)]
        assert numbers == list(range(QUOTAS[category]))
        assert kinds_of(category)
