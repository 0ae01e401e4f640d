"""The layers of an ONNX graph, as far as names and metadata tell: a tree of calls around its nodes."""

from __future__ import annotations

import ast
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from layerdiff.model import Call

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import onnx

    from layerdiff.graph import Graph, Node
    from layerdiff.model import Site

_SCOPES, _CLASSES = "pkg.torch.onnx.name_scopes", "pkg.torch.onnx.class_hierarchy"
_UNKNOWN = "scope"


@dataclass(slots=True)
class Scopes:
    """Calls by number: layer, call number, type and parent of each; and the call that owns each node."""

    layers: list[tuple[str, int]] = field(default_factory=lambda: [("", 0)])
    types: list[str] = field(default_factory=lambda: ["graph"])
    parents: list[int | None] = field(default_factory=lambda: [None])
    owners: list[int] = field(default_factory=list)

    def add(self, layer: str, call: int, kind: str, parent: int) -> int:
        """The number of a new call."""
        self.layers.append((layer, call))
        self.types.append(kind)
        self.parents.append(parent)
        return len(self.layers) - 1


def scopes_of(graph: Graph, nodes: Sequence[Node]) -> Scopes:
    """The layers that hold some nodes: the module path that an exporter left, else the node's own name."""
    found = Scopes()
    numbers: dict[str, int] = {"": 0}
    again: Counter[str] = Counter()
    classes = _classes(graph.model)
    ops: dict[str, set[str]] = {}
    for node in nodes:
        ops.setdefault(node.scope, set()).add(node.op)
    for node in nodes:
        if not _has_path(graph.model.graph.node[node.index]):
            found.owners.append(found.add(node.name, again[node.name], node.op, 0))
            again[node.name] += 1
            continue
        parts = node.scope.split(".") if node.scope else []
        for depth in range(len(parts)):
            path, above = ".".join(parts[: depth + 1]), ".".join(parts[:depth])
            if path not in numbers:
                only = next(iter(ops[path])) if len(ops.get(path, ())) == 1 else _UNKNOWN
                numbers[path] = found.add(path, again[path], classes.get(path, only), numbers[above])
                again[path] += 1
        found.owners.append(numbers[node.scope])
    found.types[0] = classes.get("", "graph")
    return found


def _has_path(proto: onnx.NodeProto) -> bool:
    return proto.name.startswith("/") or any(entry.key == _SCOPES for entry in proto.metadata_props)


def _classes(model: onnx.ModelProto) -> dict[str, str]:
    """The class of each module path, where the dynamo exporter wrote it down."""
    found: dict[str, str] = {}
    for node in model.graph.node:
        entries = {entry.key: entry.value for entry in node.metadata_props if entry.key in (_SCOPES, _CLASSES)}
        try:
            paths, names = (ast.literal_eval(entries.get(key, "[]")) for key in (_SCOPES, _CLASSES))
        except (ValueError, SyntaxError):
            continue
        if isinstance(paths, list) and isinstance(names, list):  # the last of both is the operator itself
            found |= {str(p): str(n).rpartition(".")[2] for p, n in zip(paths[:-1], names[:-1], strict=False)}
    return found


def calls_of(scopes: Scopes, sites: Sequence[Site], inputs: Iterable[int], outputs: Iterable[int]) -> tuple[Call, ...]:
    """The calls with what each reads from outside and what others read of it."""
    inside: list[set[int]] = [set() for _ in scopes.layers]
    for site in sites:
        for call in _chain(scopes, site.owner):
            inside[call].add(site.index)
    readers: dict[int, set[int]] = {}
    for site in sites:
        for value in site.inputs:
            readers.setdefault(value, set()).add(site.index)
    final = set(outputs)
    found = []
    for number, (layer, call) in enumerate(scopes.layers):
        own = inside[number]
        made = [value for index in sorted(own) for value in sites[index].outputs]
        read = [value for index in sorted(own) for value in sites[index].inputs if value not in set(made)]
        leaving = [value for value in made if value in final or readers.get(value, set()) - own]
        entering, leaving = (tuple(inputs), list(outputs)) if number == 0 else (tuple(dict.fromkeys(read)), leaving)
        parent, kind = scopes.parents[number], scopes.types[number]
        found.append(Call(number, layer, call, kind, parent, entering, tuple(dict.fromkeys(leaving))))
    return tuple(found)


def _chain(scopes: Scopes, call: int) -> Iterable[int]:
    while True:
        yield call
        parent = scopes.parents[call]
        if parent is None:
            return
        call = parent
