"""One wire that leads from the wrong tensor: with it led from a right one, all the rest as it is cures."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.cycles import closes_a_circle
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.wires import wire
from layerdiff.errors import BackendError
from layerdiff.patch import Rewire

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Node

    Array = np.ndarray[Any, Any]

MOST = 60
"""Wires that are led elsewhere, at most; each costs a run of the few nodes."""


def past(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for the first node of the stretch without which it is right, when all that read it read an operand of it."""
    part, graph = stretch.part, stretch.alignment.candidate.graph
    if part is None:
        return
    own, tapped = _own(stretch), stretch.alignment.candidate.tapped
    for node in own:
        name = node.outputs[0]
        readers = [(n.index, slot) for n in own for slot, read in enumerate(n.inputs) if read == name]
        for source in dict.fromkeys(node.inputs) if readers and name in tapped else ():
            if source not in tapped or not _alike(tapped, name, source) or source in graph.constant:
                continue
            patch = tuple(Rewire(graph.nodes[reader].outputs[0], slot, source) for reader, slot in readers)
            if stretch.holds(patch):
                yield _told(stretch, name, source, readers)
                return


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for the first wire of the stretch that cures it when it comes from another tensor there."""
    part, graph = stretch.part, stretch.alignment.candidate.graph
    if part is None:
        return
    candidate = stretch.alignment.candidate.part(part.model, part.feeds)
    try:
        for node, slot, tensor in islice(_wires(candidate), MOST):
            change = Rewire(node.outputs[0], slot, tensor)
            if stretch.holds((change,)) and not closes_a_circle(graph, (change,)):
                yield _told(stretch, node.inputs[slot], tensor, [(graph.producer[node.outputs[0]], slot)])
                return
    except BackendError:
        return


def _own(stretch: Stretch) -> list[Node]:
    """The file's nodes from right sources to the wrong tensor."""
    assert stretch.part is not None
    outputs = {name for node in stretch.part.model.graph.node for name in node.output}
    graph = stretch.alignment.candidate.graph
    return [n for n in graph.nodes if n.outputs and n.outputs[0] in outputs and n.outputs[0] not in graph.constant]


def _wires(candidate: Candidate) -> Iterator[tuple[Node, int, str]]:
    """Every operand of a node, and every tensor of its type and shape that it could read instead.

    What is fed is right; what the nodes themselves compute comes after that.
    """
    graph, tapped = candidate.graph, candidate.tapped
    made = [name for node in graph.nodes for name in node.outputs if name in tapped and name not in graph.constant]
    for tensor in (*candidate.feeds, *made):
        for node in graph.nodes:
            for slot, name in enumerate(node.inputs):
                if name not in tapped or name in graph.constant or name == tensor or not _alike(tapped, name, tensor):
                    continue
                if graph.producer.get(tensor) is None or node.index not in graph.region(tensor, ())[0]:
                    yield node, slot, tensor


def _alike(tapped: Mapping[str, Array], name: str, other: str) -> bool:
    a, b = tapped[name], tapped[other]
    return a.shape == b.shape and a.dtype == b.dtype and not np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _told(stretch: Stretch, got: str, wanted: str, readers: Sequence[tuple[int, int]]) -> Hypothesis:
    graph = stretch.alignment.candidate.graph
    nodes = [graph.nodes[index] for index, _ in readers]
    found = wire(stretch, got, [wanted], readers)
    text = f"{nodes[0].op} reads {got} where the model reads {wanted}{': ' * bool(found.text)}{found.text}."
    patch = tuple(Rewire(graph.nodes[index].outputs[0], slot, wanted) for index, slot in readers)
    evidence = {"nodes": [node.name for node in nodes], "wanted": wanted, "got": got, **found.evidence}
    return Hypothesis(found.cause, text, evidence, patch, site=found.site, decided=found.decided)
