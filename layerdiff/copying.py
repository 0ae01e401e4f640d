"""Copy nodes of a graph into a new one, with other values for some of the tensors they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from layerdiff.narrow import NARROW
from layerdiff.paste import renamed

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np


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

    def __init__(self, graph: onnx.GraphProto, injections: Sequence[Injection], kinds: Mapping[str, int]) -> None:
        self._graph = graph
        self._kinds = kinds
        self._names = {name: f"{name}__narrow" for name in kinds}
        for tensor in (*graph.input, *graph.initializer) if kinds else ():  # as they are in the file
            self._names.pop(tensor.name, None)
        self._edges: dict[tuple[int, int], str] = {}
        self.feeds: list[onnx.ValueInfoProto] = []
        self.narrowing: list[onnx.NodeProto] = []
        self.widening: list[onnx.NodeProto] = []
        whole: dict[str, str] = {}
        for injection in injections:
            self.feeds.append(_port(injection.feed, injection.value))
            source = self._narrowed(injection.feed, injection.tensor)
            if injection.edges is None:
                whole[injection.tensor] = source
            else:
                self._edges |= dict.fromkeys(injection.edges, source)
        self._read = self._names | whole

    def _narrowed(self, source: str, name: str) -> str:
        """What stands for a tensor inside the graph, given a source of its numbers."""
        if name not in self._kinds:
            return source
        inside = f"{source}__narrow"
        self.narrowing.append(helper.make_node("Cast", [source], [inside], to=self._kinds[name]))
        return inside

    def variable(self, name: str, array: np.ndarray[Any, Any]) -> onnx.ValueInfoProto:
        """A graph input of the type of an array."""
        self._names[name] = self._narrowed(name, name)
        self._read.setdefault(name, self._names[name])
        return _port(name, array)

    def output(self, name: str, known: Mapping[str, onnx.ValueInfoProto]) -> onnx.ValueInfoProto:
        """A graph output in a type that can be fetched.

        Types and shapes inside are left to the runtime: what is fed may have another shape.
        """
        if name in self._kinds:
            inside = self._names.get(name, name)
            self.widening.append(helper.make_node("Cast", [inside], [name], to=NARROW[self._kinds[name]]))
        return known.get(name) or helper.make_empty_tensor_value_info(name)

    def node(self, index: int) -> onnx.NodeProto:
        """The copy of a node, reading injected tensors where it should.

        It has no name: runtimes refuse two of one name, and need none.
        """
        original = self._graph.node[index]
        copy = onnx.NodeProto(op_type=original.op_type, domain=original.domain, attribute=original.attribute)
        if self._read and any(_graphs(original)):
            copy = renamed(copy, self._read)
        read, made, edges = self._read, self._names, self._edges
        copy.input.extend(edges.get((index, at)) or read.get(name, name) for at, name in enumerate(original.input))
        copy.output.extend(made.get(name, name) for name in original.output)
        return copy


def _port(name: str, array: np.ndarray[Any, Any]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def _graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs of a node: branches, or a body."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captured_by(node: onnx.NodeProto) -> dict[str, None]:
    """The tensors of outer graphs that a node's subgraphs read."""
    found: dict[str, None] = {}
    for graph in _graphs(node):
        own = {name for inner in graph.node for name in inner.output} | {port.name for port in graph.input}
        own |= {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
        read = [name for inner in graph.node for name in inner.input] + [port.name for port in graph.output]
        read += [name for inner in graph.node for name in captured_by(inner)]
        found |= {name: None for name in read if name and name not in own}
    return found
