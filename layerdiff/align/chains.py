"""Chains of one operator, such as three poolings in a row: their steps are paired in order, whatever they hold.

A small window twice is a larger window once, and on a small map every large window gives the same. So where each window
in a chain is wrong in the same way, the numbers of one step can be those that the next should hold. As many steps on
both sides, from one right value: then the first is the first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.operators import is_reshaping, likeness

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.align.structure import Families
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference, Site


def step_by_step(
    matched: Mapping[int, list[str]],
    reference: Reference,
    families: Families[int],
    tensors: Families[str],
    candidate: Candidate,
) -> dict[int, list[str]]:
    """The matches, without those between different steps of two chains that are equally long."""
    found = dict(matched)
    readers: dict[str, dict[str, list[str]]] = {}
    for chain in _site_chains(reference, families):
        members = families.members(chain[0].inputs[0])
        starts = {tensors.root(n) for v in members for n in matched.get(v, ()) if n in tensors}
        op = chain[0].op
        readers[op] = readers.get(op) or _readers(candidate, tensors, op)
        steps = _node_chain(readers[op], starts)
        if len(steps) != len(chain):
            continue
        for site, own in zip(chain, steps, strict=True):
            for value in families.members(site.outputs[0]):
                names = found.get(value, [])
                found[value] = [n for n in names if tensors.root(n) == own or tensors.root(n) not in steps]
    return {value: names for value, names in found.items() if names}


def _site_chains(reference: Reference, families: Families[int]) -> Iterator[list[Site]]:
    """Every run of two or more sites of one operator, each of which works on what the one before gave."""
    before: dict[int, Site] = {}
    behind: dict[int, list[Site]] = {}
    for site in reference.sites:
        told = site.inputs and site.inputs[0] in families
        maker = reference.producer(families.root(site.inputs[0])) if told else None
        if maker is not None and maker.op == site.op and not is_reshaping(site.op) and maker.index != site.index:
            before[site.index] = maker
            behind.setdefault(maker.index, []).append(site)
    for start in reference.sites:
        if start.index in before or start.index not in behind or start.inputs[0] not in families:
            continue
        chain = [start]
        while len(after := behind.get(chain[-1].index, [])) == 1:
            chain.append(after[0])
        if len(chain) > 1 and not behind.get(chain[-1].index):
            yield chain


def _readers(candidate: Candidate, tensors: Families[str], op: str) -> dict[str, list[str]]:
    """The tensors that live nodes like an operator make of each tensor that was computed."""
    graph = candidate.graph
    readers: dict[str, list[str]] = {}
    for index in sorted(graph.live_nodes):
        node = graph.nodes[index]
        if likeness(op, node.op) < 1 or not node.inputs or node.inputs[0] not in tensors:
            continue
        if node.outputs[0] in tensors and tensors.root(node.outputs[0]) == node.outputs[0]:
            readers.setdefault(tensors.root(node.inputs[0]), []).append(node.outputs[0])
    return readers


def _node_chain(readers: Mapping[str, list[str]], starts: set[str]) -> list[str]:
    """The tensors that the one chain of such nodes gives, from any of some tensors; empty where there are several."""
    found: list[str] = []
    ends = [name for start in sorted(starts) for name in readers.get(start, ())]
    while len(ends) == 1:
        found += ends
        ends = readers.get(ends[0], [])
    return [] if ends else found
