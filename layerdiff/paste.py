"""Put the nodes of a subgraph into the main graph, under names of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def stored(graph: onnx.GraphProto, name: str, value: object) -> str:
    """The name under which the graph now holds a constant."""
    graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    return name


def pasted(
    graph: onnx.GraphProto, body: onnx.GraphProto, marks: tuple[str, str], given: Mapping[str, str], outputs: list[str]
) -> list[onnx.NodeProto]:
    """The nodes of a body; its inputs are `given`, its outputs come out under `outputs`.

    `marks` are added to names: the first to what the body computes, the second to its constants, which all iterations
    share.
    """
    mark, shared = marks
    own = {name for node in body.node for name in node.output if name}
    weights = {t.name for t in body.initializer} | {t.values.name for t in body.sparse_initializer}
    names = {name: f"{name}{mark}" for name in own} | {name: f"{name}{shared}" for name in weights} | dict(given)
    _add_constants(graph, body, names)
    aliases = []
    direct: set[str] = set()
    for inner, outer in zip((output.name for output in body.output), outputs, strict=True):
        if outer and inner in own and inner not in direct:
            direct.add(inner)
            names[inner] = outer
        elif outer:
            aliases.append((inner, outer))
    parts = [renamed(node, names) for node in body.node]
    return parts + [helper.make_node("Identity", [names.get(inner, inner)], [outer]) for inner, outer in aliases]


def _add_constants(graph: onnx.GraphProto, body: onnx.GraphProto, names: Mapping[str, str]) -> None:
    before = {tensor.name for tensor in graph.initializer}
    for tensor in body.initializer:
        if names[tensor.name] not in before:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = names[tensor.name]
    sparse = {tensor.values.name for tensor in graph.sparse_initializer}
    for entry in body.sparse_initializer:
        if names[entry.values.name] not in sparse:
            other = graph.sparse_initializer.add()
            other.CopyFrom(entry)
            other.values.name = names[entry.values.name]


def renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node under other value names, also in what its own subgraphs read from outside."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {name for n in subgraph.node for name in n.output} | {i.name for i in subgraph.input}
            inner |= {tensor.name for tensor in subgraph.initializer}
            outside = {old: new for old, new in names.items() if old not in inner}
            parts = [renamed(n, outside) for n in subgraph.node]
            del subgraph.node[:]
            subgraph.node.extend(parts)
            for output in subgraph.output:
                output.name = outside.get(output.name, output.name)
    return copy


def stacked(graph: onnx.GraphProto, names: Sequence[str], output: str, axis: int, opset: int) -> list[onnx.NodeProto]:
    """The tensors along a new axis."""
    rows = [f"{name}__row_of_{output}" for name in names]
    if opset >= 13:  # the axes of Unsqueeze are an input since opset 13
        axes = stored(graph, f"{output}__axes", np.array([axis], np.int64))
        parts = [helper.make_node("Unsqueeze", [name, axes], [row]) for name, row in zip(names, rows, strict=True)]
    else:
        parts = [helper.make_node("Unsqueeze", [n], [row], axes=[axis]) for n, row in zip(names, rows, strict=True)]
    return [*parts, helper.make_node("Concat", rows, [output], axis=axis)]
