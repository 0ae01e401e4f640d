"""Lay control flow flat for one sample: the branch that an If takes, the iterations that a Loop or a Scan makes.

What a branch or a body computes cannot be made an output of the main graph. For one sample it need not be: the
condition and the number of iterations are known from a run, and the nodes inside can stand in the main graph, once for
each iteration. The file itself still runs as it is; the flat graph is what is examined.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from layerdiff.paste import pasted, stacked, stored

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Array = np.ndarray[Any, Any]
    Run = Callable[[onnx.ModelProto, list[str]], Mapping[str, Array | None]]

MAX_DEPTH = 16
# Nodes that one Loop or Scan may become: every tensor of every iteration is kept.
MAX_NODES = 10_000
CONTROL_FLOW = ("If", "Loop", "Scan")
_TRIPS = "__trips"


def flattened(model: onnx.ModelProto, run: Run) -> onnx.ModelProto:
    """The model with its control flow laid flat; `run` gives named tensors of a model for the sample.

    What `left_whole` names stays as it is.
    """
    for depth in range(MAX_DEPTH):
        if not any(node.op_type in CONTROL_FLOW for node in model.graph.node):
            break
        counting, wanted = _with_trip_counts(model)
        flat = _one_level(model, run(counting, wanted), depth)
        if flat is None:
            break
        model = flat
    return model


def _reason(node: onnx.NodeProto) -> str:
    if node.op_type == "If":
        return f"it is nested more than {MAX_DEPTH} deep"
    return f"it makes no iteration for this sample, or would become more than {MAX_NODES} nodes"


def left_whole(model: onnx.ModelProto) -> tuple[str, ...]:
    """A sentence for each control flow node that a flattened model still has."""
    return tuple(
        f"{node.op_type} {node.name or node.output[0]} was examined as one node: {_reason(node)}; "
        "the layers inside were not compared one by one"
        for node in model.graph.node
        if node.op_type in CONTROL_FLOW
    )


def _with_trip_counts(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """A copy with what there is to know about its control flow as tensors, and their names.

    A Loop also gives its iteration numbers, as one more scan output; of a Scan it is the shape of what it goes through.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    wanted: list[str] = []
    for index, node in enumerate(model.graph.node):
        name = f"{_TRIPS}_{index}"
        if node.op_type == "If":
            wanted.append(_tells(node, index))
        elif node.op_type == "Loop":
            body = _subgraph(result.graph.node[index], "body")
            body.node.append(helper.make_node("Identity", [body.input[0].name], [name]))
            body.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
            wanted.append(_tells(node, index))
            result.graph.node[index].output.append(wanted[-1])
        elif node.op_type == "Scan" and (scan := _scan_of(node)).swept:
            wanted.append(_tells(node, index))
            result.graph.node.append(helper.make_node("Shape", [scan.swept[0]], wanted[-1:]))
    return result, list(dict.fromkeys(wanted))


def _tells(node: onnx.NodeProto, index: int) -> str:
    """The tensor that tells which branch is taken, or how often the body runs."""
    return str(node.input[0]) if node.op_type == "If" else f"{_TRIPS}_{index}_all"


def _one_level(model: onnx.ModelProto, known: Mapping[str, Array | None], depth: int) -> onnx.ModelProto | None:
    """The model with the outermost control flow laid flat; None when nothing could be."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    changed = False
    for index, node in enumerate(model.graph.node):
        parts: list[onnx.NodeProto] | None = None
        if node.op_type in CONTROL_FLOW:
            flow = _Flow(result.graph, node, f"__{depth}_{index}", opset)
            parts = flow.laid_flat(known.get(_tells(node, index)))
        changed = changed or parts is not None
        result.graph.node.extend([node] if parts is None else parts)
    return result if changed else None


@dataclass(frozen=True, slots=True)
class _Scan:
    """The operands of a Scan: states handed on, tensors gone through, and along which axes in which direction."""

    states: list[str]
    swept: list[str]
    axes: list[int]
    backward: list[bool]
    output_axes: list[int]
    output_backward: list[bool]


def _scan_of(node: onnx.NodeProto) -> _Scan:
    given = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name != "body"}
    count = given["num_scan_inputs"]
    states = len(node.input) - count
    outputs = len(node.output) - states
    return _Scan(
        list(node.input[:states]),
        list(node.input[states:]),
        list(given.get("scan_input_axes", [0] * count)),
        [bool(d) for d in given.get("scan_input_directions", [0] * count)],
        list(given.get("scan_output_axes", [0] * outputs)),
        [bool(d) for d in given.get("scan_output_directions", [0] * outputs)],
    )


@dataclass(frozen=True, slots=True)
class _Flow:
    """One control flow node and the graph that its nodes go into."""

    graph: onnx.GraphProto
    node: onnx.NodeProto
    mark: str
    opset: int

    def laid_flat(self, known: Array | None) -> list[onnx.NodeProto] | None:
        """The nodes that stand for this one, given its condition or count; None where it must stay."""
        if known is None:
            return None
        if self.node.op_type == "If":
            return self._taken_branch("then_branch" if bool(np.all(known)) else "else_branch")
        if self.node.op_type == "Loop":
            return self._iterations(len(known))
        scan = _scan_of(self.node)
        return self._sweep(scan, int(known[scan.axes[0]]))

    def _taken_branch(self, name: str) -> list[onnx.NodeProto]:
        mark = f"{self.mark}_{name}"
        return pasted(self.graph, _subgraph(self.node, name), (mark, mark), {}, list(self.node.output))

    def _iterations(self, trips: int) -> list[onnx.NodeProto] | None:
        carried = list(self.node.input[2:])
        count = len(carried)
        if trips == 0:  # what goes in comes out; only an empty scan output has no counterpart of its own
            if any(self.node.output[count:]):
                return None
            passed = zip(carried, self.node.output, strict=False)
            return [helper.make_node("Identity", [name], [output]) for name, output in passed if output]
        going = stored(self.graph, f"{self.mark}_condition", np.array(True))  # noqa: FBT003

        def given(trip: int) -> tuple[list[onnx.NodeProto], list[str]]:
            number = stored(self.graph, f"{self.mark}_iteration_{trip}_number", np.array(trip, np.int64))
            return [], [number, going]

        return self._repeated(trips, carried, given, [0] * (len(self.node.output) - count))

    def _sweep(self, scan: _Scan, trips: int) -> list[onnx.NodeProto] | None:
        def given(trip: int) -> tuple[list[onnx.NodeProto], list[str]]:
            nodes, names = [], []
            for slot, (name, axis, backward) in enumerate(zip(scan.swept, scan.axes, scan.backward, strict=True)):
                at = trips - 1 - trip if backward else trip
                place = stored(self.graph, f"{self.mark}_iteration_{trip}_place_{slot}", np.array(at, np.int64))
                names.append(f"{self.mark}_iteration_{trip}_element_{slot}")
                nodes.append(helper.make_node("Gather", [name, place], [names[-1]], axis=axis))
            return nodes, names

        return self._repeated(trips, scan.states, given, scan.output_axes, scan.output_backward)

    def _repeated(
        self,
        trips: int,
        carried: list[str],
        given: Callable[[int], tuple[list[onnx.NodeProto], list[str]]],
        axes: list[int],
        backward: list[bool] | None = None,
    ) -> list[onnx.NodeProto] | None:
        """The body once for each iteration, carried values handed on, scan outputs gathered at the end.

        `given` makes what an iteration gets besides the carried values; a Loop gets it before them, a Scan after.
        """
        body = _subgraph(self.node, "body")
        if trips == 0 or trips * len(body.node) > MAX_NODES:
            return None
        count, is_loop = len(carried), self.node.op_type == "Loop"
        gathered: list[list[str]] = [[] for _ in axes]
        parts: list[onnx.NodeProto] = []
        for trip in range(trips):
            mark = f"{self.mark}_iteration_{trip}"
            before, fresh = given(trip)
            operands = [*fresh, *carried] if is_loop else [*carried, *fresh]
            names = dict(zip((port.name for port in body.input), operands, strict=True))
            final = list(self.node.output[:count]) if trip == trips - 1 else [""] * count
            carried = [name or f"{mark}_carried_{i}" for i, name in enumerate(final)]
            rows = [f"{mark}_scanned_{i}" for i in range(len(axes))]
            outputs = [*([f"{mark}_stop"] if is_loop else []), *carried, *rows]
            parts += before + pasted(self.graph, body, (mark, self.mark), names, outputs)
            for collection, row in zip(gathered, rows, strict=True):
                collection.append(row)
        for i, output in enumerate(self.node.output[count:]):
            if output:
                rows = gathered[i][::-1] if backward and backward[i] else gathered[i]
                parts += stacked(self.graph, rows, output, axes[i], self.opset)
        return parts


def _subgraph(node: onnx.NodeProto, name: str) -> onnx.GraphProto:
    found: onnx.GraphProto = next(attribute.g for attribute in node.attribute if attribute.name == name)
    return found
