"""Chains of one operator, such as three poolings in a row: their steps are paired in order, whatever they hold.

A small window twice is a larger window once, and on a small map every large window gives the same. So where each window
in a chain is wrong in the same way, the numbers of one step can be those that the next should hold. As many steps on
both sides, from one right value: then the first is the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.align.structure import tensor_families
from layerdiff.operators import is_reshaping, likeness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.align.structure import Family
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference, Site


def step_by_step(
    matched: Mapping[int, list[str]], reference: Reference, families: Mapping[int, Family], candidate: Candidate
) -> dict[int, list[str]]:
    """The matches, without those between different steps of two chains that are equally long."""
    graph = candidate.graph
    owner = {name: family.members[0] for name, family in tensor_families(graph, candidate.moving).items()}
    found = dict(matched)
    for chain in _site_chains(reference, families):
        source = families[chain[0].inputs[0]].members[0]
        starts = {owner[n] for v in families[source].members for n in matched.get(v, ()) if n in owner}
        steps = _node_chain(candidate, owner, starts, chain[0].op)
        if len(steps) != len(chain):
            continue
        for site, own in zip(chain, steps, strict=True):
            for value in families[site.outputs[0]].members:
                names = found.get(value, [])
                found[value] = [n for n in names if owner.get(n) == own or owner.get(n) not in steps]
    return {value: names for value, names in found.items() if names}


def _site_chains(reference: Reference, families: Mapping[int, Family]) -> Iterator[list[Site]]:
    """Every run of two or more sites of one operator, each of which works on what the one before gave."""
    roots = {value: family.members[0] for value, family in families.items()}
    before: dict[int, Site] = {}
    behind: dict[int, list[Site]] = {}
    for site in reference.sites:
        maker = reference.producer(roots[site.inputs[0]]) if site.inputs and site.inputs[0] in roots else None
        if maker is not None and maker.op == site.op and not is_reshaping(site.op) and maker.index != site.index:
            before[site.index] = maker
            behind.setdefault(maker.index, []).append(site)
    for start in reference.sites:
        if start.index in before or start.index not in behind or start.inputs[0] not in roots:
            continue
        chain = [start]
        while len(after := behind.get(chain[-1].index, [])) == 1:
            chain.append(after[0])
        if len(chain) > 1 and not behind.get(chain[-1].index):
            yield chain


def _node_chain(candidate: Candidate, owner: Mapping[str, str], starts: set[str], op: str) -> list[str]:
    """The tensors that the one chain of such nodes gives, from any of some tensors; empty where there are several."""
    graph = candidate.graph
    readers: dict[str, list[str]] = {}
    for index in sorted(graph.live_nodes):
        node = graph.nodes[index]
        if likeness(op, node.op) < 1 or not node.inputs or node.inputs[0] not in owner:
            continue
        if owner.get(node.outputs[0]) == node.outputs[0]:
            readers.setdefault(owner[node.inputs[0]], []).append(node.outputs[0])
    found: list[str] = []
    ends = [name for start in sorted(starts) for name in readers.get(start, ())]
    while len(ends) == 1:
        found += ends
        ends = readers.get(ends[0], [])
    return [] if ends else found
