"""Copy nodes of a graph into a new one, with other values for some of the tensors they read."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from layerdiff.alone import ALONE
from layerdiff.narrow import NARROW

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np

# Graphsurgeon leaves these out; the type of an empty Optional is one.
_DROPPED_ATTRIBUTES = frozenset({onnx.AttributeProto.TYPE_PROTO, onnx.AttributeProto.TYPE_PROTOS})


def is_dropped(attribute: onnx.AttributeProto) -> bool:
    """Whether graphsurgeon leaves an attribute out, or a copy of its node does: a kind that it lacks, an empty list."""
    if attribute.type in _DROPPED_ATTRIBUTES:
        return True
    value: object = onnx.helper.get_attribute_value(attribute) if not attribute.ref_attr_name else None
    return isinstance(value, list) and not value


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


class Copier:
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
        to = NARROW[self._kinds[name]]
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
        captured: dict[str, gs.Tensor] = {}
        if any(isinstance(attribute, gs.Graph) for attribute in original.attrs.values()):
            captured = {name: self.tensor(t) for name, t in captured_by(original).items()} | self._whole
        copy = original.copy(inputs, [self.tensor(t) for t in original.outputs], captured)
        _restore_kinds(original, copy)
        _drop_empty(copy)
        copy.name = ""  # runtimes refuse two nodes of one name, and need none
        return copy


def _drop_empty(node: gs.Node) -> None:
    """Graphsurgeon cannot write an empty list, whose type it does not keep; the file's own stand in the main graph."""
    for name in [name for name, value in node.attrs.items() if isinstance(value, list) and not value]:
        del node.attrs[name]
    for subgraph in node.attrs.values():
        for inner in subgraph.nodes if isinstance(subgraph, gs.Graph) else ():
            _drop_empty(inner)


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
def quiet() -> Iterator[None]:
    """Graphsurgeon prints what it thinks of a model to stdout, where a library has no business."""
    with ALONE:
        before = G_LOGGER.severity
        G_LOGGER.severity = G_LOGGER.CRITICAL + 1  # what is critical is raised as well
        try:
            yield
        finally:
            G_LOGGER.severity = before


def captured_by(node: gs.Node) -> dict[str, gs.Tensor]:
    """The tensors of outer graphs that a node's subgraphs read, by name."""
    found: dict[str, gs.Tensor] = {}
    for subgraph in node.attrs.values():
        if not isinstance(subgraph, gs.Graph):
            continue
        own = {t.name for inner in subgraph.nodes for t in inner.outputs} | {t.name for t in subgraph.inputs}
        reads = [t for inner in subgraph.nodes for t in inner.inputs] + list(subgraph.outputs)
        reads += [t for inner in subgraph.nodes for t in captured_by(inner).values()]
        found |= {t.name: t for t in reads if t.name and t.name not in own and not isinstance(t, gs.Constant)}
    return found
