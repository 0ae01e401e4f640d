"""Rewrites of an ONNX file that change nothing it computes: what tools and people do to one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
from onnx import helper

if TYPE_CHECKING:
    import random
    from collections.abc import Iterator


def with_identities(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """The model with Identity nodes on a third of its edges, those to weights included."""
    model = _copy(proto)
    constant = _constants(model)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            # Runtimes want the sizes, axes and limits of other operators as constants.
            movable = name not in constant or node.op_type in _WEIGHTED
            if name and movable and rng.random() < 1 / 3:
                between = f"{name}__through_{len(nodes)}"
                nodes.append(helper.make_node("Identity", [name], [between], name=between))
                node.input[slot] = between
        nodes.append(node)
    return _with_nodes(model, nodes)


def reordered(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """The model with its nodes in another topological order, drawn at random."""
    model = _copy(proto)
    waiting = list(model.graph.node)
    made_here = {name for node in waiting for name in node.output}
    done: set[str] = set()
    ordered: list[onnx.NodeProto] = []
    while waiting:
        ready = [node for node in waiting if made_here.intersection(_reads(node)) <= done]
        node = rng.choice(ready)
        waiting.remove(node)
        done.update(node.output)
        ordered.append(node)
    return _with_nodes(model, ordered)


def with_constant_nodes(proto: onnx.ModelProto, rng: random.Random) -> onnx.ModelProto:
    """The model with half of its initializers turned into Constant nodes and the other half in another order."""
    model = _copy(proto)
    tensors = list(model.graph.initializer)
    as_nodes = [tensor for tensor in tensors if rng.random() < 0.5]
    names = {tensor.name for tensor in as_nodes}
    kept = [tensor for tensor in tensors if tensor.name not in names]
    constants = [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in as_nodes]
    del model.graph.initializer[:]
    model.graph.initializer.extend(rng.sample(kept, len(kept)))
    return _with_nodes(model, [*constants, *model.graph.node])


def with_initializers(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its Constant nodes turned into initializers."""
    model = _copy(proto)
    nodes = []
    for node in model.graph.node:
        value = next((a.t for a in node.attribute if a.name == "value"), None)
        if node.op_type != "Constant" or value is None:
            nodes.append(node)
            continue
        tensor = model.graph.initializer.add()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
    return _with_nodes(model, nodes)


def without_metadata(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The model without scopes, stack traces, docs, node names and inferred shapes; the tensors keep their names."""
    model = _copy(proto)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.name = node.doc_string = ""
    del model.graph.value_info[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    return model


_WEIGHTED = ("Conv", "Gemm", "MatMul", "Add", "Mul", "BatchNormalization", "LayerNormalization")


def _constants(model: onnx.ModelProto) -> set[str]:
    found = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        if all(name in found for name in _reads(node) if name):
            found.update(node.output)
    return found


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    """What a node reads, its subgraphs included."""
    yield from node.input
    for attribute in node.attribute:
        for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
            for inner in graph.node:
                yield from _reads(inner)
            yield from (value.name for value in graph.output)


def _copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    return model


def _with_nodes(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> onnx.ModelProto:
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    return model
