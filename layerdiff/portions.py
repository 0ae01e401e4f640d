"""A graph in portions, so that what one of them makes fits into memory; each runs from what those before it made."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from layerdiff.graph import Graph


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
