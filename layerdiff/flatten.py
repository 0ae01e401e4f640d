"""Lay control flow flat for one sample: the branch that an If takes, the iterations that a Loop makes.

What a branch or a body computes cannot be made an output of the main graph. For one sample it need not be: the
condition and the number of iterations are known from a run, and the nodes inside can stand in the main graph, once for
each iteration. The file itself still runs as it is; the flat graph is what is examined.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Array = np.ndarray[Any, Any]
    Run = Callable[[onnx.ModelProto, list[str]], Mapping[str, Array | None]]

MAX_DEPTH = 8
MAX_ITERATIONS = 64
_TRIPS = "__trips"


def flattened(model: onnx.ModelProto, run: Run) -> onnx.ModelProto:
    """The model with its control flow laid flat; `run` gives named tensors of a model for the sample.

    A Loop that makes no iteration, or more than 64, stays as it is, as does a Scan.
    """
    for _ in range(MAX_DEPTH):
        if not any(node.op_type in ("If", "Loop") for node in model.graph.node):
            break
        counting = _with_trip_counts(model)
        wanted = [node.input[0] for node in counting.graph.node if node.op_type == "If"]
        wanted += [node.output[-1] for node in counting.graph.node if node.op_type == "Loop"]
        flat = _one_level(model, run(counting, list(dict.fromkeys(wanted))))
        if flat is None:
            break
        model = flat
    return model


def _with_trip_counts(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which every Loop also gives its iteration numbers, as one more scan output."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for index, node in enumerate(result.graph.node):
        if node.op_type == "Loop":
            body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
            name = f"{_TRIPS}_{index}"
            body.node.append(helper.make_node("Identity", [body.input[0].name], [name]))
            body.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
            node.output.append(f"{name}_all")
    return result


def _one_level(model: onnx.ModelProto, known: Mapping[str, Array | None]) -> onnx.ModelProto | None:
    """The model with the outermost control flow laid flat; None when nothing could be."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    changed = False
    for index, node in enumerate(model.graph.node):
        parts: list[onnx.NodeProto] | None = None
        if node.op_type == "If":
            condition = known.get(node.input[0])
            parts = None if condition is None else _taken_branch(result.graph, node, index, bool(np.all(condition)))
        elif node.op_type == "Loop":
            trips = known.get(f"{_TRIPS}_{index}_all")
            if trips is not None and 0 < len(trips) <= MAX_ITERATIONS:
                parts = _iterations(result.graph, node, index, len(trips), opset)
        changed = changed or parts is not None
        result.graph.node.extend([node] if parts is None else parts)
    return result if changed else None


def _taken_branch(graph: onnx.GraphProto, node: onnx.NodeProto, index: int, taken: bool) -> list[onnx.NodeProto]:  # noqa: FBT001
    name = "then_branch" if taken else "else_branch"
    branch = next(attribute.g for attribute in node.attribute if attribute.name == name)
    return _pasted(graph, branch, f"__{index}_{name}", {}, list(node.output))


def _iterations(
    graph: onnx.GraphProto, node: onnx.NodeProto, index: int, trips: int, opset: int
) -> list[onnx.NodeProto]:
    """The body once for each iteration, its carried values handed on, its scan outputs gathered at the end."""
    body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    carried = list(node.input[2:])
    gathered: list[list[str]] = [[] for _ in node.output[len(carried) :]]
    parts: list[onnx.NodeProto] = []
    for trip in range(trips):
        mark = f"__{index}_iteration_{trip}"
        number, going = f"{mark}_number", f"{mark}_condition"
        graph.initializer.append(numpy_helper.from_array(np.array(trip, np.int64), number))
        graph.initializer.append(numpy_helper.from_array(np.array(True), going))  # noqa: FBT003
        given = dict(zip((i.name for i in body.input), (number, going, *carried), strict=True))
        last = trip == trips - 1
        names = [f"{mark}_stop"]
        names += [o if last and o else f"{mark}_carried_{i}" for i, o in enumerate(node.output[: len(carried)])]
        scanned = [f"{mark}_scanned_{i}" for i in range(len(gathered))]
        parts += _pasted(graph, body, mark, given, [*names, *scanned])
        carried = names[1:]
        for collection, name in zip(gathered, scanned, strict=True):
            collection.append(name)
    for output, names in zip(node.output[len(carried) :], gathered, strict=True):
        if output:
            parts += _stacked(graph, names, output, opset)
    return parts


def _stacked(graph: onnx.GraphProto, names: list[str], output: str, opset: int) -> list[onnx.NodeProto]:
    """The values of all iterations along a new first axis."""
    parts = []
    axes = f"{output}__axes"
    if opset >= 13:  # the axes of Unsqueeze are an input since opset 13
        graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), axes))
    for name in names:
        if opset >= 13:
            parts.append(helper.make_node("Unsqueeze", [name, axes], [f"{name}__row"]))
        else:
            parts.append(helper.make_node("Unsqueeze", [name], [f"{name}__row"], axes=[0]))
    parts.append(helper.make_node("Concat", [f"{name}__row" for name in names], [output], axis=0))
    return parts


def _pasted(
    graph: onnx.GraphProto, body: onnx.GraphProto, mark: str, given: Mapping[str, str], outputs: list[str]
) -> list[onnx.NodeProto]:
    """The nodes of a body with names of their own; its inputs are `given`, its outputs come out under `outputs`."""
    own = {name for node in body.node for name in node.output if name}
    own |= {tensor.name for tensor in body.initializer}
    names = {name: f"{name}{mark}" for name in own} | dict(given)
    for tensor in body.initializer:
        copy = graph.initializer.add()
        copy.CopyFrom(tensor)
        copy.name = names[tensor.name]
    parts = [_renamed(node, names) for node in body.node]
    for inner, outer in zip((output.name for output in body.output), outputs, strict=True):
        if outer:
            parts.append(helper.make_node("Identity", [names.get(inner, inner)], [outer]))
    return parts


def _renamed(node: onnx.NodeProto, names: Mapping[str, str]) -> onnx.NodeProto:
    """A copy of a node under other value names, also in what its own subgraphs read from outside."""
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.input[:] = [names.get(name, name) for name in node.input]
    copy.output[:] = [names.get(name, name) for name in node.output]
    for attribute in copy.attribute:
        for subgraph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            inner = {name for n in subgraph.node for name in n.output} | {i.name for i in subgraph.input}
            outside = {old: new for old, new in names.items() if old not in inner}
            renamed = [_renamed(n, outside) for n in subgraph.node]
            del subgraph.node[:]
            subgraph.node.extend(renamed)
            for output in subgraph.output:
                output.name = outside.get(output.name, output.name)
    return copy
