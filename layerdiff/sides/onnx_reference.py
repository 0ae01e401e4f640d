"""An ONNX model as the reference, to see what a simplifier, an optimizer or a newer exporter changed.

The graph runs without optimisations and with every tensor visible, as a candidate does. What is written down has the
form of a recorded torch module: nodes are the sites, initializers the parameters, and the module paths that an exporter
left in names and metadata the calls. A node without a path is a layer of its own, under its own name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import defs, helper

from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.candidate import Candidate
from layerdiff.checking import walking
from layerdiff.graph import RANDOM, Graph, load
from layerdiff.limits import limit_for
from layerdiff.model import Operand, Reference, Replay, Site, Value
from layerdiff.operators import ONNX
from layerdiff.rerun import distance
from layerdiff.samples import feeds_for
from layerdiff.shelf import Made
from layerdiff.sides.base import Unstable
from layerdiff.sides.onnx_scopes import calls_of, scopes_of
from layerdiff.sides.onnx_twin import noise_floor_of
from layerdiff.tensors import named_tensors, to_array

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx

    from layerdiff.backends import Backend
    from layerdiff.fp32 import Setting
    from layerdiff.graph import Node
    from layerdiff.model import Noise
    from layerdiff.samples import Sample
    from layerdiff.store import Store

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class OnnxNode:
    """One node as a site calls it: enough to put it into another graph."""

    proto: onnx.NodeProto
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    opsets: tuple[tuple[str, int], ...]


class OnnxReference:
    """A graph that is right by definition, and the runtime that runs it."""

    kind = "ONNX"
    device = "cpu"

    def __init__(
        self,
        source: str | Path | onnx.ModelProto,
        backend: Backend | None = None,
        twin: Backend | None = None,
        store: Store | None = None,
    ) -> None:
        self._store = store
        self.label = Path(source).name if isinstance(source, (str, Path)) else "ModelProto"
        self.warnings: tuple[str, ...] = ()
        self._source = source
        with walking(self.label):
            self._graph = Graph(load(source))
        self._backend = backend or OnnxRuntime()
        self._twin = twin or OnnxRuntime(threads=1)
        self.backends = (self._backend, self._twin)
        self._running: tuple[Sample, Candidate] | None = None

    def feeds(self, sample: Sample) -> dict[str, Array]:
        """The arrays of the sample under the names of the graph's inputs."""
        positional = list(named_tensors(sample.args).values())
        ports = self._graph.inputs if len(positional) <= len(self._graph.inputs) else self._graph.ports
        names = [port.name for port in ports]
        if len(positional) > len(names):  # refused below, with all of them told
            names = [str(position) for position in range(len(positional))]
        tensors = named_tensors(dict(sample.kwargs)) | dict(zip(names, positional, strict=False))
        arrays = {name: array for name, tensor in tensors.items() if (array := to_array(tensor)) is not None}
        return feeds_for(self._graph, arrays)

    def capture(self, sample: Sample) -> Reference:
        """The dataflow graph of one run without optimisations."""
        return _Builder(self._with(sample)).reference()

    def unstable(self, sample: Sample, reference: Reference) -> Unstable:
        """What a second run gives otherwise, where a node draws at random."""
        if not any(site.op.removeprefix(ONNX) in RANDOM for site in reference.sites):
            return Unstable()
        again = self.capture(sample)
        arrays = ((a.index, a.array, b.array) for a, b in zip(reference.values, again.values, strict=True))
        gaps = {index: distance(a, b) for index, a, b in arrays if a is not None and b is not None}
        return Unstable({index: gap for index, gap in gaps.items() if gap > 0})

    def as_set(self, sample: Sample, reference: Reference) -> Mapping[Setting, Mapping[int, float]]:
        """Nothing: the settings are torch's."""
        del sample, reference
        return {}

    def noise_floor(self, sample: Sample, reference: Reference) -> dict[int, Noise]:
        """The distance of every tensor to a run in float64, node by node."""
        run = self._with(sample)
        of_tensors = noise_floor_of(run, self._twin)
        names = tensor_values(run.graph)
        floor = {value: of_tensors[name] for name, value in names.items() if name in of_tensors}
        self._note_own_optimisations(run, reference, floor)
        return floor

    def _with(self, sample: Sample) -> Candidate:
        if self._running is None or self._running[0] is not sample:
            feeds = self.feeds(sample)
            run = Candidate(self._source, self._graph.taking(feeds), self._backend, feeds, store=self._store)
            self._running = (sample, run.flat())
        return self._running[1]

    def _note_own_optimisations(self, run: Candidate, reference: Reference, floor: Mapping[int, Noise]) -> None:
        """Warn where the reference file itself gives other outputs with the runtime's optimisations."""
        shipped = self._backend.open(self._source, Optimisation.AS_SHIPPED).run(run.feeds)
        for name, value in reference.outputs.items():
            expected, actual = reference.values[value].array, shipped.get(name)
            if expected is None or actual is None or expected.dtype.kind != "f" or expected.shape != actual.shape:
                continue
            limit = limit_for(expected, str(expected.dtype), floor.get(value))
            gap = np.abs(actual.astype(np.float64) - expected.astype(np.float64))
            if not np.all((gap <= limit) | ~np.isfinite(expected)):
                text = (
                    f"the reference's own output {name} is another one with the runtime's optimisations (max-abs "
                    f"{np.nanmax(gap):.2g}); the candidate is held against the run without them"
                )
                self.warnings = tuple(dict.fromkeys((*self.warnings, text)))


def tensor_values(graph: Graph) -> dict[str, int]:
    """The number that each tensor gets as a value: inputs first, then what live nodes read and make, in their order."""
    names = [port.name for port in graph.inputs]
    for index in sorted(graph.live_nodes):
        names += [name for name in (*graph.nodes[index].reads, *graph.nodes[index].outputs) if name]
    names += [port.name for port in graph.outputs]
    return {name: index for index, name in enumerate(dict.fromkeys(names))}


class _Builder:
    """Writes down the run of a graph in the form of a recorded torch module."""

    def __init__(self, run: Candidate) -> None:
        self._graph = run.graph
        self._numbers = tensor_values(run.graph)
        self._known = run.tapped.beside(run.constants)
        self._nodes = [run.graph.nodes[index] for index in sorted(run.graph.live_nodes)]
        self._parameters = self._stored()

    def _stored(self) -> Made[str]:
        """Initializers, and the numbers of Constant nodes: simplifiers turn one into the other."""
        graph, known = self._graph, self._known
        names = [name for name in self._numbers if graph.is_dense(name)]
        names += [n.outputs[0] for n in self._nodes if n.op == "Constant" and n.outputs[0] in known]

        def numbers(name: str) -> Array:
            array = graph.initializer(name) if graph.is_dense(name) else known[name]
            assert array is not None
            return _plain(array)

        return Made(dict.fromkeys(names), numbers)

    def reference(self) -> Reference:
        """The whole graph."""
        nodes = [node for node in self._nodes if not set(node.outputs) <= set(self._parameters)]
        makers = {name: site for site, node in enumerate(nodes) for name in node.outputs if name}
        values = tuple(self._value(name, makers.get(name)) for name in self._numbers)
        scopes = scopes_of(self._graph, nodes)
        sites = tuple(self._site(index, node, scopes.owners[index]) for index, node in enumerate(nodes))
        inputs = {port.name: self._numbers[port.name] for port in self._graph.inputs}
        outputs = {port.name: self._numbers[port.name] for port in self._graph.outputs}
        calls = calls_of(scopes, sites, inputs.values(), outputs.values())
        return Reference(values, sites, calls, inputs, outputs, self._parameters)

    def _value(self, name: str, site: int | None) -> Value:
        constant = name in self._graph.constant
        if name in self._parameters:
            array = self._parameters[name]
            return Value(self._numbers[name], array.shape, str(array.dtype), None, None, name, constant)
        held = self._known.held(name)
        shape, dtype = ((), "") if held is None else (held.shape, str(held.dtype))
        return Value(self._numbers[name], shape, dtype, held, site, None, constant)

    def _site(self, index: int, node: Node, owner: int) -> Site:
        reads = tuple(self._numbers[name] for name in node.reads)
        made = tuple(self._numbers[name] for name in node.outputs if name)
        model = self._graph.model
        opsets = tuple((entry.domain, int(entry.version)) for entry in model.opset_import)
        own = OnnxNode(model.graph.node[node.index], node.reads, tuple(filter(None, node.outputs)), opsets)
        return Site(
            index,
            ONNX + node.op,
            owner,
            reads,
            made,
            _arguments(model, node),
            Replay(own, tuple(map(Operand, reads)), {}),
        )


def _arguments(model: onnx.ModelProto, node: Node) -> dict[str, Any]:
    """The attributes of a node, with the defaults of its operator; an axis also by torch's name for it."""
    proto = model.graph.node[node.index]
    opset = next((entry.version for entry in model.opset_import if entry.domain == proto.domain), 1)
    found: dict[str, Any] = {}
    if defs.has(node.op, opset, proto.domain):
        schema = defs.get_schema(node.op, opset, proto.domain)
        defaults = ((name, a.default_value) for name, a in schema.attributes.items() if a.default_value.type)
        found = {name: helper.get_attribute_value(default) for name, default in defaults}
    simple = (a for a in proto.attribute if a.type in _SIMPLE)
    found |= {attribute.name: helper.get_attribute_value(attribute) for attribute in simple}
    return found | ({"dim": found["axis"]} if "axis" in found else {})


def _plain(array: Array) -> Array:
    """A weight in a type that numpy computes with; bfloat16 and smaller floats are widened without loss."""
    return array if array.dtype.kind in "fciub" else array.astype(np.float32)


_SIMPLE = frozenset(range(1, 4)) | frozenset(
    range(6, 9)
)  # numbers and strings, and lists of them: no tensors or graphs
