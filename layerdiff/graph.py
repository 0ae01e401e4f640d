"""Read and rewrite ONNX graphs.

The candidate is never modified: rewriting copies nodes into a new graph and leaves weights where they are.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import onnx.inliner
import onnx.numpy_helper
import onnx.shape_inference
from google.protobuf.message import DecodeError

from layerdiff.checking import check, check_places
from layerdiff.copying import Copier, Injection, captured_by
from layerdiff.errors import InputError, ModelFileError
from layerdiff.external import FOLDER, checked, folder_of, is_outside, numbers, placed, without_weights
from layerdiff.narrow import FORMATS, NARROW, UNPACKED, has_narrow_types
from layerdiff.outlets import with_outlets
from layerdiff.unfuse import unfused

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Sequence

    import numpy as np

__all__ = ["RANDOM", "Graph", "Injection", "Node", "Port", "load"]

_MOVED_BY = frozenset({"Transpose", "Reshape", "Slice", "Cast", "Identity"})
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
    domain: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def reads(self) -> tuple[str, ...]:
        """Every tensor that the node depends on."""
        return tuple(name for name in (*self.inputs, *self.captured) if name)


def load(source: str | Path | onnx.ModelProto) -> onnx.ModelProto:
    """The model in a file; large weights stay where they are, see `external.py`.

    Raises
    ------
    ModelFileError
        No such file, not ONNX, truncated, or its external data is missing.

    """
    if isinstance(source, onnx.ModelProto):
        return _of_proto(source)
    if not isinstance(source, (str, Path)):
        raise InputError(
            f"candidate: wanted the path of an .onnx file or an onnx.ModelProto, got {type(source).__name__}"
        )
    path = Path(source)
    if not path.is_file():
        raise ModelFileError(f"{path}: no such file; give the path of an .onnx file")
    try:
        model = without_weights(path)
    except (DecodeError, ValueError) as error:
        raise ModelFileError(
            f"{path}: not an ONNX model, or truncated ({path.stat().st_size} bytes); export or copy it again"
        ) from error
    if not model.HasField("graph") or not model.ir_version:
        raise ModelFileError(f"{path}: parses as protobuf but holds no ONNX graph; is this another kind of file?")
    check(model, str(path))
    check_places(model, path)
    try:
        return checked(model)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        wanted = sorted({e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"})
        raise ModelFileError(
            f"{path}: external data cannot be read ({error}); it belongs beside the model as {', '.join(wanted)}"
        ) from error


def _of_proto(source: onnx.ModelProto) -> onnx.ModelProto:
    """A model in memory; where its data is outside, and nothing says where, runtimes look in the working directory."""
    check(source, "ModelProto")
    model = placed(source, Path.cwd())
    folder = folder_of(model)
    if folder is None:
        return model
    check_places(model, folder / "ModelProto")
    try:
        return model if model is source else checked(model)
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise ModelFileError(
            f"ModelProto: its external data cannot be read ({error}); a ModelProto does not say in which folder that "
            "lies: give the path of the .onnx file, or load it with onnx.load(path)"
        ) from error


MAPPED = 64 << 20
"""Bytes of weights that stay mapped: to map a file takes longer than to read from it."""


class Graph:
    """A candidate graph: nodes, producers and consumers, what is alive, what is constant.

    Local functions are inlined, and a runtime's fused operators taken apart unless they are what is examined.
    """

    def __init__(self, model: onnx.ModelProto, *, take_apart: bool = True) -> None:
        if model.functions:
            model = onnx.inliner.inline_local_functions(model)
        if take_apart:
            model = with_outlets(unfused(model))
        self.model = model
        self._folder = folder_of(model)
        self._read: dict[str, np.ndarray[Any, Any]] = {}
        self._mapped = 0
        initializers = {t.name for t in model.graph.initializer} | {
            t.values.name for t in model.graph.sparse_initializer
        }
        self.initializers = frozenset(initializers)
        self.nodes = tuple(_node(index, proto, initializers) for index, proto in enumerate(model.graph.node))
        self.ports = tuple(
            _port(v) for v in model.graph.input
        )  # also those that an initializer fills unless they are fed
        self.inputs = tuple(port for port in self.ports if port.name not in initializers)
        self.outputs = tuple(_port(v) for v in model.graph.output)
        self.producer = {name: node.index for node in self.nodes for name in node.outputs if name}

    def taking(self, names: Iterable[str]) -> Graph:
        """The graph in which some inputs are fed though an initializer would fill them; itself where none is."""
        fed = self.initializers.intersection(names)
        if not fed:
            return self
        model = onnx.ModelProto()
        model.CopyFrom(self.model)
        kept = [tensor for tensor in model.graph.initializer if tensor.name not in fed]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
        return Graph(model, take_apart=False)

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
        return self._alive[0]

    @cached_property
    def _alive(self) -> tuple[frozenset[int], frozenset[str]]:
        """The nodes that some graph output depends on, and what they read; the graph's inputs and outputs are alive."""
        nodes: set[int] = set()
        todo = [port.name for port in self.outputs]
        tensors = {*todo, *(port.name for port in self.inputs)}
        while todo:
            node = self.producer.get(todo.pop())
            if node is not None and node not in nodes:
                nodes.add(node)
                tensors.update(self.nodes[node].reads)
                todo += self.nodes[node].reads
        return frozenset(nodes), frozenset(tensors)

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
    def computed_set(self) -> frozenset[str]:
        """The same tensors, to look names up in."""
        return frozenset(self.computed)

    @cached_property
    def _unfetchable(self) -> frozenset[str]:
        """Sequences, and tensors of a type that cannot even be cast."""
        found = {o for node in self.nodes if node.op in _SEQUENCES for o in node.outputs}
        found |= {v.name for v in self.model.graph.output if v.type.WhichOneof("value") not in ("tensor_type", None)}
        for node in self.nodes:  # nodes are in topological order
            if node.op in ("Identity", "If", "Loop", "Optional") and found.intersection(node.reads):
                found.update(node.outputs)
        return frozenset(found | {name for name, kind in self._narrow.items() if NARROW[kind] is None})

    @cached_property
    def _narrow(self) -> dict[str, int]:
        """The type of every tensor inside that numpy cannot hold."""
        if not has_narrow_types(self.model):
            return {}
        try:
            inferred = onnx.shape_inference.infer_shapes(self.model, data_prop=False)
        except (onnx.shape_inference.InferenceError, ValueError):
            return {}
        inside = (*inferred.graph.value_info, *inferred.graph.output)
        kinds = {v.name: v.type.tensor_type.elem_type for v in inside}
        return {name: kind for name, kind in kinds.items() if kind in NARROW}

    def format_of(self, tensor: str) -> str:
        """The number format of a tensor or initializer that numpy cannot hold, "" for any other.

        An initializer that was unpacked into bytes says so itself.
        """
        stored = self._stored.get(tensor)
        if stored is None:
            return FORMATS.get(self._narrow.get(tensor, 0), "")
        return stored.doc_string if stored.doc_string in UNPACKED else FORMATS.get(stored.data_type, "")

    @cached_property
    def _stored(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    def _stored_as(self, name: str) -> onnx.ValueInfoProto:
        tensor = self._stored[name]
        return onnx.helper.make_tensor_value_info(name, tensor.data_type, tensor.dims)

    def transposed_by(self, node: Node) -> tuple[int, ...] | None:
        """The permutation of a Transpose; None where it is the default, all axes reversed."""
        axes = node.attributes.get("perm")
        return None if axes is None else tuple(axes)

    def opset(self, domain: str = "") -> int:
        """The version of an operator set that the model uses."""
        versions = {entry.domain: int(entry.version) for entry in self.model.opset_import}
        return versions.get(domain, versions.get("ai.onnx", 1) if not domain else 1)

    def dequantiser(self, tensor: str) -> Node | None:
        """The DequantizeLinear that a tensor comes from, as it is or moved; None where it comes from something else."""
        index = self.producer.get(tensor)
        while index is not None and self.nodes[index].op in _MOVED_BY:
            index = self.producer.get(self.nodes[index].inputs[0])
        node = None if index is None else self.nodes[index]
        return node if node is not None and node.op == "DequantizeLinear" else None

    def is_live(self, tensor: str) -> bool:
        """Whether some graph output depends on the tensor."""
        return tensor in self._alive[1]

    def is_dense(self, name: str) -> bool:
        """Whether an initializer's numbers are all stored; a sparse one's are not."""
        return name in self._stored

    def initializer(self, name: str) -> np.ndarray[Any, Any] | None:
        """The numbers of an initializer; those of a large weight are read from its file as they are looked at."""
        stored = self._stored.get(name)
        if stored is None:
            return None
        if name in self._read:
            return self._read[name]
        array = numbers(stored, self._folder)
        if (wide := NARROW.get(stored.data_type)) is not None:
            array = array.astype(onnx.helper.tensor_dtype_to_np_dtype(wide))
        if not is_outside(stored) or self._mapped + array.nbytes <= MAPPED:
            self._mapped += array.nbytes if is_outside(stored) else 0
            self._read[name] = array
        return array

    def region(self, target: str, stop: Iterable[str]) -> tuple[set[int], set[str]]:
        """The nodes that lead to a tensor from the tensors in `stop`, and which of those it starts from."""
        border = stop if isinstance(stop, (AbstractSet, Mapping)) else frozenset(stop)  # not copied for every layer
        nodes: set[int] = set()
        start: set[str] = set()
        todo = [target]
        while todo:
            name = todo.pop()
            if name != target and name in border:
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

    def leading_to(self, targets: Iterable[str], stop: Container[str]) -> tuple[set[int], set[str]]:
        """The nodes that lead to some tensors, and what of `stop` and of the graph's inputs they start from."""
        nodes: set[int] = set()
        start: set[str] = set()
        todo = [self.producer[name] for name in targets]
        while todo:
            index = todo.pop()
            if index in nodes:
                continue
            nodes.add(index)
            for name in self.nodes[index].reads:
                if name in stop or (name not in self.producer and name not in self.initializers):
                    start.add(name)
                elif name in self.producer:
                    todo.append(self.producer[name])
        return nodes, start

    def behind(self, tensors: Iterable[str]) -> set[str]:
        """Some tensors, and all that are computed from them."""
        found: set[str] = set()
        todo = list(tensors)
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo += [made for n, _ in self.consumers.get(name, ()) if n >= 0 for made in self.nodes[n].outputs]
        return found

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
        kinds = {name: kind for name, kind in self._narrow.items() if NARROW[kind] is not None}
        source = self.model
        copier = Copier(source.graph, injections, kinds)
        kept = sorted(nodes) if nodes is not None else range(len(self.nodes))
        inputs = [copier.variable(name, array) for name, array in (sources or {}).items()]
        if sources is None:
            inputs = [port for port in source.graph.input if port.name not in self.initializers]
        copies = [copier.node(index) for index in kept]
        ports = {port.name: port for port in inputs} | {n: self._stored_as(n) for n in outputs if n in self._stored}
        rewritten = onnx.ModelProto(ir_version=min(source.ir_version, 10), opset_import=source.opset_import)
        graph = rewritten.graph
        graph.name = "examined"  # the file's own may be no text
        graph.input.extend([*inputs, *copier.feeds])
        graph.output.extend(copier.output(name, ports) for name in outputs)
        graph.node.extend([*copier.narrowing, *copies, *copier.widening])
        read = dict.fromkeys(name for node in copies for name in (*node.input, *captured_by(node)))
        read |= dict.fromkeys(outputs)
        graph.initializer.extend(self._stored[name] for name in read if name in self._stored)
        graph.sparse_initializer.extend(t for t in source.graph.sparse_initializer if t.values.name in read)
        if self._folder is not None:
            entry = rewritten.metadata_props.add()
            entry.key, entry.value = FOLDER, str(self._folder)
        return rewritten


def _node(index: int, proto: onnx.NodeProto, initializers: Container[str]) -> Node:
    return Node(
        index,
        proto.op_type,
        proto.name or f"<node_{index}>",
        tuple(proto.input),
        tuple(proto.output),
        tuple(name for name in captured_by(proto) if name not in initializers),
        _scope(proto),
        proto.domain,
        {attribute.name: _attribute(attribute) for attribute in proto.attribute if not attribute.ref_attr_name},
    )


def _attribute(attribute: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, list):
        return [one.decode() if isinstance(one, bytes) else one for one in value]
    return value.decode() if isinstance(value, bytes) else value


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


def default_attributes(op: str, domain: str, opset: int) -> dict[str, Any]:
    """What an operator's schema says of attributes that a node leaves out; nothing for unknown operators."""
    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return {}
    found = {}
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            value = onnx.helper.get_attribute_value(attribute.default_value)
            found[name] = value.decode() if isinstance(value, bytes) else value
    return found


def _port(info: onnx.ValueInfoProto) -> Port:
    tensor_type = info.type.tensor_type
    dtype = ""
    if tensor_type.elem_type:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type))
    if not tensor_type.HasField("shape"):
        return Port(info.name, dtype, None)
    shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor_type.shape.dim)
    return Port(info.name, dtype, shape)
