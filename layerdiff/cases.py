"""From an explained origin to a case: what outlives the trace, by name and number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.live import Case, Region
from layerdiff.localise import reference_region

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerdiff.diagnose import Explained, Stretch


def case_of(stretch: Stretch, explained: Explained) -> Case:
    """The case of one origin."""
    graph, slot = stretch.alignment.candidate.graph, stretch.origin.slot
    holders = tuple((value, name) for value in stretch.inputs if (name := stretch.holder(value)) is not None)
    edges = None if slot.edges is None else tuple((graph.nodes[n].outputs[0], at) for n, at in sorted(slot.edges))
    return Case(
        explained.diagnosis,
        stretch.divergence,
        explained.patch,
        _judged(stretch),
        _accused(stretch),
        holders,
        edges,
    )


def _judged(stretch: Stretch) -> Region | None:
    """From right sources to the tensor that came out wrong; what a change may read besides is fed, too."""
    if stretch.origin.wrong is None:
        return None
    tensor, value = stretch.origin.wrong
    alignment, graph = stretch.alignment, stretch.alignment.candidate.graph
    forced = alignment.forced()
    nodes, start = graph.region(tensor, forced)
    sites, border = reference_region(alignment, value)
    inside = {name for index in nodes for name in graph.nodes[index].outputs}
    extra: dict[str, int] = {}
    values = [*stretch.inputs, stretch.value, *border, *reference_region(alignment, stretch.value)[1]]
    for read in values:
        name = stretch.holder(read)
        if name is not None and name not in inside and name not in start:
            extra[name] = read
    feeds = {name: forced.get(name) for name in sorted(start)} | extra
    names, given = _names(stretch, nodes), tuple(feeds.items())
    return Region(tensor, value, given, names, tuple(sorted(sites)), tuple(border), stretch.format)


def _accused(stretch: Stretch) -> Region:
    """The accused nodes and sites alone."""
    alignment, graph, origin = stretch.alignment, stretch.alignment.candidate.graph, stretch.origin
    forced = alignment.forced()
    made = {name for index in origin.nodes for name in graph.nodes[index].outputs}
    read = dict.fromkeys(
        name for i in origin.nodes for name in graph.nodes[i].reads if name not in made and name not in graph.constant
    )
    sites = tuple(site.index for site in stretch.sites)
    feeds = tuple((name, forced.get(name)) for name in read)
    return Region(origin.slot.tensor, origin.value, feeds, _names(stretch, origin.nodes), sites, stretch.inputs)


def _names(stretch: Stretch, nodes: Iterable[int]) -> tuple[str, ...]:
    graph = stretch.alignment.candidate.graph
    return tuple(next(name for name in graph.nodes[index].outputs if name) for index in sorted(nodes))
