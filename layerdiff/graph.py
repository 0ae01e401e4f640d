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
import onnx.numpy_helper
import onnx.shape_inference
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError
from onnx_graphsurgeon.logger import G_LOGGER

from layerdiff.errors import InputError, ModelFileError
from layerdiff.unfuse import unfused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

# Operators that move no number: what comes out is what went in, perhaps in another shape.
RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
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
# Types that runtimes compute with and numpy cannot hold, each with one that holds the same numbers: they are fetched
# and fed through Casts. None where ONNX Runtime has no such Cast.
_T = onnx.TensorProto
_NARROW: dict[int, int | None] = {
    _T.BFLOAT16: _T.FLOAT,
    17: _T.FLOAT,  # float8e4m3fn
    18: _T.FLOAT,  # float8e4m3fnuz
    19: _T.FLOAT,  # float8e5m2
    20: _T.FLOAT,  # float8e5m2fnuz
    21: _T.UINT8,  # uint4
    22: _T.INT8,  # int4
    23: None,  # float4e2m1
    24: _T.FLOAT,  # float8e8m0
    25: _T.UINT8,  # uint2
    26: _T.INT8,  # int2
}
_FORMATS = {_T.BFLOAT16: "bfloat16"} | dict.fromkeys((17, 18, 19, 20), "float8")
# Graphsurgeon leaves these out; the type of an empty Optional is one.
_DROPPED_ATTRIBUTES = frozenset({onnx.AttributeProto.TYPE_PROTO, onnx.AttributeProto.TYPE_PROTOS})
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
        """Sequences, and tensors of a type that cannot even be cast."""
        found = {o for node in self.nodes if node.op in _SEQUENCES for o in node.outputs}
        found |= {v.name for v in self.model.graph.output if v.type.WhichOneof("value") not in ("tensor_type", None)}
        for node in self.nodes:  # nodes are in topological order
            if node.op in ("Identity", "If", "Loop", "Optional") and found.intersection(node.reads):
                found.update(node.outputs)
        return frozenset(found | {name for name, kind in self._narrow.items() if _NARROW[kind] is None})

    @cached_property
    def _narrow(self) -> dict[str, int]:
        """The type of every tensor inside that numpy cannot hold."""
        if not _has_narrow_types(self.model):
            return {}
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=False)
        except (onnx.shape_inference.InferenceError, ValueError):
            return {}
        inside = (*inferred.graph.value_info, *inferred.graph.output)
        kinds = {v.name: v.type.tensor_type.elem_type for v in inside}
        return {name: kind for name, kind in kinds.items() if kind in _NARROW}

    def format_of(self, tensor: str) -> str:
        """The number format of a tensor or initializer that numpy cannot hold, "" for any other."""
        kind = self._stored[tensor].data_type if tensor in self._stored else self._narrow.get(tensor, 0)
        return _FORMATS.get(kind, "")

    @cached_property
    def _stored(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def transposed_by(self, node: Node) -> tuple[int, ...] | None:
        """The permutation of a Transpose; None where it is the default, all axes reversed."""
        axes = self._gs.nodes[node.index].attrs.get("perm")
        return None if axes is None else tuple(axes)

    def is_live(self, tensor: str) -> bool:
        """Whether some graph output depends on the tensor."""
        return self.producer.get(tensor, -1) in self.live_nodes or tensor in {port.name for port in self.inputs}

    def initializer(self, name: str) -> np.ndarray[Any, Any] | None:
        """The numbers of an initializer."""
        stored = self._stored.get(name)
        if stored is None:
            return None
        array = np.asarray(onnx.numpy_helper.to_array(stored))
        return array.astype(np.float32) if _NARROW.get(stored.data_type) == _T.FLOAT else array

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
        kinds = {name: kind for name, kind in self._narrow.items() if _NARROW[kind] is not None}
        copier = _Copier(self._gs, injections, kinds)
        kept = sorted(nodes) if nodes is not None else range(len(self.nodes))
        inputs = [copier.variable(name, array) for name, array in (sources or {}).items()]
        if sources is None:
            inputs = [copier.tensor(tensor) for tensor in self._gs.inputs]
        new_nodes = [copier.node(index) for index in kept]
        ends = [copier.output(name) for name in outputs]
        graph = gs.Graph(
            nodes=[*copier.narrowing, *new_nodes, *copier.widening],
            inputs=[*inputs, *copier.feeds],
            outputs=ends,
            name=self._gs.name,
            opset=self._gs.opset,
            import_domains=self._gs.import_domains,
        )
        with _quiet():
            rewritten: onnx.ModelProto = gs.export_onnx(
                graph, do_type_check=False, ir_version=min(self.model.ir_version, 10)
            )
        for node, index in zip(list(rewritten.graph.node)[len(copier.narrowing) :], kept, strict=False):
            node.attribute.extend(a for a in self.model.graph.node[index].attribute if a.type in _DROPPED_ATTRIBUTES)
        return rewritten


class _Copier:
    """Copies nodes into a new graph, tensor by tensor, replacing what is injected on the way.

    Tensors of `kinds` that numpy cannot hold go by another name inside; Casts lead to them and away from them.
    """

    def __init__(self, graph: gs.Graph, injections: Sequence[Injection], kinds: Mapping[str, int]) -> None:
        self._graph = graph
        self._kinds = kinds
        self._inputs = {tensor.name for tensor in graph.inputs}
        self._names: dict[str, gs.Tensor] = {}
        self._whole: dict[str, gs.Variable] = {}
        self._edges: dict[tuple[int, int], gs.Variable] = {}
        self.feeds: list[gs.Variable] = []
        self.narrowing: list[gs.Node] = []
        self.widening: list[gs.Node] = []
        for injection in injections:
            feed = gs.Variable(injection.feed, dtype=injection.value.dtype, shape=injection.value.shape)
            self.feeds.append(feed)
            source = self._narrowed(feed, injection.tensor, f"{injection.feed}__narrow")
            if injection.edges is None:
                self._whole[injection.tensor] = source
            else:
                self._edges |= dict.fromkeys(injection.edges, source)

    def _narrowed(self, source: gs.Variable, name: str, inside: str) -> gs.Variable:
        """What stands for a tensor inside the graph, given a source of its numbers."""
        if name not in self._kinds:
            return source
        narrow = gs.Variable(inside)
        self.narrowing.append(gs.Node("Cast", attrs={"to": self._kinds[name]}, inputs=[source], outputs=[narrow]))
        return narrow

    def variable(self, name: str, array: np.ndarray[Any, Any]) -> gs.Variable:
        """A graph input of the type of an array."""
        source = gs.Variable(name, dtype=array.dtype, shape=array.shape)
        self._names[name] = self._narrowed(source, name, f"{name}__narrow")
        return source

    def output(self, name: str) -> gs.Tensor:
        """The copy of a tensor, in a type that can be fetched."""
        if name not in self._names:
            self._names[name] = gs.Variable(name)
        if name not in self._kinds:
            return self._names[name]
        wide = gs.Variable(name)
        to = _NARROW[self._kinds[name]]
        self.widening.append(gs.Node("Cast", attrs={"to": to}, inputs=[self._names[name]], outputs=[wide]))
        return wide

    def tensor(self, original: gs.Tensor) -> gs.Tensor:
        """The copy of a tensor; constants share their values with the original."""
        if not original.name:
            return gs.Variable.empty()
        if original.name not in self._names:
            # Types and shapes inside are left to the runtime: what is fed may have another shape.
            inside = isinstance(original, gs.Variable) and original.name not in self._inputs
            name = f"{original.name}__narrow" if original.name in self._kinds else original.name
            self._names[original.name] = gs.Variable(name) if inside else original.copy()
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
        _restore_kinds(original, copy)
        copy.name = ""  # runtimes refuse two nodes of one name, and need none
        return copy


def _restore_kinds(original: gs.Node, copy: gs.Node) -> None:
    """Graphsurgeon copies the sequences that a subgraph takes and gives as if they were tensors."""
    for name, subgraph in original.attrs.items():
        if not isinstance(subgraph, gs.Graph):
            continue
        twin = copy.attrs[name]
        for old, new in zip([*subgraph.inputs, *subgraph.outputs], [*twin.inputs, *twin.outputs], strict=True):
            if isinstance(old, gs.Variable) and old.type != "tensor_type":
                new.type = old.type
        for old, new in zip(subgraph.nodes, twin.nodes, strict=True):
            _restore_kinds(old, new)


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


def _has_narrow_types(model: onnx.ModelProto) -> bool:
    """Whether an initializer, a constant, a port or an operator that names a type has one that numpy cannot hold."""
    ports = (v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output))
    attributes = [a for node in model.graph.node for a in node.attribute]
    named = (a.i for a in attributes if a.name in ("to", "dtype", "output_dtype"))
    held = (a.t.data_type for a in attributes if a.HasField("t"))
    stored = (tensor.data_type for tensor in model.graph.initializer)
    return not _NARROW.keys().isdisjoint({*ports, *named, *held, *stored})


def _port(info: onnx.ValueInfoProto) -> Port:
    tensor_type = info.type.tensor_type
    dtype = ""
    if tensor_type.elem_type:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    if not tensor_type.HasField("shape"):
        return Port(info.name, dtype, None)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)
    return Port(info.name, dtype, shape)
