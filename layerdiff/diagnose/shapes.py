"""A node that reads the right numbers in another rank or order of axes than the model: broadcasting hides it."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from onnx import helper

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.semantics import REDUCTIONS
from layerdiff.patch import Splice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import onnx

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Graph, Node

MOST = 12
"""Operands that are put into the model's shape, each one run of the few nodes."""

_BACK = 6
"""So many nodes are looked at behind an operand for the reduction that lost an axis."""


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for the first operand that cures the stretch when it is read in the model's shape."""
    if stretch.part is None:
        return
    outputs = {name for node in stretch.part.model.graph.node for name in node.output}
    graph = stretch.alignment.candidate.graph
    nodes = [node for node in graph.nodes if node.outputs and node.outputs[0] in outputs]
    wires = [(node, slot, name) for node in nodes for slot, name in enumerate(node.inputs)]
    found = [one for wire in wires if (one := _in_shape(stretch, *wire)) is not None]
    for hypothesis in found[:MOST]:
        if stretch.holds(hypothesis.patch or ()):
            yield hypothesis
            return


def _in_shape(stretch: Stretch, node: Node, slot: int, name: str) -> Hypothesis | None:
    """The operand read in the model's shape; None where it is that."""
    candidate, values = stretch.alignment.candidate, stretch.alignment.reference.values
    edge = ((node.outputs[0], slot),)
    if name in candidate.layout:
        axes = candidate.layout[name]
        if axes == tuple(sorted(axes)):
            return None
        change = Splice(name, _one(helper.make_node("Transpose", ["x"], ["y"], perm=list(axes))), (("x", name),), edge)
        text = f"{node.op} reads {name}, whose axes are in another order: {axes}."
        return Hypothesis("layout", text, {"node": node.name, "axes": list(axes)}, (change,))
    value = stretch.alignment.forced().get(name)
    if value is None or name not in candidate.tapped:
        return None
    wanted, got = values[value].shape, candidate.tapped[name].shape
    lost = _lost(wanted, got)
    if not lost:
        return None
    change = Splice(name, _unsqueezed(lost, candidate.graph), (("x", name),), edge)
    text = f"{node.op} reads {name} in shape {got}; the model's is {wanted}."
    cause = "axis" if _reduced(candidate.graph, name) else "layout"
    return Hypothesis(cause, text, {"node": node.name, "wanted": list(wanted), "got": list(got)}, (change,))


def _lost(wanted: Sequence[int], got: Sequence[int]) -> tuple[int, ...]:
    """The axes of length one that one shape has and the other has not; none where they differ in more."""
    if len(got) >= len(wanted):
        return ()
    single = [axis for axis, size in enumerate(wanted) if size == 1]
    for axes in combinations(single, len(wanted) - len(got)):
        if tuple(size for axis, size in enumerate(wanted) if axis not in axes) == tuple(got):
            return axes
    return ()


def _reduced(graph: Graph, tensor: str) -> bool:
    """Whether the axis was lost in a reduction, of which the tensor is computed number by number."""
    for _ in range(_BACK):
        index = graph.producer.get(tensor)
        if index is None:
            return False
        node = graph.nodes[index]
        if node.op in REDUCTIONS:
            return not node.attributes.get("keepdims", 1)
        rest = [name for name in node.inputs if name and name not in graph.constant]
        if len(rest) != 1:
            return False
        tensor = rest[0]
    return False


def _unsqueezed(axes: Sequence[int], graph: Graph) -> onnx.ModelProto:
    if graph.opset() < 13:  # the axes were an attribute
        return _one(helper.make_node("Unsqueeze", ["x"], ["y"], axes=list(axes)))
    model = _one(helper.make_node("Unsqueeze", ["x", "axes"], ["y"]))
    model.graph.initializer.append(helper.make_tensor("axes", 7, [len(axes)], list(axes)))
    return model


def _one(node: onnx.NodeProto) -> onnx.ModelProto:
    """A small model of one node from x to y, of the opset of the graph that it goes into."""
    ports = [helper.make_empty_tensor_value_info(name) for name in "xy"]
    return helper.make_model(helper.make_graph([node], node.op_type.lower(), ports[:1], ports[1:]))
