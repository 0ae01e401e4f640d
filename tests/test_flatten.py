"""Control flow, laid flat for the sample."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.faults.cases import Foundry
from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.flatten import flattened
from layerdiff.graph import Graph
from tests.zoo.control_flow import CONTROL_FLOW_MODELS, export

WAYS = [(name, exporter) for name, flow in CONTROL_FLOW_MODELS.items() for exporter in flow.exporters]


@pytest.mark.parametrize(("name", "exporter"), WAYS)
def test_a_healthy_export_with_control_flow_is_quiet_and_covered(trace, name, exporter):
    sample = CONTROL_FLOW_MODELS[name].build()
    proto = export(sample.model, sample.inputs, exporter)
    assert any(node.op_type in ("If", "Loop") for node in proto.graph.node)
    report = trace(sample.model, proto, sample.inputs)
    assert report.agrees
    assert report.divergences == ()
    inside = CONTROL_FLOW_MODELS[name].body
    assert [r for r in report.layers if r.layer.startswith(inside) and r.status.value == "agrees"]


def test_faults_inside_a_branch_or_a_loop_body_are_named(trace):
    cases = list(Foundry(3, list(CONTROL_FLOW_MODELS)).cases(6))
    named = [(c.fault, trace(c.model, c.proto, c.inputs).first_divergence) for c in cases]
    assert [fault for fault, first in named if first is None or not fault.accepts(first.layer)] == []


def _looping(trips: int, opset: int) -> onnx.ModelProto:
    """x doubled `trips` times, every intermediate value gathered."""
    body = helper.make_graph(
        [
            helper.make_node("Add", ["x_in", "x_in"], ["x_out"]),
            helper.make_node("Identity", ["going"], ["going_out"]),
            helper.make_node("Identity", ["x_out"], ["each"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_in", TensorProto.FLOAT, [2]),
        ],
        [
            helper.make_tensor_value_info("going_out", TensorProto.BOOL, []),
            helper.make_tensor_value_info("x_out", TensorProto.FLOAT, [2]),
            helper.make_tensor_value_info("each", TensorProto.FLOAT, [2]),
        ],
    )
    graph = helper.make_graph(
        [helper.make_node("Loop", ["trips", "", "x"], ["y", "all"], body=body)],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2]), helper.make_tensor_value_info("all", 1, None)],
        [numpy_helper.from_array(np.array(trips, np.int64), "trips")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


@pytest.mark.parametrize("opset", [11, 17])
def test_a_loop_laid_flat_gives_the_same_numbers_and_scan_outputs(opset):
    model = _looping(3, opset)
    feeds = {"x": np.array([1.0, -2.0], np.float32)}

    def run(proto, names):
        return OnnxRuntime().open(Graph(proto).rewritten(names), Optimisation.NONE).run(feeds)

    flat = flattened(model, run)
    assert not [node for node in flat.graph.node if node.op_type == "Loop"]
    assert [node.op_type for node in model.graph.node] == ["Loop"]
    before = OnnxRuntime().open(model, Optimisation.AS_SHIPPED).run(feeds)
    after = OnnxRuntime().open(flat, Optimisation.AS_SHIPPED).run(feeds)
    np.testing.assert_array_equal(before["y"], after["y"])
    np.testing.assert_array_equal(before["all"], after["all"])
    assert after["all"].shape == (3, 2)


def test_a_loop_without_iterations_stays_as_it_is():
    model = _looping(0, 17)
    flat = flattened(model, lambda proto, names: dict.fromkeys(names, np.zeros((0,), np.int64)))
    assert [node.op_type for node in flat.graph.node] == ["Loop"]
