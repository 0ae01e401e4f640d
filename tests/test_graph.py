"""The ONNX side: what a graph is made of, and what comes out when it is rewritten, in the real runtime."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from layerdiff.graph import Graph, Injection
from tests.conftest import graph_of, run
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Mapping

node = helper.make_node
X = np.array([[1.0, -2.0, 3.0]], np.float32)


def chain() -> onnx.ModelProto:
    """``y = relu(x + 1) * 2``, with a dead branch ``neg(x + 1)`` and a weight computed from two constants."""
    return graph_of(
        [
            node("Add", ["x", "one"], ["sum"], "add"),
            node("Neg", ["sum"], ["dead"], "neg"),
            node("Relu", ["sum"], ["active"], "relu"),
            node("Add", ["one", "one"], ["two"], "constant"),
            node("Mul", ["active", "two"], ["y"], "mul"),
        ],
        {"x": (1, 3)},
        ["y"],
        {"one": np.float32(1)},
    )


def branching() -> onnx.ModelProto:
    """``y = flag ? -shared : shared * 2``, both branches reading `shared` of the graph around them."""
    negative = helper.make_graph(
        [node("Neg", ["shared"], ["negated"])],
        "yes",
        [],
        [helper.make_tensor_value_info("negated", TensorProto.FLOAT, None)],
    )
    double = helper.make_graph(
        [node("Add", ["shared", "shared"], ["doubled"])],
        "no",
        [],
        [helper.make_tensor_value_info("doubled", TensorProto.FLOAT, None)],
    )
    return graph_of(
        [
            node("Add", ["x", "x"], ["shared"], "share"),
            node("ReduceSum", ["x"], ["total"], "total", keepdims=0),
            node("Greater", ["total", "zero"], ["flag"], "compare"),
            node("If", ["flag"], ["chosen"], "if", then_branch=negative, else_branch=double),
            node("Relu", ["chosen"], ["y"], "relu"),
        ],
        {"x": (1, 3)},
        ["y"],
        {"zero": np.float32(0)},
    )


def looping() -> onnx.ModelProto:
    """``y = x`` to which `shared = -x` is added three times in a Loop body that reads it from outside."""
    body = helper.make_graph(
        [node("Add", ["carried", "shared"], ["next"]), node("Identity", ["go"], ["go_on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, ()),
            helper.make_tensor_value_info("go", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("carried", TensorProto.FLOAT, (1, 3)),
        ],
        [
            helper.make_tensor_value_info("go_on", TensorProto.BOOL, ()),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, (1, 3)),
        ],
    )
    return graph_of(
        [node("Neg", ["x"], ["shared"], "negate"), node("Loop", ["times", "", "x"], ["y"], "loop", body=body)],
        {"x": (1, 3)},
        ["y"],
        {"times": np.int64(3)},
    )


def nested() -> onnx.ModelProto:
    """An If within an If; the innermost branch reads `shared` of the main graph."""

    def branch(name: str, inner: onnx.NodeProto) -> onnx.GraphProto:
        end = helper.make_tensor_value_info(inner.output[0], TensorProto.FLOAT, None)
        return helper.make_graph([inner], name, [], [end])

    def choice(suffix: str) -> onnx.NodeProto:
        yes = branch(f"yes{suffix}", node("Neg", ["shared"], [f"a{suffix}"]))
        no = branch(f"no{suffix}", node("Abs", ["shared"], [f"b{suffix}"]))
        return node("If", ["flag"], [f"c{suffix}"], then_branch=yes, else_branch=no)

    outer = node(
        "If", ["flag"], ["y"], "if", then_branch=branch("1", choice("1")), else_branch=branch("2", choice("2"))
    )
    return graph_of([node("Add", ["x", "x"], ["shared"], "share"), outer], {"x": (1, 3), "flag:BOOL": ()}, ["y"])


def with_function() -> onnx.ModelProto:
    """``y = relu(2x + 1)`` whose middle is a call of a local function."""
    opset = helper.make_opsetid("", 17)
    twice = helper.make_function("local", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], [opset])
    return graph_of(
        [
            node("Twice", ["x"], ["double"], "call", domain="local"),
            node("Add", ["double", "one"], ["sum"], "add"),
            node("Relu", ["sum"], ["y"], "relu"),
        ],
        {"x": (1, 3)},
        ["y"],
        {"one": np.float32(1)},
        functions=[twice],
        opsets=[opset, helper.make_opsetid("local", 1)],
    )


def of_op(graph: Graph, op: str) -> int:
    return next(n.index for n in graph.nodes if n.op == op)


def rewritten(graph: Graph, outputs: list[str], *injections: Injection, x: np.ndarray = X) -> Mapping[str, np.ndarray]:
    feeds = {"x": x, **{injection.feed: injection.value for injection in injections}}
    return run(graph.rewritten(outputs, injections), feeds)


# What a graph is made of.


def test_a_node_that_no_output_depends_on_is_dead() -> None:
    graph = Graph(chain())
    assert {graph.nodes[i].op for i in graph.live_nodes} == {"Add", "Relu", "Mul"}
    assert not graph.is_live("dead")
    assert graph.is_live("sum")
    assert graph.is_live("x")


def test_a_dead_tensor_is_still_computed() -> None:
    assert "dead" in Graph(chain()).computed


def test_what_depends_on_initializers_alone_is_constant() -> None:
    graph = Graph(chain())
    assert graph.constant == {"one", "two"}
    assert set(graph.computed) == {"sum", "dead", "active", "y"}
    np.testing.assert_array_equal(graph.initializer("one"), 1)
    assert graph.initializer("two") is None


def test_a_constant_node_is_constant_and_so_is_what_is_made_of_it() -> None:
    value = numpy_helper.from_array(np.float32([1, 2, 3]))
    graph = Graph(
        graph_of(
            [node("Constant", [], ["c"], value=value), node("Neg", ["c"], ["d"]), node("Add", ["x", "d"], ["y"])],
            {"x": (1, 3)},
            ["y"],
        )
    )
    assert graph.constant == {"c", "d"}


def test_random_numbers_are_not_constant() -> None:
    graph = Graph(
        graph_of([node("RandomNormal", [], ["r"], shape=[1, 3]), node("Add", ["x", "r"], ["y"])], {"x": (1, 3)}, ["y"])
    )
    assert "r" not in graph.constant
    assert "r" in graph.computed


def test_an_initializer_that_is_also_listed_as_an_input_is_no_input() -> None:
    model = chain()
    model.graph.input.append(helper.make_tensor_value_info("one", TensorProto.FLOAT, ()))
    assert [port.name for port in Graph(model).inputs] == ["x"]


def test_ports_know_type_and_shape_with_free_dimensions_as_none() -> None:
    graph = Graph(graph_of([node("Relu", ["x"], ["y"])], {"x": ("batch", 3)}, ["y"]))
    assert (graph.inputs[0].name, graph.inputs[0].dtype, graph.inputs[0].shape) == ("x", "float32", (None, 3))
    assert graph.outputs[0].shape is None


def test_consumers_are_edges() -> None:
    graph = Graph(graph_of([node("Mul", ["x", "x"], ["y"])], {"x": (1, 3)}, ["y"]))
    assert graph.consumers["x"] == [(0, 0), (0, 1)]


def test_a_region_ends_at_the_tensors_where_it_should_stop() -> None:
    graph = Graph(chain())
    nodes, start = graph.region("y", {"sum"})
    assert {graph.nodes[i].name for i in nodes} == {"relu", "constant", "mul"}
    assert start == {"sum"}
    nodes, start = graph.region("y", ())
    assert {graph.nodes[i].name for i in nodes} == {"add", "relu", "constant", "mul"}
    assert start == {"x"}


def test_a_branch_reads_the_tensors_of_the_graph_around_it() -> None:
    graph = Graph(branching())
    choice = graph.nodes[of_op(graph, "If")]
    assert "shared" in choice.reads
    assert (choice.index, -1) in graph.consumers["shared"]
    assert graph.is_live("shared")


def test_a_branch_within_a_branch_reads_the_outermost_graph() -> None:
    graph = Graph(nested())
    assert {"shared", "flag"} <= set(graph.nodes[of_op(graph, "If")].reads)
    assert graph.is_live("shared")


def test_local_functions_are_inlined() -> None:
    graph = Graph(with_function())
    assert [n.op for n in graph.nodes] == ["Add", "Add", "Relu"]
    np.testing.assert_array_equal(rewritten(graph, ["y"])["y"], np.maximum(2 * X + 1, 0))


# Rewriting.


def test_every_computed_tensor_can_be_an_output() -> None:
    graph = Graph(chain())
    found = rewritten(graph, list(graph.computed))
    np.testing.assert_array_equal(found["sum"], X + 1)
    np.testing.assert_array_equal(found["dead"], -(X + 1))
    np.testing.assert_array_equal(found["active"], np.maximum(X + 1, 0))
    np.testing.assert_array_equal(found["y"], 2 * np.maximum(X + 1, 0))


def test_an_injected_tensor_is_read_by_all_of_its_consumers_and_still_computed() -> None:
    graph = Graph(chain())
    found = rewritten(graph, ["sum", "dead", "y"], Injection("sum", np.full((1, 3), 5, np.float32)))
    np.testing.assert_array_equal(found["sum"], X + 1)
    np.testing.assert_array_equal(found["dead"], np.full((1, 3), -5))
    np.testing.assert_array_equal(found["y"], np.full((1, 3), 10))


def test_an_injection_on_an_edge_reaches_one_reader_only() -> None:
    graph = Graph(chain())
    edge = frozenset({(of_op(graph, "Relu"), 0)})
    found = rewritten(graph, ["dead", "y"], Injection("sum", np.full((1, 3), 5, np.float32), edge))
    np.testing.assert_array_equal(found["dead"], -(X + 1))
    np.testing.assert_array_equal(found["y"], np.full((1, 3), 10))


def test_an_injection_on_an_edge_tells_the_two_operands_of_one_node_apart() -> None:
    graph = Graph(graph_of([node("Sub", ["x", "x"], ["y"])], {"x": (1, 3)}, ["y"]))
    found = rewritten(graph, ["y"], Injection("x", np.zeros((1, 3), np.float32), frozenset({(0, 1)})))
    np.testing.assert_array_equal(found["y"], X)


def test_two_injections_of_one_tensor_on_two_edges_keep_apart() -> None:
    graph = Graph(graph_of([node("Sub", ["x", "x"], ["y"])], {"x": (1, 3)}, ["y"]))
    left, right = (
        Injection("x", np.full((1, 3), value, np.float32), frozenset({(0, slot)})) for slot, value in ((0, 7), (1, 2))
    )
    np.testing.assert_array_equal(rewritten(graph, ["y"], left, right)["y"], np.full((1, 3), 5))


def test_an_injected_input_of_the_graph_is_replaced() -> None:
    graph = Graph(chain())
    found = rewritten(graph, ["y"], Injection("x", np.zeros((1, 3), np.float32)))
    np.testing.assert_array_equal(found["y"], np.full((1, 3), 2))


@pytest.mark.parametrize(("x", "factor"), [(X, -1), (-X, 2)], ids=["then", "else"])
def test_a_branch_reads_the_injected_tensor(x: np.ndarray, factor: int) -> None:
    graph = Graph(branching())
    np.testing.assert_array_equal(rewritten(graph, ["chosen"], x=x)["chosen"], factor * 2 * x)
    value = np.array([[10, -20, 30]], np.float32)
    found = rewritten(graph, ["shared", "chosen"], Injection("shared", value), x=x)
    np.testing.assert_array_equal(found["shared"], 2 * x)
    np.testing.assert_array_equal(found["chosen"], factor * value)


@pytest.mark.parametrize(("flag", "expected"), [(True, -10), (False, 10)])
def test_a_branch_within_a_branch_reads_the_injected_tensor(*, flag: bool, expected: int) -> None:
    graph = Graph(nested())
    injection = Injection("shared", np.full((1, 3), 10, np.float32))
    feeds = {"x": X, "flag": np.array(flag), injection.feed: injection.value}
    np.testing.assert_array_equal(run(graph.rewritten(["y"], [injection]), feeds)["y"], np.full((1, 3), expected))


def test_a_loop_body_reads_the_injected_tensor() -> None:
    graph = Graph(looping())
    np.testing.assert_array_equal(rewritten(graph, ["y"])["y"], X - 3 * X)
    found = rewritten(graph, ["y"], Injection("shared", np.full((1, 3), 10, np.float32)))
    np.testing.assert_array_equal(found["y"], X + 30)


def test_a_region_runs_alone_from_given_sources() -> None:
    graph = Graph(chain())
    nodes, _ = graph.region("y", {"sum"})
    source = np.array([[-4, 0, 4]], np.float32)
    model = graph.rewritten(["y"], nodes=nodes, sources={"sum": source})
    assert [port.name for port in model.graph.input] == ["sum"]
    np.testing.assert_array_equal(run(model, {"sum": source})["y"], [[0, 0, 8]])


def test_an_input_of_the_graph_that_is_an_output_too_is_passed_on() -> None:
    found = rewritten(Graph(chain()), ["x", "y"])
    np.testing.assert_array_equal(found["x"], X)


def test_optional_operands_that_are_left_out_stay_out() -> None:
    graph = Graph(graph_of([node("Clip", ["x", "", "top"], ["y"])], {"x": (1, 3)}, ["y"], {"top": np.float32(1)}))
    assert graph.nodes[0].reads == ("x", "top")
    np.testing.assert_array_equal(rewritten(graph, ["y"])["y"], np.minimum(X, 1))


def test_operators_of_the_runtime_itself_survive() -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    gelu = node("FastGelu", ["x"], ["g"], domain="com.microsoft")
    graph = Graph(graph_of([gelu, node("Neg", ["g"], ["y"])], {"x": (1, 3)}, ["y"], opsets=opsets))
    found = rewritten(graph, ["g", "y"])
    np.testing.assert_array_equal(found["y"], -found["g"])


def test_a_sparse_initializer_is_a_constant() -> None:
    model = graph_of([node("Add", ["x", "s"], ["y"])], {"x": (1, 3)}, ["y"], {"s": np.float32([0, 5, 0])})
    del model.graph.initializer[:]
    values = numpy_helper.from_array(np.float32([5]), "s")
    sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(np.int64([1]), "s_indices"), [3])
    model.graph.sparse_initializer.append(sparse)
    assert "s" in Graph(model).constant


def test_half_precision_initializers_keep_their_numbers() -> None:
    weight = np.array([0.1, 65504, 6e-8], np.float16)
    types = {"y": TensorProto.FLOAT16}
    graph = Graph(graph_of([node("Add", ["x", "w"], ["y"])], {"x:FLOAT16": (3,)}, ["y"], {"w": weight}, types=types))
    np.testing.assert_array_equal(graph.initializer("w"), weight)
    np.testing.assert_array_equal(rewritten(graph, ["y"], x=np.zeros(3, np.float16))["y"], weight)


@pytest.mark.parametrize("build", [chain, branching, looping, nested, with_function])
def test_the_candidate_is_never_changed(build: object) -> None:
    assert callable(build)
    model = build()
    before = model.SerializeToString(deterministic=True)
    graph = Graph(model)
    for name in graph.computed:
        graph.rewritten([name], [Injection(name, np.zeros((1, 3), np.float32))])
        nodes, start = graph.region(name, ())
        graph.rewritten([name], nodes=nodes, sources=dict.fromkeys(start, X))
    assert model.SerializeToString(deterministic=True) == before
    assert graph.rewritten(["y"]).SerializeToString(deterministic=True) == graph.rewritten(["y"]).SerializeToString(
        deterministic=True
    )


# Names that exporters leave.


class Inner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(4, 4)
        self.stack = nn.ModuleList([nn.Sequential(nn.Conv1d(2, 2, 1), nn.Tanh())])

    def forward(self, x):
        return self.stack[0](self.proj(x))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x).exp()


@pytest.mark.parametrize("exporter", list(Exporter))
def test_both_exporters_leave_the_module_path_on_a_node(exporter: Exporter) -> None:
    graph = Graph(export(fill(Outer()), (noise("graph.scope", 3, 2, 4),), exporter))
    scopes = {n.op: n.scope for n in graph.nodes}
    assert scopes["Conv"] == "inner.stack.0.0"
    assert scopes["Tanh"] == "inner.stack.0.1"
    assert scopes.get("MatMul", scopes.get("Gemm")) == "inner.proj"
    assert scopes["Exp"] == ""


def test_a_scrambled_graph_has_no_scopes() -> None:
    proto = export(fill(Outer()), (noise("graph.scope", 3, 2, 4),), Exporter.DYNAMO)
    assert {n.scope for n in Graph(treat(proto, Treatment.SCRAMBLED)).nodes} == {""}


@pytest.mark.parametrize("text", ["[", "not a list", "['only-one']", "{}", "3"])
def test_metadata_that_says_nothing_gives_no_scope(text: str) -> None:
    model = chain()
    entry = model.graph.node[0].metadata_props.add()
    entry.key, entry.value = "pkg.torch.onnx.name_scopes", text
    assert Graph(model).nodes[0].scope == ""
