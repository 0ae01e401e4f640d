"""Two nodes that stand in each other's order: each is right, and one comes before the other instead of behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.parts import MOVING
from layerdiff.diagnose.wires import under_a_root
from layerdiff.patch import Rewire, SetOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Graph, Node
    from layerdiff.patch import Patch

MOST = 20
"""Pairs of neighbours that are tried; each costs a run of the few nodes."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """Two nodes, of which the second alone reads the first; `slots` are those that are not constant."""

    first: Node
    second: Node
    slots: tuple[int, int]

    @property
    def exchanged(self) -> Patch:
        """Each node becomes the other one; their results keep their names."""
        one, two = self.first, self.second
        at, to = self.slots
        before = [*two.inputs]
        before[to] = one.inputs[at]
        behind = [*one.inputs]
        behind[at] = one.outputs[0]
        return (*_become(one, two, before), *_become(two, one, behind))


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for the first two neighbours that cure the stretch when they change places."""
    part = stretch.part
    if part is None:
        return
    graph = stretch.alignment.candidate.graph
    own = {name for node in part.model.graph.node for name in node.output}
    pairs = [pair for node in graph.nodes if own.intersection(node.outputs) if (pair := _pair(graph, node))]
    for pair in pairs[:MOST]:
        if stretch.holds(pair.exchanged):
            yield _told(stretch, pair)
            return


def _pair(graph: Graph, first: Node) -> _Pair | None:
    readers = graph.consumers.get(first.outputs[0], []) if len(first.outputs) == 1 else []
    if len(readers) != 1 or readers[0][0] < 0 or first.outputs[0] in {port.name for port in graph.outputs}:
        return None
    second = graph.nodes[readers[0][0]]
    slots = [[k for k, n in enumerate(node.inputs) if n and n not in graph.constant] for node in (first, second)]
    foreign = any(node.domain or node.captured or len(node.outputs) != 1 for node in (first, second))
    if foreign or [len(s) for s in slots] != [1, 1] or (first.op, first.inputs[1:]) == (second.op, second.inputs[1:]):
        return None
    return _Pair(first, second, (slots[0][0], slots[1][0]))


def _become(node: Node, other: Node, inputs: list[str]) -> Patch:
    longer = [*inputs, *[""] * (len(node.inputs) - len(inputs))]
    wires = tuple(Rewire(node.outputs[0], slot, name) for slot, name in enumerate(longer))
    return (SetOperator(node.outputs[0], other.op, tuple(sorted(other.attributes.items()))), *wires)


def _told(stretch: Stretch, pair: _Pair) -> Hypothesis:
    first, second = pair.first, pair.second
    arrays = [array for name in second.inputs if (array := stretch.constant(name)) is not None]
    cause = "dtype" if "Cast" in (first.op, second.op) else "order"
    if {first.op, second.op} <= MOVING:
        cause = "layout"
    if second.op == "Add" and under_a_root(stretch, arrays, [(first.index, pair.slots[0])]):
        cause = "epsilon"
    text = f"{first.op} comes before {second.op} in the file and behind it in the model."
    return Hypothesis(cause, text, {"nodes": [first.name, second.name]}, pair.exchanged)
