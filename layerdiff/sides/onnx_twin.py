"""The float64 twin of an ONNX graph: every node once more, on float64 shadows of its operands.

A node runs in ONNX Runtime where that has a kernel for doubles, else in onnx's own reference implementation. What
neither can do, or what would take it too long, runs in its own precision on rounded shadows, and a few units in the
last place are added for the rounding that this hides. Integers and booleans are those of the original, so that the twin
never takes another branch.
"""

from __future__ import annotations

import time
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from layerdiff.alone import ALONE
from layerdiff.backends import Optimisation
from layerdiff.errors import BackendError
from layerdiff.graph import RANDOM
from layerdiff.noise import floor_from

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerdiff.backends import Backend
    from layerdiff.candidate import Candidate
    from layerdiff.graph import Graph
    from layerdiff.model import Noise

    Array = np.ndarray[Any, Any]
    Shadow = Array | list[Array]  # a sequence is a list
    Run = Callable[[dict[str, Shadow]], list[Shadow | None]]

# The reference implementation is numpy, in part with loops in Python (7 µs for each element that AveragePool makes): it
# gets this much time in all, and no node that makes more elements than this.
SECONDS = 60.0
ELEMENTS = 4_000_000
# Units in the last place of the largest value that a node without a float64 kernel is taken to be off by.
UNSEEN_ULPS = 4.0
_FLOATS = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16})


def noise_floor_of(run: Candidate, runtime: Backend) -> dict[str, Noise]:
    """The noise floor of every computed tensor, by name; single nodes run in `runtime`."""
    graph = run.graph
    known = run.tapped.beside(run.constants)
    wide: dict[str, Shadow] = {}
    sources = {name for name in known if name in run.constants or name not in graph.producer}
    twin = _Twin(graph, runtime)
    last_use = {name: index for index in sorted(graph.live_nodes) for name in graph.nodes[index].reads}
    floor: dict[str, Noise] = {}
    for index in sorted(graph.live_nodes):
        node = graph.nodes[index]
        operands = {n: wide[n] if n in wide else _widened(known[n]) for n in node.reads if n in wide or n in sources}
        shadows, exact = twin.outputs(index, operands, known)
        for slot, name in enumerate(node.outputs):
            shadow = shadows[slot] if slot < len(shadows) else None
            if isinstance(shadow, list):
                wide[name] = shadow
            elif name in known and name not in graph.constant:
                wide[name], floor[name] = _judged(known[name], shadow, exact=exact)
        for name in node.reads:
            if last_use[name] == index:
                wide.pop(name, None)
    return floor


def _judged(expected: Array, shadow: Array | None, *, exact: bool) -> tuple[Array, Noise]:
    """The shadow to go on with, and the floor of a tensor from its distance to that."""
    if expected.dtype.kind not in "fc" or shadow is None or shadow.shape != expected.shape:
        shadow = _widened(expected)
    more = 0.0
    if not exact and expected.dtype.kind == "f" and expected.size:
        finite = np.abs(expected[np.isfinite(expected)])
        unit = float(np.finfo(expected.dtype).eps) * float(finite.max(initial=0.0))
        more = UNSEEN_ULPS * unit
    return shadow, floor_from(expected, (shadow,), more)


class _Twin:
    """Runs single nodes in float64; sessions are kept for nodes that are alike."""

    def __init__(self, graph: Graph, runtime: Backend) -> None:
        self._graph = graph
        self._runtime = runtime
        self._sessions: dict[bytes, Run | None] = {}
        self._left = SECONDS

    def outputs(
        self, index: int, operands: Mapping[str, Shadow], known: Mapping[str, Array]
    ) -> tuple[Sequence[Shadow | None], bool]:
        """What a node makes of float64 operands, and whether float64 is what it was computed in."""
        node, proto = self._graph.nodes[index], self._graph.model.graph.node[index]
        if node.op in RANDOM or node.captured or any(name not in operands for name in node.reads):
            return (), node.op in RANDOM
        made = [known[name] for name in node.outputs if name in known]
        if made and all(array.dtype.kind not in "fc" for array in made):
            return (), True  # integers are those of the original
        found = self._wide(proto, operands, sum(array.size for array in made))
        if found is not None:
            return found, True
        narrow = {n: _like(operand, known.get(n)) for n, operand in operands.items()}
        return self._session(proto, narrow, as_it_is=True) or (), False

    def _wide(self, proto: onnx.NodeProto, operands: Mapping[str, Shadow], size: int) -> list[Shadow | None] | None:
        found = self._session(proto, operands)
        if found is None and self._left > 0 and size <= ELEMENTS:
            begin = time.monotonic()
            found = self._evaluated(proto, operands)
            self._left -= time.monotonic() - begin
        return found

    def _session(
        self, proto: onnx.NodeProto, operands: Mapping[str, Shadow], *, as_it_is: bool = False
    ) -> list[Shadow | None] | None:
        if any(isinstance(operand, list) for operand in operands.values()):
            return None
        model, feeds = self._alone(proto, operands, as_it_is=as_it_is)
        key = model.SerializeToString()
        if key not in self._sessions:
            self._sessions[key] = self._opened(model)
        run = self._sessions[key]
        try:
            return None if run is None else run(feeds)
        except BackendError:
            return None

    def _opened(self, model: onnx.ModelProto) -> Run | None:
        try:
            session = self._runtime.open(model, Optimisation.NONE)
        except BackendError:
            return None

        def run(feeds: dict[str, Any]) -> list[Shadow | None]:
            found = list(session.run(feeds).values())
            if any(array is None for array in found):  # a sequence
                raise BackendError("an output is no tensor")
            return list(found)

        return run

    def _evaluated(self, proto: onnx.NodeProto, operands: Mapping[str, Shadow]) -> list[Shadow | None] | None:
        model, feeds = self._alone(proto, operands)
        try:
            with ALONE, warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                found: Any = ReferenceEvaluator(model).run(None, feeds)
        except Exception:  # noqa: BLE001  each operator of the evaluator fails in a way of its own
            return None
        return [made if isinstance(made, (np.ndarray, list)) else None for made in found]

    def _alone(
        self, proto: onnx.NodeProto, operands: Mapping[str, Shadow], *, as_it_is: bool = False
    ) -> tuple[onnx.ModelProto, dict[str, Shadow]]:
        """A model of one node under plain names, so that nodes that are alike give the same bytes; and its feeds."""
        node = onnx.NodeProto()
        node.CopyFrom(proto)
        node.name = node.doc_string = ""
        del node.metadata_props[:]
        names = {name: f"x{i}" for i, name in enumerate(dict.fromkeys(n for n in proto.input if n))}
        node.input[:] = [names.get(name, "") for name in proto.input]
        node.output[:] = [f"y{i}" if name else "" for i, name in enumerate(proto.output)]
        for attribute in node.attribute:
            if not as_it_is and attribute.name == "to" and node.op_type == "Cast" and attribute.i in _FLOATS:
                attribute.i = onnx.TensorProto.DOUBLE
        feeds = {names[name]: array for name, array in operands.items() if name in names}
        inputs = [_declared(name, operand) for name, operand in feeds.items()]
        outputs = [onnx.ValueInfoProto(name=name) for name in node.output if name]
        graph = helper.make_graph([node], "node", inputs, outputs)
        source = self._graph.model
        model = helper.make_model(graph, opset_imports=source.opset_import, ir_version=min(source.ir_version, 10))
        return model, feeds


def _declared(name: str, operand: Shadow) -> onnx.ValueInfoProto:
    if isinstance(operand, list):
        return onnx.ValueInfoProto(name=name)
    kind = helper.np_dtype_to_tensor_dtype(operand.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * operand.ndim)


def _like(operand: Shadow, original: Array | None) -> Shadow:
    """An operand in the type that the original had."""
    return operand if original is None or isinstance(operand, list) else operand.astype(original.dtype)


def _widened(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
