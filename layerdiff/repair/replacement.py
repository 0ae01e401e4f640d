"""A stretch lowered afresh in place of the accused nodes, right for every size that the file allows.

Exporters bake the sizes of a recorded call into constants. So the stretch is lowered twice, with the operands of two
samples of different sizes: a number that differs between the two follows from the sizes of the inputs, and is computed
from them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from layerdiff.exporting import Exporter
from layerdiff.lowering import lowered
from layerdiff.patch import Splice, with_reshaped_input, with_reshaped_output

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.live import Case
    from layerdiff.repair.setting import Setting

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Size:
    """One dimension of an input of the stretch, as it is with each of two samples."""

    tensor: str
    axis: int
    first: int
    second: int


def replacements(case: Case, own: Setting, other: Setting | None) -> Iterator[Splice]:
    """The changes that put the reference's operators in place of the accused nodes, by either exporter."""
    for exporter in Exporter:
        first = _fragment(case, own, exporter)
        if first is None:
            continue
        model, inputs, shapes = first
        if other is not None:
            second = _fragment(case, other, exporter)
            if second is None:
                continue
            general = generalised(model, second[0], _sizes(shapes, second[2]))
            if general is None:
                continue
            model = general
        yield Splice(case.accused.tensor, model, inputs, case.edges)


_Fragment = tuple[onnx.ModelProto, tuple[tuple[str, str], ...], dict[str, tuple[int, ...]]]


def _fragment(case: Case, at: Setting, exporter: Exporter) -> _Fragment | None:
    """The lowered stretch, which tensor each of its inputs reads, and their shapes, with one sample."""
    region, values = case.accused, at.reference.values
    if not region.sites:
        return None
    fresh = lowered(at.reference, region.sites, region.inputs, region.value, (exporter, at.candidate.graph.opset()))
    holders = dict(case.holders)
    if fresh is None or not set(fresh.inputs.values()) <= set(holders):
        return None
    actual = {name: array.shape for name, array in at.candidate.named([*holders.values(), region.tensor]).items()}
    model, inputs = fresh.model, []
    for name, value in fresh.inputs.items():
        if actual[holders[value]] != values[value].shape:
            model = with_reshaped_input(model, name, values[value].shape)
        inputs.append((name, holders[value]))
    ends = actual.get(region.tensor)
    if ends is not None and ends != values[region.value].shape and np.prod(ends) == np.prod(values[region.value].shape):
        model = with_reshaped_output(model, ends)
    return model, tuple(inputs), {name: actual[tensor] for name, tensor in inputs}


def _sizes(first: Mapping[str, tuple[int, ...]], second: Mapping[str, tuple[int, ...]]) -> list[Size]:
    return [
        Size(name, axis, a, b)
        for name, shape in first.items()
        for axis, (a, b) in enumerate(zip(shape, second[name], strict=False))
    ]


def generalised(first: onnx.ModelProto, second: onnx.ModelProto, sizes: Sequence[Size]) -> onnx.ModelProto | None:
    """The first of two models, with what differs computed from sizes; None where more than whole numbers differ."""
    result = onnx.ModelProto()
    result.CopyFrom(first)
    if [_signature(node) for node in first.graph.node] != [_signature(node) for node in second.graph.node]:
        return None
    mine, theirs = _constants(first.graph), _constants(second.graph)
    if set(mine) != set(theirs):
        return None
    added: list[onnx.NodeProto] = []
    for name, constant in mine.items():
        if np.array_equal(constant, theirs[name], equal_nan=constant.dtype.kind == "f"):
            continue
        pieces = _pieces(constant, theirs[name], sizes)
        if pieces is None:
            return None
        added += _computed(name, constant, pieces, result.graph)
        _remove(result.graph, name)
    nodes = [*added, *result.graph.node]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del result.graph.node[:]
    result.graph.node.extend(copies)
    return result


def _signature(node: onnx.NodeProto) -> tuple[Any, ...]:
    attributes = [] if node.op_type == "Constant" else sorted(a.SerializeToString() for a in node.attribute)
    return node.op_type, node.domain, list(node.input), list(node.output), attributes


def _constants(graph: onnx.GraphProto) -> dict[str, Array]:
    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    return found


_Piece = int | tuple[Size, str, int]


def _pieces(first: Array, second: Array, sizes: Sequence[Size]) -> list[_Piece] | None:
    """Each number of a constant: itself where both agree, else how it follows from a size."""
    if first.shape != second.shape or first.ndim > 1 or first.dtype.kind != "i":
        return None
    pieces: list[_Piece] = []
    for axis, (a, b) in enumerate(zip(first.reshape(-1).tolist(), second.reshape(-1).tolist(), strict=True)):
        found = a if a == b else _from_sizes(a, b, axis, sizes)
        if found is None:
            return None
        pieces.append(found)
    return pieces


def _from_sizes(first: int, second: int, axis: int, sizes: Sequence[Size]) -> _Piece | None:
    """A size, or a multiple, a fraction or a shift of one, that gives both numbers; the same axis first."""
    moving = sorted((s for s in sizes if s.first != s.second), key=lambda s: s.axis != axis)
    for size in moving:
        if (size.first, size.second) == (first, second):
            return size, "Mul", 1
    for size in moving:
        factor = first // size.first if size.first else 0
        if factor and (factor * size.first, factor * size.second) == (first, second):
            return size, "Mul", factor
        factor = size.first // first if first > 0 else 0
        if factor and (factor * first, factor * second) == (size.first, size.second):
            return size, "Div", factor
    for size in moving:
        if size.first - first == size.second - second:
            return size, "Add", first - size.first
    return None


def _computed(name: str, constant: Array, pieces: Sequence[_Piece], graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Nodes that compute a constant from the shapes of the inputs, under its name."""
    parts = []
    for index, piece in enumerate(pieces):
        part = f"{name}__size_{index}"
        parts.append(part)
        if isinstance(piece, int):
            graph.initializer.append(numpy_helper.from_array(np.array([piece], np.int64), part))
            continue
        size, op, operand = piece
        for suffix, number in (("axis", size.axis), ("operand", operand)):
            graph.initializer.append(numpy_helper.from_array(np.array([number], np.int64), f"{part}_{suffix}"))
        yield helper.make_node("Shape", [size.tensor], [f"{part}_shape"])
        yield helper.make_node("Gather", [f"{part}_shape", f"{part}_axis"], [f"{part}_own"], axis=0)
        yield helper.make_node(op, [f"{part}_own", f"{part}_operand"], [part])
    joined = f"{name}__sizes"
    yield helper.make_node("Concat", parts, [joined], axis=0)
    whole = f"{name}__whole"
    graph.initializer.append(numpy_helper.from_array(np.array(constant.shape, np.int64), f"{name}__rank"))
    yield helper.make_node("Reshape", [joined, f"{name}__rank"], [whole])
    yield helper.make_node("Cast", [whole], [name], to=int(helper.np_dtype_to_tensor_dtype(constant.dtype)))


def _remove(graph: onnx.GraphProto, name: str) -> None:
    for tensor in [t for t in graph.initializer if t.name == name]:
        graph.initializer.remove(tensor)
    for node in [n for n in graph.node if n.op_type == "Constant" and n.output[0] == name]:
        graph.node.remove(node)
