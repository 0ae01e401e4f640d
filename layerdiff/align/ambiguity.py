"""Several values and several tensors that all hold the same numbers: which is which.

A block whose result is scaled by 1e-6 before it is added leaves the sum as it was, within rounding. Values before and
after such a step match the tensors before and after it alike. Where there are as many of one as of the other, they are
paired in canonical order (`structure`). One value that several tensors hold (a ReLU of what is positive anyway)
belongs to the first of them; the others are left to structure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.align.structure import tensor_order, value_order
from layerdiff.operators import likeness

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.align.structure import Families
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference


def in_order(
    matched: Mapping[int, list[str]],
    reference: Reference,
    values: Families[int],
    tensors: Families[str],
    candidate: Candidate,
) -> dict[int, list[str]]:
    """The matches, without those that cross the canonical order in a group of equals."""
    graph = candidate.graph
    roots = {value: values.root(value) for value in matched}
    owners = {name: tensors.root(name) for names in matched.values() for name in names if graph.is_live(name)}
    allowed: dict[int, set[str]] = {}
    groups = [(some, made) for some, made in _groups(matched, roots, owners) if len(some) in (1, len(made))]
    first = {value: i for i, value in enumerate(value_order(reference))} if groups else {}
    position = {name: i for i, name in enumerate(tensor_order(graph))} if groups else {}
    for some, made in groups:
        if len(made) > 1:
            values_in_turn = sorted(some, key=lambda value: (first.get(value, -1), value))
            in_turn = sorted(made, key=lambda name: (position.get(name, -1), name))
            allowed |= {value: {name} for value, name in zip(values_in_turn, in_turn, strict=False)}
    found = {}
    for value, names in matched.items():
        keep = allowed.get(roots[value])
        kept = [n for n in names if keep is None or n not in owners or owners[n] in keep]
        found[value] = kept or names
    return found


def left_to_its_own_node(
    matched: Mapping[int, list[str]],
    reference: Reference,
    values: Families[int],
    tensors: Families[str],
    candidate: Candidate,
) -> dict[int, list[str]]:
    """The matches, without that of a step's result with what goes into the step, where the file has the step.

    What `x + 1e-6` gives is, within rounding, what goes in. A node of its kind that reads that, and whose own result is
    no value's, is the step gone wrong.
    """
    graph = candidate.graph
    taken = {tensors.root(name) for names in matched.values() for name in names}
    holding = {value: {tensors.root(n) for n in names} for value, names in matched.items()}
    found, claimed = dict(matched), set[int]()
    for value, names in matched.items():
        site = reference.producer(value)
        if site is None or values.root(value) != value:
            continue
        given = [v for v in site.inputs if not reference.values[v].constant]
        shared = holding[value].intersection(*(holding.get(v, set()) for v in given)) if len(given) == 1 else set()
        readers = {n for root in shared for name in tensors.members(root) for n, _ in graph.consumers.get(name, ())}
        alike = [
            node
            for node in (graph.nodes[index] for index in sorted(readers) if index in graph.live_nodes)
            if likeness(site.op, node.op) >= 1 and sum(name not in graph.constant for name in node.reads) == 1
        ]
        made = {node.index: set(map(tensors.root, node.outputs)) for node in alike if node.index not in claimed}
        right = next((index for index, roots in made.items() if roots & holding[value]), None)
        if right is not None:  # the step is there: of two in a row, or side by side, the next has another node
            claimed.add(right)
            continue
        own = [index for index, roots in made.items() if taken.isdisjoint(roots)]
        if len(own) == 1:
            found[value] = [name for name in names if tensors.root(name) not in shared]
    return {value: names for value, names in found.items() if names}


def _groups(
    matched: Mapping[int, list[str]], roots: Mapping[int, int], owners: Mapping[str, str]
) -> list[tuple[set[int], set[str]]]:
    """Connected sets of computed values and several live computed tensors that match each other."""
    partners: dict[int, set[str]] = {}
    for value, names in matched.items():
        partners.setdefault(roots[value], set()).update(owners[n] for n in names if n in owners)
    readers: dict[str, list[int]] = {}
    for root, owned in partners.items():
        for name in owned:
            readers.setdefault(name, []).append(root)
    groups = []
    seen: set[int] = set()
    for start, owned in partners.items():
        if start in seen or len(owned) < 2:  # of several tensors some value has two
            continue
        values: set[int] = set()
        tensors: set[str] = set()
        todo = [start]
        while todo:
            root = todo.pop()
            if root in values:
                continue
            values.add(root)
            for name in partners[root] - tensors:
                tensors.add(name)
                todo += readers[name]
        seen |= values
        groups.append((values, tensors))
    return groups
