"""Guards that the inputs leave idle: a clamp, a ReLU whose result is what goes in, and what the file has in its place.

By values such a step is its input, and a node behind that would be one too many: taken out, it leaves the file without
the guard, right for these inputs and wrong for the ones it is there for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.operators import base_name, likeness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.align.structure import Families
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference

_GUARDS = frozenset(
    {"clamp", "clamp_max", "clamp_min", "hardtanh", "maximum", "minimum", "nan_to_num", "relu", "threshold"}
)


def idle_guards(
    matched: Mapping[int, list[str]],
    reference: Reference,
    values: Families[int],
    tensors: Families[str],
    candidate: Candidate,
) -> dict[int, str]:
    """For each idle guard that the file lacks the result of the one node that stands in its place and is no value's."""
    graph = candidate.graph
    holding = {value: {tensors.root(name) for name in names} for value, names in matched.items()}
    taken = {root for roots in holding.values() for root in roots}
    found = {}
    for value in matched:
        site = reference.producer(value)
        if site is None or base_name(site.op) not in _GUARDS or values.root(value) != value:
            continue
        given = [v for v in site.inputs if not reference.values[v].constant]
        shared = holding[value] & holding.get(given[0], set()) if len(given) == 1 else set()
        readers = {n for root in shared for name in tensors.members(root) for n, _ in graph.consumers.get(name, ())}
        nodes = [graph.nodes[index] for index in sorted(readers) if index in graph.live_nodes]
        if any(likeness(site.op, node.op) >= 1 for node in nodes):
            continue
        single = [node for node in nodes if sum(name not in graph.constant for name in node.reads) == 1]
        lost = [node.outputs[0] for node in single if taken.isdisjoint(map(tensors.root, node.outputs))]
        if len(lost) == 1:
            found[value] = lost[0]
    return found
