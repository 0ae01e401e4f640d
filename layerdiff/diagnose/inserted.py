"""Nodes that the model does not have: casts, quantisation, arithmetic, anything put on an edge."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.diagnose import semantics
from layerdiff.diagnose.difference import What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.wires import under_a_root
from layerdiff.graph import RANDOM
from layerdiff.model import Kind
from layerdiff.patch import IDENTITY, Rewire, Splice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.patch import Patch


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One: without the inserted nodes the value passes on as it is.

    An operator of the model that should change next to nothing (a tiny epsilon is added) looks inserted when it changes
    more; then the nodes are all the model's own, and only differ.
    """
    if stretch.divergence.kind is not Kind.INSERTED:
        yield from _behind_the_value(stretch)
        return
    wide = stretch.widened().comparison
    if wide is not None and not any(d.what in (What.EXTRA, What.MISSING) for d in wide.differences):
        yield from semantics.hypotheses(stretch.widened())
    ops = list(dict.fromkeys(node.op for node in stretch.nodes))
    cause = _cause(stretch, set(ops))
    verbs = ("stands", "changes") if len(ops) == 1 else ("stand", "change")
    behind = _given(stretch) or stretch.divergence.layer or "the input"
    text = f"{', '.join(ops)} {verbs[0]} behind {behind} and {verbs[1]} what it passes on."
    evidence = {"nodes": [n.name for n in stretch.nodes], "operators": ops}
    yield Hypothesis(cause, text, evidence, _bypassed(stretch), decided=_passes_on_what_is_right(stretch))


def _given(stretch: Stretch) -> str | None:
    """The model's input that the nodes change, by name, where it is one."""
    found = stretch.alignment
    inputs = {found.root(value): name for name, value in found.reference.inputs.items()}
    name = inputs.get(found.root(stretch.value))
    return None if name is None else f"the input {name}"


def _behind_the_value(stretch: Stretch) -> Iterator[Hypothesis]:
    """One, where the accused nodes read what they should give out."""
    found = stretch.alignment
    for name in dict.fromkeys(name for node in stretch.nodes for name in node.inputs):
        actual = found.isolated.get(name)
        if name == stretch.origin.slot.tensor or actual is None or not found.holds(stretch.value, actual):
            continue
        ops = list(dict.fromkeys(node.op for node in stretch.nodes if node.op != "Constant"))
        text = f"{', '.join(ops)} change what {stretch.divergence.layer or 'the model'} gives out."
        evidence = {"nodes": [n.name for n in stretch.nodes], "operators": ops}
        patch = (Splice(stretch.origin.slot.tensor, IDENTITY, (("x", name),)),)
        yield Hypothesis(_cause(stretch, set(ops)), text, evidence, patch, whole=True)


def _cause(stretch: Stretch, ops: set[str]) -> str:
    expected, actual = stretch.expected, stretch.actual
    if ops & RANDOM:
        return "training-mode" if "Dropout" in ops else "random"
    if any("QuantizeLinear" in op for op in ops):
        return "quantization"
    if ops <= {"Add", "Constant"} and _under_a_root(stretch):
        return "epsilon"
    if ops <= {"Cast", "Identity"}:
        if expected is not None and expected.dtype.kind == "f":
            over = bool(np.nanmax(np.abs(expected), initial=0.0) > 65504) and actual is not None
            return "overflow" if over and actual is not None and not np.isfinite(actual).all() else "precision"
        return "dtype"
    if ops <= {"Transpose", "Reshape", "Identity"}:
        return "layout"
    return "extra-op"


def _bypassed(stretch: Stretch) -> Patch | None:
    """Every reader of the changed tensor reads the value itself."""
    graph, slot = stretch.alignment.candidate.graph, stretch.origin.slot
    source = stretch.holder(stretch.value)
    if source is None or source == slot.tensor:
        return None
    edges = slot.edges or frozenset(graph.consumers.get(slot.tensor, ()))
    return tuple(Rewire(graph.nodes[node].outputs[0], at, source) for node, at in sorted(edges) if at >= 0)


def _passes_on_what_is_right(stretch: Stretch) -> bool:
    """Whether what comes to the nodes is right, and not only paired with the value that they should pass on."""
    source, found = stretch.holder(stretch.value), stretch.alignment
    array = None if source is None else found.isolated.get(source, found.candidate.tapped.get(source))
    return found.holds(stretch.value, array)


def _under_a_root(stretch: Stretch) -> bool:
    """Whether a small constant is added just before a root, a reciprocal or a logarithm: an epsilon of another size.

    The model's own may be so small that adding it changes nothing, and the node looks inserted.
    """
    graph = stretch.alignment.candidate.graph
    readers = [edge for node in stretch.nodes for name in node.outputs for edge in graph.consumers.get(name, ())]
    return under_a_root(stretch, (array for _, _, array in stretch.constants), readers)
