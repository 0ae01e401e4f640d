"""Edits of an exported file as values: each function gives one that makes a changed copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from tests.realfaults.edit import copied, nodes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import onnx

    from tests.diagnose.seeded import Network
    from tests.zoo.exports import Exporter

    Edit = Callable[[onnx.ModelProto], onnx.ModelProto]


def attributes(op: str, number: int = 0, /, **changed: Any) -> Edit:
    """The node of this type and number with other attributes; None drops one."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        kept = [attribute for attribute in node.attribute if attribute.name not in changed]
        del node.attribute[:]
        node.attribute.extend(kept)
        node.attribute.extend(helper.make_attribute(k, v) for k, v in changed.items() if v is not None)
        return edited

    return edit


def operator(op: str, other: str, number: int = 0, /, **attributes: Any) -> Edit:
    """The node of this type and number as another operator, which has these attributes."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        node.op_type = other
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(k, v) for k, v in attributes.items())
        return edited

    return edit


def constant(op: str, slot: int, change: Callable[[np.ndarray], Any], number: int = 0) -> Edit:
    """Other numbers in an input slot of the node of this type and number, and of that node only."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        before = _numbers(edited, node.input[slot])
        name = f"{node.output[0]}.seeded.{slot}"
        changed = np.asarray(change(before.copy()))
        assert changed.shape != before.shape or not np.array_equal(changed, before), "nothing was seeded"
        edited.graph.initializer.append(numpy_helper.from_array(changed.astype(before.dtype), name))
        node.input[slot] = name
        return edited

    return edit


def _numbers(proto: onnx.ModelProto, name: str) -> np.ndarray:
    """What a tensor holds that does not depend on the inputs: exporters leave constants unfolded."""
    part = copied(proto)
    needed, todo = [], [name]
    made = {output: node for node in proto.graph.node for output in node.output}
    while todo:
        node = made.get(todo.pop())
        if node is not None and node not in needed:
            needed.append(node)
            todo += node.input
    del part.graph.input[:]
    del part.graph.output[:]
    del part.graph.node[:]
    part.graph.node.extend(node for node in proto.graph.node if node in needed)
    part.graph.output.append(helper.make_empty_tensor_value_info(name))
    return np.asarray(ReferenceEvaluator(part).run([name], {})[0])


def operands(op: str, order: Sequence[int], number: int = 0) -> Edit:
    """The operands of the node of this type and number in another order."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        node.input[:] = [node.input[slot] for slot in order]
        return edited

    return edit


def results(op: str, order: Sequence[int], number: int = 0) -> Edit:
    """The results of the node of this type and number under each other's names."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        node.output[:] = [node.output[slot] for slot in order]
        return edited

    return edit


def behind(op: str, nodes: Sequence[tuple[str, dict[str, Any]]], number: int = 0, **constants: Any) -> Edit:
    """A chain of new nodes that every reader of the node of this type and number reads through.

    The first operand of each is what comes before it; the constants are the other operands of those that have any.
    """

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        source = node.output[0]
        last = f"{source}.{len(nodes) - 1}.put_in"
        for reader in edited.graph.node:
            reader.input[:] = [last if name == source else name for name in reader.input]
        at = list(edited.graph.node).index(node) + 1
        for count, (kind, given) in enumerate(nodes):
            own = [source, *given.get("operands", ())]
            source = f"{node.output[0]}.{count}.put_in"
            rest = {key: value for key, value in given.items() if key != "operands"}
            edited.graph.node.insert(at + count, helper.make_node(kind, own, [source], **rest))
        edited.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items())
        return edited

    return edit


def without(op: str, number: int = 0, slot: int = 0) -> Edit:
    """The node is gone; its readers read its operand in this slot."""

    def edit(proto: onnx.ModelProto) -> onnx.ModelProto:
        edited = copied(proto)
        node = nodes_of(edited, op)[number]
        for reader in edited.graph.node:
            reader.input[:] = [node.input[slot] if name == node.output[0] else name for name in reader.input]
        edited.graph.node.remove(node)
        return edited

    return edit


def export_of(network: Network, exporter: Exporter | None = None) -> Edit:
    """The healthy file of an altered network instead."""
    return lambda _: network.healthy() if exporter is None else network.healthy(exporter)
