"""One node at another place: what looks like one too many here and one too few there is a single fault."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

from layerdiff.diagnose.parts import RESHAPING
from layerdiff.diagnose.wires import between
from layerdiff.model import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.diagnose.prove import Explained
    from layerdiff.diagnose.stretch import Stretch

NEAR = 3
"""So many nodes at most lie between the two places."""


def joined(stretches: Sequence[Stretch], explained: Sequence[Explained]) -> list[Explained]:
    """The same, where a node that was put in and one that was left out next to it are told as a wrong order."""
    found = list(explained)
    for i, j in pairwise(range(len(found))):
        one, other = (found[k].diagnosis for k in (i, j))
        causes = {one.cause, other.cause}
        if (
            causes == {"extra-op", "dropped-op"}
            and one.verified
            and other.verified
            and _moved(stretches[i], stretches[j])
        ):
            text = f"The same operator stands at another place in the file. {one.summary} {other.summary}"
            for k in (i, j):
                found[k] = replace(found[k], diagnosis=replace(found[k].diagnosis, cause="order", summary=text))
    return found


def _moved(one: Stretch, other: Stretch) -> bool:
    """Whether what is too many in one stretch is what is missing in the other, a few nodes away."""
    if one.divergence.kind is Kind.DROPPED:
        one, other = other, one
    if (one.divergence.kind, other.divergence.kind) != (Kind.INSERTED, Kind.DROPPED) or other.comparison is None:
        return False
    missing = [d.op for d in other.comparison.differences if d.op not in RESHAPING]
    if [node.op for node in one.nodes] != missing:
        return False
    graph = one.alignment.candidate.graph
    here, there = one.nodes[-1].outputs[0], other.origin.slot.tensor
    ways = [between(graph, here, there), between(graph, there, here)]
    return any(0 < len(way) <= NEAR for way in ways)
