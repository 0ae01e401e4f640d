"""How far a runtime gets: the node at which it fails, and the layer that this node belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.matches import match_values
from layerdiff.backends import Optimisation
from layerdiff.errors import BackendError, LayerdiffError
from layerdiff.halving import smallest
from layerdiff.limits import limits_for
from layerdiff.operators import likeness

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Graph, Node
    from layerdiff.model import Call, Reference

    Array = np.ndarray[Any, Any]


def fails_at(candidate: Candidate, optimisation: Optimisation, fatal: type[BackendError]) -> Node | None:
    """The node with which the graph, cut off behind it, fails; None where the whole does not. Found by halving.

    Cut off is in the order of computation, whatever branch a node is in.
    """
    graph = candidate.graph
    nodes = [graph.nodes[index] for index in sorted(graph.live_nodes)]
    nodes = [node for node in nodes if any(name in graph.computed_set for name in node.outputs)]

    def survives(count: int) -> bool:
        kept = {node.index for node in nodes[:count]}
        made = (name for node in nodes[:count] for name in node.outputs if name in graph.computed_set)
        ends = [name for name in made if not any(reader in kept for reader, _ in graph.consumers.get(name, ()))]
        try:
            candidate.computed(ends, kept, None, optimisation)
        except BackendError as error:
            return not isinstance(error, fatal)
        return True

    if not nodes or survives(len(nodes)):
        return None
    low, high = 0, len(nodes)  # the first `low` nodes survive, the first `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if survives(middle) else (low, middle)
    return nodes[high - 1]


def guilty_passes(candidate: Candidate) -> tuple[str, ...]:
    """The smallest set of optimisation passes without which the model that ships survives; empty where none is."""

    def survives(passes: Sequence[str]) -> bool:
        try:
            candidate.shipped_without(passes)
        except BackendError:
            return False
        return True

    return () if survives(()) else tuple(smallest(candidate.passes, survives))  # what dies once only is no pass's fault


def add_place(error: BackendError, candidate: Candidate, reference: Reference) -> None:
    """Add to the error with which a runtime refused a graph, or failed while it ran, the node and the layer.

    The error stays as it was where even the first node fails: then it is not about a node.
    """
    graph = candidate.graph
    try:
        node = fails_at(candidate, Optimisation.NONE, BackendError)
        if node is None and (passes := guilty_passes(candidate)):
            error.args = (f"{error}; it runs without {', '.join(passes)}: {candidate.without(passes)}",)
        if node is None or node.index == min(graph.live_nodes):
            return
        ahead = [index for index in sorted(graph.live_nodes) if index < node.index]
        names = [name for index in ahead for name in graph.nodes[index].outputs if name in graph.computed_set]
        known = {**candidate.feeds, **candidate.computed(names, ahead, None)}
    except LayerdiffError:
        return
    values = {v.index: v.array for v in reference.values if v.array is not None and not v.constant}
    matched = match_values(values, known, limits_for(reference, {}, None))
    call = reached(reference, graph, node, matched)
    layer = f", in layer {call.layer}" if call is not None and call.layer else ""
    held = {name for names in matched.values() for name in names}
    right = ": what it reads agrees with the model" if held.issuperset(n for n in node.reads if n in known) else ""
    error.args = (f"{error}; the first node that fails is {node.op} node {node.name!r}{layer}{right}",)


def reached(reference: Reference, graph: Graph, node: Node, matched: Mapping[int, list[str]]) -> Call | None:
    """The call that a node belongs to: by its weights, by what reads the same values, else by its name.

    `matched` are the tensors that were computed before, by the value that each holds.
    """
    open_calls = [c for c in reference.calls if not any(value in matched for value in c.outputs)]
    names = {name.rpartition(".")[0] for name in _parameters(reference, graph, node)}
    by_weight = [call for call in open_calls if call.layer in names]
    if by_weight:
        return by_weight[0]
    read = {value for value, tensors in matched.items() if set(tensors).intersection(node.reads)}
    made = {value for value, tensors in matched.items() if not set(tensors).issubset(node.reads)}  # not by moving alone
    sites = [s for s in reference.sites if read.intersection(s.inputs) and not made.intersection(s.outputs)]
    sites.sort(key=lambda site: (-likeness(site.op, node.op), site.index))
    named = [call for call in reference.calls if node.scope and call.layer == node.scope]
    if named and not (sites and likeness(sites[0].op, node.op) > 0):
        return named[0]
    return reference.calls[sites[0].owner] if sites else None


def _parameters(reference: Reference, graph: Graph, node: Node) -> set[str]:
    """The parameters of the reference that a node holds as they are, or transposed."""
    found: set[str] = set()
    for name in node.inputs:
        array = graph.initializer(name)
        if array is None or array.size < 2:
            continue
        for parameter, known in reference.parameters.items():
            if known.size == array.size and any(
                known.shape == turned.shape and np.array_equal(known, turned) for turned in (array, array.T)
            ):
                found.add(parameter)
    return found
