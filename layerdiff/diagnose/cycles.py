"""Whether a change leaves the whole graph one that can be run: what cures a few nodes alone may close a circle."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.patch import Rewire, Splice

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerdiff.graph import Graph
    from layerdiff.patch import Change


def closes_a_circle(graph: Graph, patch: Iterable[Change]) -> bool:
    """Whether a tensor would depend on itself after the changes."""
    reads = {node.outputs[0]: [*node.inputs, *node.captured] for node in graph.nodes if node.outputs}
    made = {name: node.outputs[0] for node in graph.nodes for name in node.outputs if name}
    start: set[str] = set()
    for number, change in enumerate(patch):
        if isinstance(change, Rewire) and change.node in reads:
            reads[change.node] = _with(reads[change.node], change.slot, change.tensor)
            start.add(change.node)
        elif isinstance(change, Splice):
            new = f"/splice/{number}"
            edges = change.edges or _edges(reads, change.tensor)
            reads[new], made[new] = [tensor for _, tensor in change.inputs], new
            for node, slot in edges:
                if node in reads:
                    reads[node] = _with(reads[node], slot, new)
                    start.add(node)
    return any(_returns(reads, made, node) for node in start)


def _with(inputs: list[str], slot: int, tensor: str) -> list[str]:
    longer = [*inputs, *[""] * (slot + 1 - len(inputs))]
    return [tensor if at == slot else name for at, name in enumerate(longer)]


def _edges(reads: Mapping[str, list[str]], tensor: str) -> list[tuple[str, int]]:
    return [(node, slot) for node, names in reads.items() for slot, name in enumerate(names) if name == tensor]


def _returns(reads: Mapping[str, list[str]], made: Mapping[str, str], node: str) -> bool:
    """Whether what a node reads leads back to it."""
    todo, seen = [*reads[node]], set()
    while todo:
        maker = made.get(todo.pop())
        if maker == node:
            return True
        if maker is not None and maker not in seen:
            seen.add(maker)
            todo += reads[maker]
    return False
