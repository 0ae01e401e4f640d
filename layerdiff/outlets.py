"""Outputs of a graph that its own nodes read, too: each gets a node of its own.

Where a layer is lost whose result is an output, the tensor that it read becomes that output. One name then stands for
two values of the model, and what is put in at one place would change the other.
"""

from __future__ import annotations

import onnx
from onnx import helper


def with_outlets(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with an Identity before every output that is read inside; itself when there is none."""
    made = {name for node in model.graph.node for name in node.output}
    read = {name for node in model.graph.node for name in reads(node)}
    inside = [port.name for port in model.graph.output if port.name in made & read]
    if not inside:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    renamed = {name: _fresh(name, made | read) for name in inside}
    for node in result.graph.node:
        rename(node, renamed)
    for name, inner in renamed.items():
        result.graph.node.append(helper.make_node("Identity", [inner], [name]))
    for info in result.graph.value_info:
        info.name = renamed.get(info.name, info.name)
    return result


def reads(node: onnx.NodeProto) -> set[str]:
    """What a node reads, in its subgraphs too."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            found |= {name for inner in graph.node for name in reads(inner)} | {port.name for port in graph.output}
    return found


def rename(node: onnx.NodeProto, names: dict[str, str]) -> None:
    """Give tensors other names in a node and in its subgraphs."""
    node.input[:] = [names.get(name, name) for name in node.input]
    node.output[:] = [names.get(name, name) for name in node.output]
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                rename(inner, names)
            for port in graph.output:
                port.name = names.get(port.name, port.name)


def _fresh(name: str, taken: set[str]) -> str:
    found = f"{name}__inside"
    while found in taken:
        found += "_"
    return found
