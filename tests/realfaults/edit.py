"""Edits of an exported file, the way the reported bug changed it; each gives a new model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def nodes_of(proto: onnx.ModelProto, op: str) -> list[onnx.NodeProto]:
    found = [node for node in proto.graph.node if node.op_type == op]
    assert found, f"no {op} among {sorted({node.op_type for node in proto.graph.node})}"
    return found


def only(proto: onnx.ModelProto, op: str) -> onnx.NodeProto:
    (node,) = nodes_of(proto, op)
    return node


def with_attributes(proto: onnx.ModelProto, op: str, **attributes: Any) -> onnx.ModelProto:
    """The only node of this type with other attributes; None drops one."""
    edited = copied(proto)
    node = only(edited, op)
    kept = [attribute for attribute in node.attribute if attribute.name not in attributes]
    del node.attribute[:]
    node.attribute.extend(kept)
    node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items() if v is not None)
    return edited


def with_nodes(
    proto: onnx.ModelProto, gone: Sequence[str], instead: Sequence[onnx.NodeProto], **constants: Any
) -> onnx.ModelProto:
    """Other nodes, and the constants they read, where the nodes that made these tensors were."""
    edited = copied(proto)
    at = min(i for i, node in enumerate(edited.graph.node) if node.output[0] in gone)
    kept = [node for node in edited.graph.node if node.output[0] not in gone]
    del edited.graph.node[:]
    edited.graph.node.extend([*kept[:at], *instead, *kept[at:]])
    edited.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
    return edited


def without(proto: onnx.ModelProto, op: str, number: int = 0) -> onnx.ModelProto:
    """The node is gone and its readers read what it read."""
    edited = copied(proto)
    node = nodes_of(edited, op)[number]
    for reader in edited.graph.node:
        for slot, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[slot] = node.input[0]
    edited.graph.node.remove(node)
    return edited


def constant_of(proto: onnx.ModelProto, name: str) -> np.ndarray:
    """The value of an initializer or a Constant node."""
    for tensor in proto.graph.initializer:
        if tensor.name == name:
            return numpy_helper.to_array(tensor)
    node = next(node for node in proto.graph.node if node.output[0] == name)
    return numpy_helper.to_array(node.attribute[0].t)


def with_constant(proto: onnx.ModelProto, name: str, value: Any) -> onnx.ModelProto:
    """Another value of an initializer or a Constant node."""
    edited = copied(proto)
    changed = numpy_helper.from_array(np.asarray(value), name)
    for tensor in edited.graph.initializer:
        if tensor.name == name:
            tensor.CopyFrom(changed)
            return edited
    node = next(node for node in edited.graph.node if node.output[0] == name)
    node.attribute[0].t.CopyFrom(changed)
    return edited
