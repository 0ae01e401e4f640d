"""An ONNX file with every name and every trace of its origin taken away."""

from __future__ import annotations

from collections import ChainMap
from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Iterable, MutableMapping


def scrambled(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation with new names for nodes, values, initializers and local functions, and no metadata.

    Docs and value_info are gone, too.

    The names of the graph's inputs and outputs stay: callers feed and fetch by them.
    """
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    keep = {value.name: value.name for value in (*model.graph.input, *model.graph.output)}
    renaming = _Renaming(model.functions)
    renaming.graph(model.graph, ChainMap(keep))
    for function in model.functions:
        renaming.function(function)
    del model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.producer_name = model.producer_version = ""
    model.graph.name = "g"
    return model


class _Renaming:
    """Hands out fresh names; a scope sees the names of the graphs around it."""

    def __init__(self, functions: Iterable[onnx.FunctionProto]) -> None:
        self._count = 0
        self._functions = {(f.domain, f.name, f.overload): self._fresh("f") for f in functions}

    def function(self, function: onnx.FunctionProto) -> None:
        scope: MutableMapping[str, str] = ChainMap({})
        function.name = self._functions[function.domain, function.name, function.overload]
        function.overload = ""
        function.input[:] = [self._define(name, scope) for name in function.input]
        for node in function.node:
            self._node(node, scope)
        function.output[:] = [scope[name] for name in function.output]
        function.doc_string = ""
        del function.value_info[:]
        del function.metadata_props[:]

    def graph(self, graph: onnx.GraphProto, scope: MutableMapping[str, str]) -> None:
        for tensor in graph.initializer:
            tensor.name = self._define(tensor.name, scope)
            tensor.doc_string = ""
            del tensor.metadata_props[:]
        for sparse in graph.sparse_initializer:
            sparse.values.name = self._define(sparse.values.name, scope)
        for value in (*graph.input, *graph.output):
            value.name = self._define(value.name, scope)
            value.doc_string = ""
            del value.metadata_props[:]
        for node in graph.node:
            self._node(node, scope)
        del graph.value_info[:]
        del graph.quantization_annotation[:]
        del graph.metadata_props[:]

    def _node(self, node: onnx.NodeProto, scope: MutableMapping[str, str]) -> None:
        node.input[:] = [scope[name] if name else "" for name in node.input]
        for attribute in node.attribute:
            graphs = [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else list(attribute.graphs)
            for graph in graphs:
                self.graph(graph, _inner(scope))
        node.output[:] = [self._define(name, scope) if name else "" for name in node.output]
        node.name = self._fresh("n")
        if (node.domain, node.op_type, node.overload) in self._functions:
            node.op_type, node.overload = self._functions[node.domain, node.op_type, node.overload], ""
        node.doc_string = ""
        del node.metadata_props[:]

    def _define(self, name: str, scope: MutableMapping[str, str]) -> str:
        return scope.setdefault(name, self._fresh("t")) if name not in scope else scope[name]

    def _fresh(self, letter: str) -> str:
        self._count += 1
        return f"{letter}{self._count}"


def _inner(scope: MutableMapping[str, str]) -> MutableMapping[str, str]:
    return ChainMap({}, *scope.maps) if isinstance(scope, ChainMap) else ChainMap({}, scope)
