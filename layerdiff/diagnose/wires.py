"""A node that reads another tensor than the model does: what that means for the way between the two tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerdiff.align.weights import Tie
from layerdiff.diagnose.difference import RESHAPING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Graph, Node

MASKED = -1e4
"""Numbers below this stand for minus infinity."""

SKIPPED = 8
"""So many nodes at most may lie between two tensors for one to be the other without an operator or a small layer."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What a wrong wire is called; `text` goes behind what is read, `decided` is whether it can be nothing else."""

    cause: str
    text: str = ""
    decided: bool = True


def wire(stretch: Stretch, got: str, wanted: Iterable[str]) -> Wire:
    """What it means that a node reads `got` and not one of the tensors that hold the right value.

    Where the right one is computed from the other by a few nodes, those were left out. Where both are made by one kind
    of layer from one tensor, exchanged wires and exchanged weights are the same graph; names alone tell.
    """
    graph = stretch.alignment.candidate.graph
    for tensor in sorted(wanted):
        skipped = _path(graph, got, tensor)
        computing = [node for node in skipped if node.op not in RESHAPING]
        if computing and all(node.op == "Transpose" for node in computing):
            return Wire("layout", "Transpose is left out")
        if computing and all(_masks(stretch, node) for node in computing):
            return Wire("masking", f"{computing[0].op} is left out")
        if computing:
            return Wire("dropped-op", f"{', '.join(dict.fromkeys(n.op for n in computing))} is left out")
        twins = _twins(stretch, got, tensor)
        if twins is not None:
            return twins
    return Wire("order")


def _masks(stretch: Stretch, node: Node) -> bool:
    """Whether a node puts a mask's huge negative numbers in."""
    arrays = [array for name in node.inputs if (array := stretch.constant(name)) is not None]
    return node.op in ("Where", "Add") and any(a.dtype.kind == "f" and np.any(a < MASKED) for a in arrays)


def _path(graph: Graph, source: str, target: str) -> list[Node]:
    """The nodes on the way from one tensor to another, in order; none where there is no way or a long one."""
    reached: set[int] = set()
    todo = [target]
    while todo and len(reached) <= 2 * SKIPPED:
        index = graph.producer.get(todo.pop(0))
        if index is None or index in reached or graph.constant.issuperset(graph.nodes[index].outputs):
            continue
        reached.add(index)
        todo += [name for name in graph.nodes[index].reads if name != source]
    behind, found = {source}, []
    for index in sorted(reached):
        node = graph.nodes[index]
        if behind.intersection(node.reads):
            behind.update(node.outputs)
            found.append(node)
    return found if target in behind and len(found) <= SKIPPED else []


def _twins(stretch: Stretch, got: str, wanted: str) -> Wire | None:
    """The cause, where two layers of one kind read one tensor and only their weights tell which is which."""
    graph = stretch.alignment.candidate.graph
    pair = [_weighted(stretch, name) for name in (got, wanted)]
    if any(node is None for node in pair):
        return None
    one, other = (node for node in pair if node is not None)
    shapes = [[stretch.constant(name).shape for name in n.inputs if stretch.constant(name) is not None] for n in pair]  # type: ignore[union-attr]
    read = [[name for name in node.inputs if stretch.constant(name) is None] for node in (one, other)]
    if one.index == other.index or one.op != other.op or shapes[0] != shapes[1] or read[0] != read[1]:
        return None
    told = [_says(stretch, node) for node in (one, other)]
    if all(said is None for said in told):
        return Wire("order", "or the weights of the two are exchanged: nothing in the file tells", decided=False)
    if any(said is False for said in told):
        return Wire("weights", f"{graph.nodes[one.index].name} and {other.name} hold each other's weights")
    return None


def _weighted(stretch: Stretch, tensor: str) -> Node | None:
    """The node with weights that a tensor comes from, past additions of a constant and what only moves."""
    graph = stretch.alignment.candidate.graph
    for _ in range(SKIPPED):
        index = graph.producer.get(tensor)
        if index is None:
            return None
        node = graph.nodes[index]
        if any(key[0] == index and Tie.EXACT in ties.values() for key, ties in stretch.alignment.tied.items()):
            arrays = [array for name in node.inputs if (array := stretch.constant(name)) is not None]
            if any(array.ndim > 1 for array in arrays):
                return node
        rest = [name for name in node.inputs if name and name not in graph.constant]
        if len(rest) != 1:
            return None
        tensor = rest[0]
    return None


def _says(stretch: Stretch, node: Node) -> bool | None:
    """Whether the names on a node are those of the layer whose weights it holds; None where it has none."""
    reference = stretch.alignment.reference
    ties = [ties for key, ties in stretch.alignment.tied.items() if key[0] == node.index]
    own = {name.rpartition(".")[0] for found in ties for name, tie in found.items() if tie is Tie.EXACT}
    layers = {name.rpartition(".")[0] for name in reference.parameters}
    named = {node.scope} | {name.rpartition(".")[0] for name in node.inputs if name in reference.parameters}
    said = named & layers
    return bool(said & own) if said and own else None
