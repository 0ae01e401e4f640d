"""Two wires that are exchanged: each of two nodes reads what the other should read, in one layer or across branches."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.wires import wire
from layerdiff.patch import Rewire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Node

MOST = 20
"""Pairs of wires that are tried; each costs a run of the few nodes."""


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for the first two wires into the stretch that cure it when each takes the other's place."""
    part = stretch.part
    if part is None:
        return
    graph = stretch.alignment.candidate.graph
    outputs = {name for node in part.model.graph.node for name in node.output}
    nodes = [node for node in graph.nodes if node.outputs and node.outputs[0] in outputs]
    wires = [(node, slot, name) for node in nodes for slot, name in enumerate(node.inputs) if name in part.feeds]
    tried = 0
    for (one, at, first), (other, to, second) in combinations(wires, 2):
        a, b = part.feeds[first], part.feeds[second]
        if first == second or one is other or a.shape != b.shape or a.dtype != b.dtype:
            continue
        tried += 1
        if tried > MOST:
            return
        patch = (Rewire(one.outputs[0], at, second), Rewire(other.outputs[0], to, first))
        if stretch.holds(patch):
            yield _exchange(stretch, (one, first), (other, second), patch)
            return


def _exchange(
    stretch: Stretch, one: tuple[Node, str], other: tuple[Node, str], patch: tuple[Rewire, Rewire]
) -> Hypothesis:
    (node, first), (reader, second) = one, other
    found = wire(stretch, first, [second])
    cause = "weights" if found.cause == "weights" else "order"
    text = f"{node.op} reads {first} and {reader.op} reads {second}; in the model it is the other way round"
    text += f" ({found.text})." if found.text and found.cause != "dropped-op" else "."
    return Hypothesis(cause, text, {"nodes": [node.name, reader.name]}, patch, decided=found.decided)
