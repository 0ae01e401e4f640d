"""Changes to an ONNX model, as data: what to set, what to rewire, what to put in place of what.

Nodes are addressed by the name of their first output, which is unique in a graph and the same in the whole file and in
any part of it. So a patch that was proven on a small region is applied to the file as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from layerdiff.errors import PatchError
from layerdiff.narrow import FEW_BITS, UNPACKED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class SetAttribute:
    """Give a node's attribute another value; None removes it."""

    node: str
    name: str
    value: Any


@dataclass(frozen=True, slots=True)
class SetConstant:
    """Let a node read these numbers in an input slot."""

    node: str
    slot: int
    value: Array = field(compare=False)  # two changes of one slot are never tried together


@dataclass(frozen=True, slots=True)
class Rewire:
    """Let a node read another tensor in an input slot."""

    node: str
    slot: int
    tensor: str


@dataclass(frozen=True, slots=True)
class SetOperator:
    """Make a node another operator, with these attributes instead of its own."""

    node: str
    op: str
    attributes: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Splice:
    """Compute a tensor by other nodes: those of a small model, whose inputs read the given tensors.

    Every reader of `tensor` (or only the given ``(node, slot)`` edges) reads the model's output instead. Nodes that
    nothing reads any more are removed.
    """

    tensor: str
    model: onnx.ModelProto = field(compare=False, repr=False)
    inputs: tuple[tuple[str, str], ...]
    edges: tuple[tuple[str, int], ...] | None = None


def _unary(op: str) -> onnx.ModelProto:
    """A small model of one operator, for splices."""
    ports = [helper.make_empty_tensor_value_info(name) for name in "xy"]
    graph = helper.make_graph([helper.make_node(op, ["x"], ["y"])], op.lower(), ports[:1], ports[1:])
    return helper.make_model(graph)


IDENTITY = _unary("Identity")
"""A splice of this only leads readers elsewhere."""

RELU = _unary("Relu")

Change = SetAttribute | SetConstant | Rewire | SetOperator | Splice
Patch = tuple[Change, ...]


def patched(model: onnx.ModelProto, patch: Iterable[Change]) -> onnx.ModelProto:
    """A copy of the model with the changes made.

    Raises
    ------
    PatchError
        A node that a change addresses is not in the model.

    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for change in patch:
        if isinstance(change, Splice):
            _splice(result, change)
        else:
            change_node(result.graph, change)
    _sort(result.graph)
    _prune(result.graph)
    return result


def within(model: onnx.ModelProto, patch: Iterable[Change]) -> Patch:
    """What of a patch is about nodes that the model has: a part of a file holds only some of them."""
    known = {name for node in model.graph.node for name in node.output}
    found: list[Change] = []
    for change in patch:
        if isinstance(change, Splice) and change.edges is not None:
            found.append(replace(change, edges=tuple(edge for edge in change.edges if edge[0] in known)))
        elif isinstance(change, Splice) or change.node in known:
            found.append(change)
    return tuple(found)


def _tensor(values: Array, name: str, before: onnx.TensorProto | None) -> onnx.TensorProto:
    """Numbers as a tensor; integers of few bits keep the type of those that they come in place of."""
    if before is None or values.dtype.kind not in "iu" or before.data_type not in FEW_BITS:
        made = numpy_helper.from_array(values, name)
    else:
        made = helper.make_tensor(name, before.data_type, values.shape, values.reshape(-1))
    if before is not None and before.doc_string in UNPACKED:
        made.doc_string = before.doc_string
    return made


def change_node(graph: onnx.GraphProto, change: SetAttribute | SetConstant | Rewire | SetOperator) -> None:
    """Make a change of one node in place, in a graph or in a branch or body of it."""
    node = _node(graph, change.node)
    if isinstance(change, SetAttribute):
        _set_attribute(node, change.name, change.value)
        if change.name == "training_mode" and not change.value:
            del node.output[1:]  # a BatchNormalization or Dropout that does not train has one output
    elif isinstance(change, SetOperator):
        node.op_type = change.op
        node.domain = ""
        del node.attribute[:]
        for name, value in change.attributes:
            _set_attribute(node, name, value)
    elif isinstance(change, Rewire):
        _connect(node, change.slot, change.tensor)
    else:
        name = _fresh(graph, f"{change.node}__slot{change.slot}_corrected")
        before = node.input[change.slot] if change.slot < len(node.input) else ""
        stored = next((tensor for tensor in graph.initializer if tensor.name == before), None)
        graph.initializer.append(_tensor(np.asarray(change.value, order="C"), name, stored))
        _connect(node, change.slot, name)


def _node(graph: onnx.GraphProto, output: str) -> onnx.NodeProto:
    for index, node in enumerate(graph.node):
        if output in node.output:
            found: onnx.NodeProto = graph.node[index]
            return found
    raise PatchError(f"no node of the graph computes {output!r}; the patch belongs to another file")


def _set_attribute(node: onnx.NodeProto, name: str, value: Any) -> None:
    kept = [attribute for attribute in node.attribute if attribute.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)
    if value is not None:
        node.attribute.append(helper.make_attribute(name, value))


def _connect(node: onnx.NodeProto, slot: int, tensor: str) -> None:
    while len(node.input) <= slot:
        node.input.append("")
    node.input[slot] = tensor
    while node.input and not node.input[-1]:
        del node.input[-1]


def _splice(model: onnx.ModelProto, change: Splice) -> None:
    """Insert the small model's nodes under names of their own, and lead the readers to its output."""
    graph, small = model.graph, change.model.graph
    renamed = dict(change.inputs)
    prefix = f"{change.tensor}__corrected"
    for tensor in [t.name for t in small.initializer] + [o for node in small.node for o in node.output if o]:
        renamed.setdefault(tensor, _fresh(graph, f"{prefix}/{tensor}"))
    for tensor in small.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = renamed[tensor.name]
    own = set()
    for node in small.node:
        copy = graph.node.add()
        copy.CopyFrom(node)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        copy.name = next(name for name in copy.output if name)  # a runtime refuses two nodes of one name
        own |= {name for name in copy.output if name}
        del copy.metadata_props[:]  # the exporter's stack traces name files of this machine
    _import_domains(model, change.model)
    _redirect(graph, change, renamed[small.output[0].name], own)


def _redirect(graph: onnx.GraphProto, change: Splice, corrected: str, own: set[str]) -> None:
    if change.edges is not None:
        for node, slot in change.edges:
            _connect(_node(graph, node), slot, corrected)
        return
    if change.tensor in {port.name for port in graph.output}:
        _take_over_name(graph, change.tensor, corrected, own)
        return
    for node in graph.node:
        if own.isdisjoint(node.output):
            node.input[:] = [corrected if name == change.tensor else name for name in node.input]


def _take_over_name(graph: onnx.GraphProto, tensor: str, corrected: str, own: set[str]) -> None:
    """A graph output keeps its name: the wrong tensor gives it up to the corrected one."""
    old = _fresh(graph, f"{tensor}__before")
    for node in graph.node:
        inside = not own.isdisjoint(node.output)
        node.output[:] = [{tensor: old, corrected: tensor}.get(name, name) for name in node.output]
        swap = {tensor: old, corrected: tensor} if inside else {corrected: tensor}
        node.input[:] = [swap.get(name, name) for name in node.input]


def _import_domains(model: onnx.ModelProto, small: onnx.ModelProto) -> None:
    known = {entry.domain for entry in model.opset_import}
    if small is IDENTITY or small is RELU:
        return
    model.opset_import.extend(entry for entry in small.opset_import if entry.domain not in known)
    model.functions.extend(small.functions)
    model.ir_version = max(model.ir_version, min(small.ir_version, 10))


def _fresh(graph: onnx.GraphProto, wanted: str) -> str:
    taken = {t.name for t in graph.initializer} | {name for node in graph.node for name in node.output}
    taken |= {port.name for port in graph.input} | {node.name for node in graph.node}
    name, number = wanted, 1
    while name in taken:
        number += 1
        name = f"{wanted}_{number}"
    return name


def _sort(graph: onnx.GraphProto) -> None:
    """Put nodes in topological order, as stably as can be."""
    made = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    order: dict[int, None] = {}
    nodes = list(graph.node)
    for start in range(len(nodes)):
        stack = [start]
        while stack:
            index = stack[-1]
            waiting = [made[n] for n in _reads(nodes[index]) if n in made and made[n] not in order and made[n] != index]
            if index in order or not waiting:
                order.setdefault(stack.pop())
            else:
                if len(stack) > len(nodes):
                    raise PatchError("the patch makes the graph depend on itself")
                stack.append(waiting[0])
    copies = [onnx.NodeProto.FromString(nodes[index].SerializeToString()) for index in order]
    del graph.node[:]
    graph.node.extend(copies)


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, in its subgraphs too."""
    found = list(node.input)
    for attribute in node.attribute:
        for inner in attribute.g.node:
            found += _reads(inner)
        found += [port.name for port in attribute.g.output]
    return found


def _prune(graph: onnx.GraphProto) -> None:
    """Remove nodes and initializers that nothing reads any more."""
    producer = {name: node for node in graph.node for name in node.output if name}
    alive: set[int] = set()
    read: set[str] = set()
    todo = [port.name for port in graph.output]
    while todo:
        name = todo.pop()
        read.add(name)
        node = producer.get(name)
        if node is not None and id(node) not in alive:
            alive.add(id(node))
            todo += _reads(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in graph.node if id(node) in alive]
    constants = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.node[:]
    graph.node.extend(kept)
    if len(constants) < len(graph.initializer):
        copies = [onnx.TensorProto.FromString(tensor.SerializeToString()) for tensor in constants]
        removed = {tensor.name for tensor in graph.initializer} - read
        del graph.initializer[:]
        graph.initializer.extend(copies)
        ports = [port for port in graph.input if port.name not in removed]  # old files list initializers as inputs
        if len(ports) < len(graph.input):
            copied = [onnx.ValueInfoProto.FromString(port.SerializeToString()) for port in ports]
            del graph.input[:]
            graph.input.extend(copied)


def with_reshaped_input(model: onnx.ModelProto, name: str, shape: Sequence[int]) -> onnx.ModelProto:
    """The model reading an input that has another shape outside."""
    return _before(model, name, lambda graph, inner: _reshape(graph, name, inner, shape))


def with_turned_input(model: onnx.ModelProto, name: str, axes: Sequence[int]) -> onnx.ModelProto:
    """The model reading an input after a permutation of its axes."""
    return _before(model, name, lambda _, inner: helper.make_node("Transpose", [name], [inner], perm=list(axes)))


def with_reshaped_output(model: onnx.ModelProto, shape: Sequence[int]) -> onnx.ModelProto:
    """The model giving its output in another shape."""
    return _behind(model, lambda graph, name, outer: _reshape(graph, name, outer, shape))


def with_turned_output(model: onnx.ModelProto, axes: Sequence[int]) -> onnx.ModelProto:
    """The model giving its output with its axes permuted."""
    return _behind(model, lambda _, name, outer: helper.make_node("Transpose", [name], [outer], perm=list(axes)))


def with_cast_input(model: onnx.ModelProto, name: str, kind: Any) -> onnx.ModelProto:
    """The model reading an input of another type outside as the numpy type that it computes in."""
    to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return _before(model, name, lambda _, inner: helper.make_node("Cast", [name], [inner], to=to))


def with_cast_output(model: onnx.ModelProto, kind: Any) -> onnx.ModelProto:
    """The model giving its output in another numpy type."""
    to = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return _behind(model, lambda _, name, outer: helper.make_node("Cast", [name], [outer], to=to))


def _before(
    model: onnx.ModelProto, name: str, make: Callable[[onnx.GraphProto, str], onnx.NodeProto]
) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    inner = _fresh(result.graph, f"{name}__turned")
    for node in result.graph.node:
        node.input[:] = [inner if read == name else read for read in node.input]
    result.graph.node.insert(0, make(result.graph, inner))
    return result


def _behind(model: onnx.ModelProto, make: Callable[[onnx.GraphProto, str, str], onnx.NodeProto]) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    port = result.graph.output[0]
    outer = _fresh(result.graph, f"{port.name}__turned")
    result.graph.node.append(make(result.graph, port.name, outer))
    port.CopyFrom(helper.make_empty_tensor_value_info(outer))
    return result


def _reshape(graph: onnx.GraphProto, source: str, target: str, shape: Sequence[int]) -> onnx.NodeProto:
    size = numpy_helper.from_array(np.asarray(shape, np.int64), _fresh(graph, f"{target}__size"))
    graph.initializer.append(size)
    return helper.make_node("Reshape", [source, size.name], [target])
