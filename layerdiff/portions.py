"""A graph in portions, so that what one makes fits into memory, or is few; each runs from what those before it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from layerdiff.graph import Graph


MANY = 2_000
"""Of more tensors than this, not all are outputs of one session."""
FEW = 250
"""So many are then: what a session costs grows with the product of its nodes, inputs and outputs."""


def few_at_once(graph: Graph, names: Sequence[str]) -> list[Sequence[str]]:
    """The tensors of a graph in groups that a runtime opens in no time, in topological order."""
    if len(names) <= MANY:
        return [names]
    return portions(graph, names, dict.fromkeys(names, 1), FEW) or [names]


def portions(graph: Graph, names: Iterable[str], sizes: Mapping[str, int], most_bytes: int) -> list[Sequence[str]]:
    """The tensors of a graph in groups, in topological order.

    What a group makes and what it reads from others takes at most so many bytes, unless a single node takes more.
    """
    wanted = set(names)
    found: list[Sequence[str]] = []
    group: list[str] = []
    inside: set[str] = set()
    total = 0
    for node in graph.nodes:
        makes = [name for name in node.outputs if name in wanted]
        if not makes:
            continue
        made = sum(sizes.get(name, 0) for name in makes)
        fresh = {name for name in node.reads if name not in inside}
        if group and total + made + sum(sizes.get(name, 0) for name in fresh) > most_bytes:
            found.append(group)
            group, inside, total, fresh = [], set(), 0, set(node.reads)
        group += makes
        inside |= fresh | set(makes)
        total += made + sum(sizes.get(name, 0) for name in fresh)
    return [*found, group] if group else found
