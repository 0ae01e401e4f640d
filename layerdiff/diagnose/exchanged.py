"""Two wires that are exchanged: of one node, or each of two nodes reads what the other should read."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.parts import COMMUTATIVE
from layerdiff.diagnose.semantics import NORMS
from layerdiff.diagnose.wires import wire
from layerdiff.patch import Rewire

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Node

_ANY_SHAPE = frozenset(
    {
        "Concat",
        "Sub",
        "Div",
        "Pow",
        "Mod",
        "Where",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "PRelu",
        "BitShift",
    }
)

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


def operands(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for the first node of the stretch that cures it when two of its operands change places."""
    part = stretch.part
    if part is None:
        return
    outputs = {name for node in part.model.graph.node for name in node.output}
    nodes = [n for n in stretch.alignment.candidate.graph.nodes if outputs.intersection(n.outputs)]
    pairs = [(n, a, b) for n in nodes if n.op not in COMMUTATIVE for a, b in combinations(range(len(n.inputs)), 2)]
    pairs = [(node, a, b) for node, a, b in pairs if "" not in (node.inputs[a], node.inputs[b])]
    for node, a, b in [pair for pair in pairs if _alike(stretch, pair[0], pair[1], pair[2])][:MOST]:
        one, other = node.inputs[a], node.inputs[b]
        patch = (Rewire(node.outputs[0], a, other), Rewire(node.outputs[0], b, one))
        if stretch.holds(patch):
            text = f"{node.op} reads {one} and {other} in each other's place."
            cause = "weights" if node.op in NORMS else "order"
            yield Hypothesis(cause, text, {"node": node.name, "operands": [a, b]}, patch)
            return


def _alike(stretch: Stretch, node: Node, first: int, second: int) -> bool:
    """Whether two operands are of one type, and of one shape unless the operator takes any."""
    tapped = stretch.alignment.candidate.tapped
    names = [node.inputs[first], node.inputs[second]]
    found = [stretch.constant(n) if stretch.constant(n) is not None else tapped.get(n) for n in names]
    one, other = found
    if one is None or other is None or one.dtype != other.dtype or names[0] == names[1]:
        return False
    return one.shape == other.shape or node.op in _ANY_SHAPE


def _exchange(
    stretch: Stretch, one: tuple[Node, str], other: tuple[Node, str], patch: tuple[Rewire, Rewire]
) -> Hypothesis:
    (node, first), (reader, second) = one, other
    found = wire(stretch, first, [second])
    cause = "weights" if found.cause == "weights" else "order"
    text = f"{node.op} reads {first} and {reader.op} reads {second}; in the model it is the other way round"
    text += f" ({found.text})." if found.text and found.cause != "dropped-op" else "."
    evidence = {"nodes": [node.name, reader.name], **found.evidence}
    return Hypothesis(cause, text, evidence, patch, site=found.site, decided=found.decided)
