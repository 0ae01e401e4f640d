"""Read and rewrite ONNX graphs. The only file that knows onnx and onnx-graphsurgeon.

The candidate is never modified: rewriting copies nodes into a new graph and leaves weights where they are.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx.inliner
import onnx.shape_inference
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.logger import G_LOGGER

from layerdiff.errors import InputError, ModelFileError
from layerdiff.unfuse import unfused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)
_SEQUENCES = frozenset(
    {
        "SequenceConstruct",
        "SequenceEmpty",
        "SequenceInsert",
        "SequenceErase",
        "SplitToSequence",
        "SequenceMap",
        "Optional",
    }
)
# bfloat16, and the eight- and four-bit floats: runtimes compute with them, numpy cannot hold them.
_RARE = frozenset({onnx.TensorProto.BFLOAT16, 17, 18, 19, 20, 21, 22, 23})
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output of the graph; an unknown dimension is None, an unknown type is ""."""

    name: str
    dtype: str
    shape: tuple[int | None, ...] | None


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the main graph. `captured` are tensors that its subgraphs read from outside."""

    index: int
    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    captured: tuple[str, ...]
    scope: str

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor that the node depends on."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)


@dataclass(frozen=True, slots=True)
class Injection:
    """A tensor whose consumers (all, or only the given ``(node, slot)`` edges) read another value instead."""

    tensor: str
    value: np.ndarray[Any, Any]
    edges: frozenset[tuple[int, int]] | None = None

    @property
    def feed(self) -> str:
        """The name of the graph input that carries the value."""
        if self.edges is None:
            return f"{self.tensor}__expected"
        node, slot = min(self.edges)
        return f"{self.tensor}__expected_at_{node}_{slot}"


def load(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model in a file, with its external data.

    Raises
    ------
    ModelFileError
        No such file, not ONNX, truncated, or its external data is missing.

    """
    if isinstance(source, onnx.ModelProto):
        return source
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"candidate: wanted the path of an .onnx file or an onnx.ModelProto, got {type(source).__name__}"
        )
    path = Path(source)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; give the path of an .onnx file")
    try:
        model = onnx.load_model(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: not an ONNX model, or truncated ({path.stat().st_size} bytes); export or copy it again"
        ) from error
    if not model.HasField("graph") or not model.ir_version:
        raise ModelFileError(f"{path}: parses as protobuf but holds no ONNX graph; is this another kind of file?")
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        wanted = sorted({e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"})
        raise ModelFileError(
            f"{path}: external data cannot be read ({error}); it belongs beside the model as {', '.join(wanted)}"
        ) from error
    return model


class Graph:
    """A candidate graph: nodes, producers and consumers, what is alive, what is constant.

    Local functions are inlined, and a runtime's fused operators taken apart unless they are what is examined.
    """

    def __init__(self, model: onnx.ModelProto, *, take_apart: bool = True) -> None:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        if take_apart:
            model = unfused(model)
        self.model = model
        with _quiet():
            self._gs: gs.Graph = gs.import_onnx(model)
        proto_nodes = [n for n in model.graph.node]  # noqa: C416  a list that can be indexed beside gs nodes
        self.nodes = tuple(
            _node(index, node, proto)
            for index, (node, proto) in enumerate(zip(self._gs.nodes, proto_nodes, strict=True))
        )
        initializers = {t.name for t in model.graph.initializer} | {
            t.values.name for t in model.graph.sparse_initializer
        }
        self.initializers = frozenset(initializers)
        self.inputs = tuple(_port(v) for v in model.graph.input if v.name not in initializers)
        self.outputs = tuple(_port(v) for v in model.graph.output)
        self.producer = {name: node.index for node in self.nodes for name in node.outputs if name}

    @cached_property
    def consumers(self) -> dict[str, list[tuple[int, int]]]:
        """Every ``(node, slot)`` that reads a tensor; a subgraph's read has slot -1."""
        found: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for node in self.nodes:
            for slot, name in enumerate(node.inputs):
                if name:
                    found[name].append((node.index, slot))
            for name in node.captured:
                found[name].append((node.index, -1))
        return dict(found)

    @cached_property
    def live_nodes(self) -> frozenset[int]:
        """The nodes that some graph output depends on."""
        alive: set[int] = set()
        todo = [port.name for port in self.outputs]
        while todo:
            node = self.producer.get(todo.pop())
            if node is not None and node not in alive:
                alive.add(node)
                todo += self.nodes[node].reads
        return frozenset(alive)

    @cached_property
    def constant(self) -> frozenset[str]:
        """Initializers, and every tensor that depends on nothing else."""
        found = set(self.initializers)
        for node in self.nodes:  # nodes are in topological order
            if all(name in found for name in node.reads) and node.op not in RANDOM:
                found.update(node.outputs)
        return frozenset(found)

    @cached_property
    def computed(self) -> tuple[str, ...]:
        """The tensors that depend on the inputs and can be fetched, in topological order, dead ones too."""
        hidden = self.constant | self._unfetchable
        return tuple(o for node in self.nodes for o in node.outputs if o and o not in hidden)

    @cached_property
    def _unfetchable(self) -> frozenset[str]:
        """Sequences, and tensors of types that numpy lacks."""
        found = {o for node in self.nodes if node.op in _SEQUENCES for o in node.outputs}
        found |= {v.name for v in self.model.graph.output if v.type.WhichOneof("value") not in ("tensor_type", None)}
        for node in self.nodes:  # nodes are in topological order
            if node.op in ("Identity", "If", "Loop", "Optional") and found.intersection(node.reads):
                found.update(node.outputs)
        if not _has_rare_types(self.model):
            return frozenset(found)
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=False)
        except (onnx.shape_inference.InferenceError, ValueError):
            return frozenset(found)
        rare = {v.name for v in inferred.graph.value_info if v.type.tensor_type.elem_type in _RARE}
        return frozenset(found | rare)

    def is_live(self, tensor: str) -> bool:
        """Whether some graph output depends on the tensor."""
        return self.producer.get(tensor, -1) in self.live_nodes or tensor in {port.name for port in self.inputs}

    def initializer(self, name: str) -> np.ndarray[Any, Any] | None:
        """The numbers of an initializer."""
        tensor = self._gs.tensors().get(name)
        return np.asarray(tensor.values) if isinstance(tensor, gs.Constant) else None

    def region(self, target: str, stop: Iterable[str]) -> tuple[set[int], set[str]]:
        """The nodes that lead to a tensor from the tensors in `stop`, and which of those it starts from."""
        border = set(stop) - {target}
        nodes: set[int] = set()
        start: set[str] = set()
        todo = [target]
        while todo:
            name = todo.pop()
            if name in border:
                start.add(name)
                continue
            index = self.producer.get(name)
            if index is None:
                if name not in self.initializers:
                    start.add(name)
            elif index not in nodes:
                nodes.add(index)
                todo += self.nodes[index].reads
        return nodes, start

    def rewritten(
        self,
        outputs: Sequence[str],
        injections: Sequence[Injection] = (),
        *,
        nodes: Iterable[int] | None = None,
        sources: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> onnx.ModelProto:
        """A new model with other outputs, where injected tensors arrive as extra inputs.

        With `nodes`, only these are kept and `sources` (tensor name to an array of its type) become the inputs.
        """
        copier = _Copier(self._gs, injections)
        kept = sorted(nodes) if nodes is not None else range(len(self.nodes))
        inputs = [copier.variable(name, array) for name, array in (sources or {}).items()]
        if sources is None:
            inputs = [copier.tensor(tensor) for tensor in self._gs.inputs]
        new_nodes = [copier.node(index) for index in kept]
        graph = gs.Graph(
            nodes=new_nodes,
            inputs=[*inputs, *copier.feeds],
            outputs=[copier.by_name(name) for name in outputs],
            name=self._gs.name,
            opset=self._gs.opset,
            import_domains=self._gs.import_domains,
        )
        with _quiet():
            rewritten: onnx.ModelProto = gs.export_onnx(
                graph, do_type_check=False, ir_version=min(self.model.ir_version, 10)
            )
        return rewritten


class _Copier:
    """Copies nodes into a new graph, tensor by tensor, replacing what is injected on the way."""

    def __init__(self, graph: gs.Graph, injections: Sequence[Injection]) -> None:
        self._graph = graph
        self._inputs = {tensor.name for tensor in graph.inputs}
        self._names: dict[str, gs.Tensor] = {}
        self._whole: dict[str, gs.Variable] = {}
        self._edges: dict[tuple[int, int], gs.Variable] = {}
        self.feeds: list[gs.Variable] = []
        for injection in injections:
            feed = gs.Variable(injection.feed, dtype=injection.value.dtype, shape=injection.value.shape)
            self.feeds.append(feed)
            if injection.edges is None:
                self._whole[injection.tensor] = feed
            else:
                self._edges |= dict.fromkeys(injection.edges, feed)

    def variable(self, name: str, array: np.ndarray[Any, Any]) -> gs.Variable:
        """A graph input of the type of an array."""
        self._names[name] = gs.Variable(name, dtype=array.dtype, shape=array.shape)
        return self._names[name]

    def by_name(self, name: str) -> gs.Tensor:
        """The copy of a tensor."""
        if name not in self._names:
            self._names[name] = gs.Variable(name)
        return self._names[name]

    def tensor(self, original: gs.Tensor) -> gs.Tensor:
        """The copy of a tensor; constants share their values with the original."""
        if not original.name:
            return gs.Variable.empty()
        if original.name not in self._names:
            # Types and shapes inside are left to the runtime: what is fed may have another shape.
            inside = isinstance(original, gs.Variable) and original.name not in self._inputs
            self._names[original.name] = gs.Variable(original.name) if inside else original.copy()
        return self._names[original.name]

    def node(self, index: int) -> gs.Node:
        """The copy of a node, reading injected tensors where it should."""
        original = self._graph.nodes[index]
        inputs = [
            self._edges.get((index, slot)) or self._whole.get(tensor.name) or self.tensor(tensor)
            for slot, tensor in enumerate(original.inputs)
        ]
        captured = {name: self.tensor(t) for name, t in _captured(original).items()} | self._whole
        copy = original.copy(inputs, [self.tensor(t) for t in original.outputs], captured)
        copy.name = ""  # runtimes refuse two nodes of one name, and need none
        return copy


@contextmanager
def _quiet() -> Iterator[None]:
    """Graphsurgeon prints its warnings to stdout, where a library has no business."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = before


def _captured(node: gs.Node) -> dict[str, gs.Tensor]:
    """The tensors of outer graphs that a node's subgraphs read, by name."""
    found: dict[str, gs.Tensor] = {}
    for subgraph in node.attrs.values():
        if not isinstance(subgraph, gs.Graph):
            continue
        own = {t.name for inner in subgraph.nodes for t in inner.outputs} | {t.name for t in subgraph.inputs}
        reads = [t for inner in subgraph.nodes for t in inner.inputs] + list(subgraph.outputs)
        reads += [t for inner in subgraph.nodes for t in _captured(inner).values()]
        found |= {t.name: t for t in reads if t.name and t.name not in own and not isinstance(t, gs.Constant)}
    return found


def _node(index: int, node: gs.Node, proto: onnx.NodeProto) -> Node:
    return Node(
        index,
        node.op,
        proto.name or f"<node_{index}>",
        tuple(proto.input),
        tuple(proto.output),
        tuple(_captured(node)),
        _scope(proto),
    )


def _scope(proto: onnx.NodeProto) -> str:
    """The module path that the exporter left on a node; "" when there is none. A hint, never proof."""
    for entry in proto.metadata_props:
        if entry.key == _SCOPES:
            try:
                scopes = ast.literal_eval(entry.value)
            except (ValueError, SyntaxError):
                return ""
            usable = isinstance(scopes, list) and len(scopes) >= 2
            return str(scopes[-2]) if usable else ""  # the last entry is the operator itself
    parts = proto.name.strip("/").split("/")
    if not proto.name.startswith("/") or len(parts) < 2:
        return ""
    before, last = "", parts[0]
    for part in parts[1:-1]:
        if not part.startswith(last + "."):  # members of a container repeat its name: stack, stack.0, stack.0.1
            before = f"{before}{last}."
        last = part
    return before + last


def _has_rare_types(model: onnx.ModelProto) -> bool:
    tensors = any(t.data_type in _RARE for t in model.graph.initializer)
    casts = (a.i for n in model.graph.node if n.op_type == "Cast" for a in n.attribute if a.name == "to")
    return tensors or any(kind in _RARE for kind in casts)


def _port(info: onnx.ValueInfoProto) -> Port:
    tensor_type = info.type.tensor_type
    dtype = ""
    if tensor_type.elem_type:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    if not tensor_type.HasField("shape"):
        return Port(info.name, dtype, None)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)
    return Port(info.name, dtype, shape)
