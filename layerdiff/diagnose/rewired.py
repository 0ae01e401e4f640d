"""The right operators wired wrongly: a node reads another tensor than the one that holds the model's value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.wires import wire
from layerdiff.model import Kind
from layerdiff.patch import Rewire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One, where the edges that were healed should come from a tensor that the file has."""
    slot, graph = stretch.origin.slot, stretch.alignment.candidate.graph
    source, edges = stretch.holder(stretch.value), slot.edges
    if edges is None and stretch.divergence.kind is Kind.REWIRED:  # all of the stretch that read it
        own = set() if stretch.part is None else {name for n in stretch.part.model.graph.node for name in n.output}
        readers = graph.consumers.get(slot.tensor, ())
        edges = frozenset((n, at) for n, at in readers if n >= 0 <= at and own.intersection(graph.nodes[n].outputs))
    if not edges or stretch.origin.inserted or source is None or source == slot.tensor:
        return
    nodes = [graph.nodes[node] for node, _ in sorted(edges)]
    found = wire(stretch, slot.tensor, [source], edges)
    text = f"{nodes[0].op} reads {slot.tensor} where the model reads {source}{': ' * bool(found.text)}{found.text}."
    patch = tuple(Rewire(graph.nodes[node].outputs[0], at, source) for node, at in sorted(edges))
    evidence = {"nodes": [node.name for node in nodes], "wanted": source, "got": slot.tensor, **found.evidence}
    yield Hypothesis(found.cause, text, evidence, patch, site=found.site, decided=found.decided)
