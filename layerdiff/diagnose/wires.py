"""A node that reads another tensor than the model does: what that means for the way between the two tensors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import Tie
from layerdiff.diagnose.parts import MOVING, RESHAPING
from layerdiff.graph import RANDOM

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Graph, Node

    Array = np.ndarray[Any, Any]

MASKED = -1e4
"""Numbers below this stand for minus infinity."""

_ROOTS = frozenset({"Sqrt", "Reciprocal", "Log", "Rsqrt"})

SKIPPED = 8
"""So many nodes at most may lie between two tensors for one to be the other without an operator or a small layer."""


@dataclass(frozen=True, slots=True)
class Wire:
    """What a wrong wire is called; `text` goes behind what is read, `decided` is whether it can be nothing else.

    `site` is the reference operator whose weights are in another node, where it is the weights that are exchanged, and
    `layers` are those whose weights it may be.
    """

    cause: str
    text: str = ""
    decided: bool = True
    site: int | None = None
    layers: tuple[str, ...] = ()

    @property
    def evidence(self) -> dict[str, Any]:
        """What it adds to the evidence."""
        found: dict[str, Any] = {} if self.site is None else {"exchanged": True}
        return found | ({"or_weights_of": list(self.layers)} if self.layers else {})


def wire(stretch: Stretch, got: str, wanted: Iterable[str], readers: Iterable[tuple[int, int]] = frozenset()) -> Wire:
    """What it means that `readers` (node and slot) read `got` and not one of the tensors that hold the right value.

    Where the right one is computed from the other by a few nodes, those were left out; where it is the other way round
    and nothing else reads what they make, they were put in. Where both are made by one kind of layer from one tensor,
    exchanged wires and exchanged weights are the same graph; names alone tell.
    """
    graph, edges = stretch.alignment.candidate.graph, set(readers)
    paired = stretch.alignment.forced()  # what is the model's own is not put in
    alone = got not in {port.name for port in graph.outputs} and edges.issuperset(graph.consumers.get(got, ()))
    read = {name for reader, _ in edges if reader >= 0 for name in graph.nodes[reader].inputs}
    for tensor in sorted(wanted):
        if tensor in read:  # in another slot
            return Wire("order")
        skipped = between(graph, got, tensor)
        computing = [node for node in skipped if node.op not in RESHAPING]
        if any(node.index == reader for node in skipped for reader, _ in edges):
            return Wire("order", f"{_ops(computing)} stand in another order")
        if computing:
            cause = _left_out(stretch, computing, edges)
            return Wire(cause, f"{_ops(computing)} is left out")
        inserted = between(graph, tensor, got) if alone else []
        twice = got in paired and stretch.origin.wrong is not None and paired[got] == stretch.origin.wrong[1]
        if inserted and (twice or not any(name in paired for node in inserted for name in node.outputs)):
            cause = put_in(stretch, inserted)
            return Wire(cause, f"{_ops(inserted)} is put in between")
        twins = _twins(stretch, got, tensor)
        if twins is not None:
            return twins
    return Wire("order")


def _ops(nodes: Iterable[Node]) -> str:
    return ", ".join(dict.fromkeys(node.op for node in nodes))


def _left_out(stretch: Stretch, nodes: Sequence[Node], readers: set[tuple[int, int]]) -> str:
    if all(node.op == "Transpose" for node in nodes):
        return "layout"
    if all(masks(node, _arrays(stretch, node)) for node in nodes):
        return "masking"
    small = len(nodes) == 1 and nodes[0].op == "Add" and under_a_root(stretch, _arrays(stretch, nodes[0]), readers)
    return "epsilon" if small else "dropped-op"


def put_in(stretch: Stretch, nodes: Sequence[Node]) -> str:
    """The cause, where a file has nodes that the model has not."""
    ops = {node.op for node in nodes}
    if ops & RANDOM:
        return "training-mode" if "Dropout" in ops else "random"
    if ops <= MOVING:
        return "layout"
    if ops <= {"Cast", "Identity"}:
        return "precision"
    if any("QuantizeLinear" in op for op in ops):
        return "quantization"
    masking = ops <= {"Where", "Add", "Not", "And", "Or"} and any(masks(node, _arrays(stretch, node)) for node in nodes)
    return "masking" if masking else "extra-op"


def under_a_root(stretch: Stretch, arrays: Iterable[Array], readers: Iterable[tuple[int, int]]) -> bool:
    """Whether a small number is added just before a root, a reciprocal, a logarithm or as a divisor: an epsilon."""
    small = any(array.size == 1 and 0 < abs(float(array.reshape(-1)[0])) < 1 for array in arrays)
    nodes = stretch.alignment.candidate.graph.nodes
    return small and any(_is_root(stretch, nodes[index], slot) for index, slot in readers if index >= 0)


def _is_root(stretch: Stretch, node: Node, slot: int) -> bool:
    if node.op == "Div":
        return slot == 1
    exponent = stretch.constant(node.inputs[1]) if node.op == "Pow" and slot == 0 else None
    if exponent is not None and exponent.size == 1:
        power = float(exponent.reshape(-1)[0])
        return power < 0 or power % 1 != 0
    return node.op in _ROOTS


def masks(node: Node, constants: Iterable[Array]) -> bool:
    """Whether a node puts a mask's huge negative numbers in."""
    return node.op in ("Where", "Add") and any(a.dtype.kind == "f" and np.any(a < MASKED) for a in constants)


def _arrays(stretch: Stretch, node: Node) -> list[Array]:
    return [array for name in node.inputs if (array := stretch.constant(name)) is not None]


def between(graph: Graph, source: str, target: str) -> list[Node]:
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
    sites = [
        sorted(s for (n, s), ties in stretch.alignment.tied.items() if n == node.index and ties)
        for node in (one, other)
    ]
    if all(said is None for said in told):
        reference = stretch.alignment.reference
        layers = dict.fromkeys(reference.layer_of(reference.sites[site]) for tied in reversed(sites) for site in tied)
        text = "or the weights of the two are exchanged: nothing in the file tells"
        return Wire("order", text, decided=False, layers=tuple(layers))
    if any(said is False for said in told):
        text = f"{graph.nodes[one.index].name} and {other.name} hold each other's weights"
        return Wire("weights", text, site=sites[1][0] if len(sites[1]) == 1 else None)
    return None


def _weighted(stretch: Stretch, tensor: str) -> Node | None:
    """The node with weights that a tensor comes from, past additions of a constant and what only moves."""
    graph = stretch.alignment.candidate.graph
    for _ in range(SKIPPED):
        index = graph.producer.get(tensor)
        if index is None:
            return None
        node = graph.nodes[index]
        tied = any(k[0] == index and Tie.EXACT in ties.values() for k, ties in stretch.alignment.tied.items())
        if tied and any(array.ndim > 1 for array in _arrays(stretch, node)):
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
