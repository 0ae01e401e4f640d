"""One ONNX file against another: what did a simplifier or an optimizer change?"""

from __future__ import annotations

import functools
import io
import itertools
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from layerdiff.errors import SampleError
from layerdiff.model import Kind, Status
from layerdiff.operators import base_name, likeness, only_moves
from layerdiff.samples import Sample, samples
from layerdiff.sides import onnx_twin, open_reference
from layerdiff.sides.onnx_reference import OnnxReference
from tests.conftest import graph_of, with_initializer
from tests.zoo import MODELS
from tests.zoo.control_flow import CONTROL_FLOW_MODELS
from tests.zoo.control_flow import export as export_control_flow
from tests.zoo.exports import Exporter, Treatment, export, quiet, treat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from layerdiff.report import Report

    Trace = Callable[..., Report]

TOOLS = [t for t in Treatment if t is not Treatment.RAW]


def unfolded(model: nn.Module, inputs: tuple[Tensor, ...]) -> onnx.ModelProto:
    """An export that leaves all folding to others: BatchNormalization nodes are still there."""
    file = io.BytesIO()
    mode = torch.onnx.TrainingMode.PRESERVE
    with quiet(), torch.no_grad():
        torch.onnx.export(model, inputs, file, opset_version=17, dynamo=False, do_constant_folding=False, training=mode)
    return onnx.load_from_string(file.getvalue())


@functools.cache
def before(name: str) -> onnx.ModelProto:
    sample = MODELS[name]()
    return unfolded(sample.model, sample.inputs)


@pytest.mark.parametrize(
    ("name", "tool"), list(itertools.product(MODELS, TOOLS)), ids=lambda part: getattr(part, "value", part)
)
def test_what_a_tool_made_of_an_export_is_quiet(trace: Trace, name: str, tool: Treatment) -> None:
    report = trace(before(name), treat(before(name), tool), MODELS[name]().inputs)
    assert report.agrees, report.verdict
    assert report.divergences == ()
    assert report.warnings == ()
    assert {row.status for row in report.layers} <= {Status.AGREES, Status.FOLDED, Status.UNMATCHED}
    assert all(row.reason for row in report.layers if row.status is not Status.AGREES)
    assert report.coverage.compared > report.coverage.folded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "exporter", "tool"),
    list(itertools.product(MODELS, Exporter, TOOLS)),
    ids=lambda part: getattr(part, "value", part),
)
def test_a_folded_export_and_what_a_tool_made_of_it_are_quiet(
    trace: Trace, name: str, exporter: Exporter, tool: Treatment
) -> None:
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, exporter)
    if (name, tool) == ("bert", Treatment.ORT_BASIC):
        pytest.skip("ONNX Runtime refuses the file that it optimised")
    assert trace(proto, treat(proto, tool), sample.inputs).agrees


@pytest.mark.parametrize("tool", TOOLS)
def test_a_fault_planted_behind_a_tool_is_named_by_the_layer_of_the_file_before(
    trace: Trace, classifier: nn.Module, image: Tensor, tool: Treatment
) -> None:
    proto = unfolded(classifier, (image,))
    after = treat(proto, tool)
    name = next(t.name for t in after.graph.initializer if tuple(t.dims) == (5, 8))
    report = trace(proto, with_initializer(after, name, lambda weight: weight * 1.2), image)
    found = report.first_divergence
    assert (found.layer, len(report.divergences)) == ("head", 1)
    assert found.healed.agrees
    assert "with the reference's value put in there the final outputs agree" in report.verdict


def test_a_batchnorm_that_a_tool_folded_with_another_epsilon_is_accused(
    trace: Trace, classifier: nn.Module, image: Tensor
) -> None:
    proto = unfolded(classifier, (image,))
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    norm = next(node for node in changed.graph.node if node.op_type == "BatchNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 0.1
    report = trace(proto, treat(changed, Treatment.ONNXSIM), image)
    assert report.first_divergence.layer == "norm"
    assert report.first_divergence.op == "onnx.BatchNormalization"
    assert report.first_divergence.healed.agrees


def test_a_removed_node_is_a_dropped_layer(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    proto = unfolded(classifier, (image,))
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    relu = next(node for node in cut.graph.node if node.op_type == "Relu")
    relu.op_type = "Identity"
    report = trace(proto, cut, image)
    assert report.first_divergence.layer == "act"
    assert report.first_divergence.kind in (Kind.DROPPED, Kind.COMPUTED)


def test_paths_are_layers_and_the_dynamo_exporter_tells_their_classes(
    trace: Trace, classifier: nn.Module, image: Tensor
) -> None:
    of_script = trace(export(classifier, (image,), Exporter.TORCHSCRIPT), unfolded(classifier, (image,)), image)
    assert {"stem", "act", "block", "block.0", "head", ""} <= {row.layer for row in of_script.layers}
    dynamo = export(classifier, (image,), Exporter.DYNAMO)
    types = {row.layer: row.type for row in trace(dynamo, dynamo, image).layers}
    assert (types["act"], types["block"], types["head"], types[""]) == ("ReLU", "Sequential", "Linear", "Classifier")


def test_without_paths_every_node_is_a_layer_under_its_own_name(
    trace: Trace, classifier: nn.Module, image: Tensor
) -> None:
    stripped = treat(export(classifier, (image,), Exporter.DYNAMO), Treatment.SCRAMBLED)
    named = [node.name for node in stripped.graph.node if node.op_type in ("Conv", "Gemm", "Relu")]
    rows = {row.layer: row.type for row in trace(stripped, stripped, image).layers}
    assert set(named) <= set(rows)
    assert "Conv" in rows.values()


def test_inputs_go_by_name_by_position_or_from_a_file(
    trace: Trace, healthy: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    name = healthy.graph.input[0].name
    np.savez(tmp_path / "x.npz", **{name: image.numpy()})
    onnx.save(healthy, tmp_path / "before.onnx")
    for given in (image, image.numpy(), {name: image}, tmp_path / "x.npz"):
        assert trace(tmp_path / "before.onnx", healthy, given).agrees
    with pytest.raises(SampleError, match="the ONNX model has 1 input"):
        trace(healthy, healthy, (image, image))


def test_the_report_says_which_files_were_compared(
    trace: Trace, healthy: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    for name in ("before.onnx", "after.onnx"):
        onnx.save(healthy, tmp_path / name)
    report = trace(tmp_path / "before.onnx", tmp_path / "after.onnx", image)
    assert (report.environment["reference"], report.environment["candidate"]) == ("before.onnx", "after.onnx")
    assert report.verdict.startswith("reference and candidate agree: ")


@pytest.mark.parametrize("name", CONTROL_FLOW_MODELS)
def test_branches_and_loops_are_laid_flat_on_both_sides(trace: Trace, name: str) -> None:
    sample = CONTROL_FLOW_MODELS[name].build()
    proto = export_control_flow(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    report = trace(proto, treat(proto, Treatment.SCRAMBLED), sample.inputs)
    assert report.agrees
    assert report.coverage.unmatched == {}


# The float64 twin.


def sampled(*tensors: Tensor) -> Sample:
    return next(iter(samples(tensors)))


@pytest.mark.parametrize("name", ["resnet", "yolo", "gpt", "speech"])
def test_the_floor_of_a_graph_is_of_the_size_of_the_floor_of_its_model(name: str) -> None:
    of_zoo = MODELS[name]()
    given = sampled(*of_zoo.inputs)
    floors = []
    for side in (open_reference(of_zoo.model), open_reference(before(name))):
        reference = side.capture(given)
        floor = side.noise_floor(given, reference)
        floors.append(max(floor[value].max_abs for value in reference.outputs.values()))
    of_model, of_graph = floors
    assert of_model / 8 < of_graph < 8 * of_model


def floor_of(proto: onnx.ModelProto, x: Tensor) -> dict[str, float]:
    side = OnnxReference(proto)
    reference = side.capture(sampled(x))
    floor = side.noise_floor(sampled(x), reference)
    return {name: floor[value].max_abs for name, value in reference.outputs.items()}


def test_sequences_do_not_hide_the_rounding_before_them() -> None:
    nodes = [
        helper.make_node("Exp", ["x"], ["grown"]),
        helper.make_node("SplitToSequence", ["grown"], ["parts"], axis=1),
        helper.make_node("SequenceAt", ["parts", "first"], ["part"]),
        helper.make_node("Mul", ["part", "large"], ["out"]),
    ]
    large = {"first": np.array(0), "large": np.array(2.0**20, np.float32)}
    with_sequence = floor_of(graph_of(nodes, {"x": (4, 2)}, ["out"], large), torch.randn(4, 2))["out"]
    assert with_sequence > 2.0**20 * 1e-8


def test_an_operator_without_a_float64_kernel_is_given_a_few_units(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = graph_of(
        [helper.make_node("Conv", ["x", "w"], ["out"])], {"x": (1, 1, 4, 4)}, ["out"], {"w": np.ones((1, 1, 2, 2), "f")}
    )
    x = torch.randn(1, 1, 4, 4)
    usual = floor_of(proto, x)["out"]
    monkeypatch.setattr(onnx_twin, "ELEMENTS", 0)
    largest = float(torch.nn.functional.conv2d(x, torch.ones(1, 1, 2, 2)).abs().max())
    assert floor_of(proto, x)["out"] == pytest.approx(onnx_twin.UNSEEN_ULPS * 2.0**-23 * largest, rel=1e-3)
    assert usual < 4e-7


def test_a_cast_to_half_precision_counts_as_rounding() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["out"], to=TensorProto.FLOAT),
    ]
    assert 1e-5 < floor_of(graph_of(nodes, {"x": (64,)}, ["out"]), torch.rand(64))["out"] < 1e-3


def test_integers_are_those_of_the_original() -> None:
    nodes = [helper.make_node("ArgMax", ["x"], ["where"], axis=1), helper.make_node("Abs", ["x"], ["out"])]
    proto = graph_of(nodes, {"x": (2, 9)}, ["where", "out"], types={"where": TensorProto.INT64})
    assert floor_of(proto, torch.randn(2, 9)) == {"where": 0.0, "out": 0.0}


def test_a_reference_that_its_own_runtime_changes_is_reported(healthy: onnx.ModelProto, image: Tensor) -> None:
    from layerdiff.backends import OnnxRuntime, Optimisation

    class Fusing(OnnxRuntime):
        """Computes something else where it may optimise."""

        def open(self, model, optimisation, disabled=()):
            session = super().open(model, optimisation, disabled)
            if optimisation is Optimisation.AS_SHIPPED:
                run = session.run
                session.run = lambda feeds, outputs=None: {n: a + 1 for n, a in run(feeds, outputs).items()}
            return session

    side = OnnxReference(healthy, Fusing())
    given = sampled(image)
    side.noise_floor(given, side.capture(given))
    assert "is another one with the runtime's optimisations (max-abs 1)" in side.warnings[0]


# Operators.


@pytest.mark.parametrize(
    ("op", "other", "expected"),
    [
        ("onnx.Conv", "Conv", 1.0),
        ("onnx.Add", "Gemm", 0.5),
        ("onnx.MaxPool", "AveragePool", 0.5),
        ("onnx.Relu", "Softmax", -1.0),
        ("onnx.MyOwn", "Conv", 0.0),
        ("onnx.Conv", "aten.convolution", 1.0),
        ("aten.convolution", "aten.convolution", 1.0),
        ("aten.add.Tensor", "aten.add_.Tensor", 1.0),
        ("aten.addmm", "quantized.linear_dynamic", 0.5),
        ("aten.relu", "aten.gelu", 0.5),
        ("aten.relu", "aten.convolution", -1.0),
    ],
)
def test_operators_of_the_same_world_are_alike_when_they_are_equal(op: str, other: str, expected: float) -> None:
    assert likeness(op, other) == expected


def test_operators_of_onnx_have_torch_names_where_others_ask_for_them() -> None:
    assert base_name("onnx.BatchNormalization") == "native_batch_norm"
    assert base_name("onnx.Selu") == "onnx.Selu"
    assert base_name("quantized.linear_dynamic") == "linear_dynamic"
    assert only_moves("onnx.Transpose")
    assert not only_moves("onnx.Conv")


def test_numbers_of_a_constant_node_are_weights_too() -> None:
    weight = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4), "value")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["out"]),
    ]
    reference = OnnxReference(graph_of(nodes, {"x": (2, 3)}, ["out"])).capture(sampled(torch.randn(2, 3)))
    assert [site.op for site in reference.sites] == ["onnx.MatMul"]
    assert reference.parameters["w"].shape == (3, 4)
