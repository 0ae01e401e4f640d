"""Nodes that the file lacks, put back where they belong and nothing else changed: what they are is the cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from onnx import helper, numpy_helper

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.parts import MOVING, RESHAPING
from layerdiff.diagnose.semantics import SELECTIONS, cause_at, replaced_by
from layerdiff.diagnose.weights import parameter_behind
from layerdiff.diagnose.wires import between, masks, under_a_root
from layerdiff.operators import base_name, only_moves
from layerdiff.patch import Splice

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import onnx

    from layerdiff.diagnose.parts import Beside, Pairs
    from layerdiff.diagnose.stretch import Comparison, Stretch
    from layerdiff.graph import Node
    from layerdiff.model import Site

MOST = 8
"""Groups of absent nodes that are put back, each one run of the few nodes."""

_VIEWS = RESHAPING | {"Shape"}
_ATTENTION_MASK = frozenset({"Add", "Where", "Trilu", "Expand", "And", "ConstantOfShape"})
_ATTENTION_SCALE = frozenset({"Mul", "Div", "Sqrt"})
_MASK = _ATTENTION_MASK | {"Not", "Or", "Equal", "Greater", "Less"}
_SELECTING = frozenset({"Slice", "Gather", "GatherElements", "GatherND", "Split"})
# Operators of which whatever is absent is called so.
_ONE_NAME = frozenset({"rounding", "pooling", "resize", "recurrent"})


@dataclass(frozen=True, slots=True)
class _Group:
    """Absent nodes that hang together: what they read in the file, and where in the file their result is read."""

    nodes: tuple[Node, ...]
    reads: tuple[tuple[str, str], ...]  # right tensor, and the tensor of the file
    output: str
    readers: tuple[tuple[str, int, str], ...]  # node, slot and what it reads now; none where it is the result itself

    @property
    def sources(self) -> list[str]:
        """The tensors of the file that the nodes read."""
        return sorted(tensor for _, tensor in self.reads)

    @property
    def computing(self) -> list[Node]:
        """The nodes without those that only reshape."""
        return [node for node in self.nodes if node.op not in _VIEWS]


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for every group of absent nodes that can be put back between nodes that the file has."""
    comparison = stretch.comparison
    if comparison is None or not stretch.origin.nodes:
        return
    groups = [*_groups(comparison, RESHAPING), *_groups(comparison, frozenset())]
    for group in dict.fromkeys(groups[:MOST]):
        change = _put_back(stretch, comparison, group)
        if change is not None:
            named = _named(stretch, group)
            ops = [node.op for node in group.computing]
            evidence = {"absent": ops, "reads": group.sources, "at": [r[0] for r in group.readers]}
            yield Hypothesis(named.cause, named.text, evidence, (change,), decided=named.decided)


def _groups(comparison: Comparison, through: frozenset[str]) -> list[_Group]:
    """The absent nodes that compute, in connected groups; absent nodes of some operators are read through.

    An exporter writes reshapes that another does not.
    """
    beside = comparison.beside
    pairs = beside.pairs
    absent = [f for f, g in pairs if g is None and f is not None]
    views = {f.outputs[0]: f.inputs[0] for f in absent if f.op in through and f.inputs}
    nodes = [f for f in absent if f.op not in through and (f.op != "Shape" or not through)]
    owner: dict[str, int] = {}
    groups: dict[int, list[Node]] = {}
    for number, node in enumerate(nodes):
        near = {owner[name] for read in node.inputs if (name := _behind(views, read)) in owner}
        groups[number] = [n for old in sorted(near) for n in groups.pop(old)] + [node]
        owner |= {name: number for one in groups[number] for name in one.outputs}
    found = (
        _group(comparison, pairs, views, tuple(group))
        for group in groups.values()
        if any(n.op not in _VIEWS for n in group)
    )
    return [group for group in found if group is not None]


def _behind(views: Mapping[str, str], name: str) -> str:
    while name in views:
        name = views[name]
    return name


def _group(comparison: Comparison, pairs: Pairs, views: Mapping[str, str], nodes: tuple[Node, ...]) -> _Group | None:
    beside = comparison.beside
    tensors = beside.tensors(pairs)
    made = {name for node in nodes for name in node.outputs}
    reads: dict[str, str] = {}
    for name in (name for node in nodes for name in node.inputs if name and name not in beside.wanted.constants):
        source = _behind(views, name)
        if source in made:
            continue
        if not tensors.get(source):
            return None
        reads[name] = min(tensors[source])
    readers = [
        (f, g, slot)
        for f, g in pairs
        if f is not None and g is not None and f.op == g.op
        for slot, name in enumerate(f.inputs)
        if _behind(views, name) in made
    ]
    ends = {_behind(views, f.inputs[slot]) for f, _, slot in readers}
    result = _behind(views, comparison.fresh.output)
    if len(ends | ({result} & made)) != 1:
        return None
    return _Group(
        nodes,
        tuple(reads.items()),
        (ends or {result}).pop(),
        tuple(_edge(beside, tensors, *reader) for reader in readers),
    )


def _edge(
    beside: Beside, tensors: Mapping[str, frozenset[str]], right: Node, own: Node, slot: int
) -> tuple[str, int, str]:
    at = beside.slot((right, own), slot, tensors)
    place = beside.got.place(own, at)
    return place.node, place.slot, own.inputs[at] if at < len(own.inputs) else ""


def _put_back(stretch: Stretch, comparison: Comparison, group: _Group) -> Splice | None:
    """The change; None where the nodes have bodies, or the file keeps the result in a layout of its own."""
    slot, graph = stretch.origin.slot, stretch.alignment.candidate.graph
    model = _model(comparison, group)
    if model is None:
        return None
    inputs = group.reads
    if group.readers:
        return Splice(group.readers[0][2] or slot.tensor, model, inputs, tuple(r[:2] for r in group.readers))
    if slot.axes is not None or slot.tensor in stretch.alignment.candidate.layout:
        return None
    edges = None if slot.edges is None else tuple((graph.nodes[n].outputs[0], s) for n, s in sorted(slot.edges))
    return Splice(slot.tensor, model, inputs, edges)


def _model(comparison: Comparison, group: _Group) -> onnx.ModelProto | None:
    wanted, made = comparison.beside.wanted, {name for node in group.nodes for name in node.outputs}
    constants = {name for node in group.nodes for name in node.inputs if name in wanted.constants}
    read = {name for node in group.nodes for name in node.inputs if name}
    if read - made - constants - dict(group.reads).keys():  # a reshape between two absent nodes is the group's own
        return None
    try:
        nodes = [helper.make_node(n.op, n.inputs, n.outputs, domain=n.domain, **n.attributes) for n in group.nodes]
    except (TypeError, ValueError):
        return None
    ports = [helper.make_empty_tensor_value_info(name) for name in (*dict(group.reads), group.output)]
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(wanted.constants[name]), name) for name in sorted(constants)
    ]
    graph = helper.make_graph(nodes, "absent", ports[:-1], ports[-1:], tensors)
    return helper.make_model(graph, opset_imports=list(comparison.fresh.model.opset_import))


@dataclass(frozen=True, slots=True)
class _Named:
    """A cause in words; `decided` is whether it can be no other."""

    cause: str
    text: str
    decided: bool = True


def _named(stretch: Stretch, group: _Group) -> _Named:
    """The cause by what is absent, and by what is read in its place."""
    ops, graph = _ops(group.computing), stretch.alignment.candidate.graph
    if not group.readers:  # what is absent makes the result; where the file makes it otherwise, nothing was left out
        ways = [between(graph, source, stretch.origin.slot.tensor) for source in group.sources]
        extra = _extra(stretch)
        if instead := [node for way in ways for node in way if node.index in extra]:
            text = f"The file computes {_ops(instead)} where the model computes {ops}."
            return _replaced(stretch, [n.op for n in group.computing], [n.op for n in instead], text)
    for node, _, now in group.readers:
        if now in group.sources or not now or now in graph.constant:
            continue
        reader = graph.nodes[graph.producer[node]].op
        instead = [n for source in group.sources for n in between(graph, source, now) if n.op != "Identity"]
        if instead:
            text = f"The file computes {_ops(instead)} where the model computes {ops}."
            return _replaced(stretch, [n.op for n in group.computing], [n.op for n in instead], text)
        skipped = [n for source in group.sources for n in between(graph, now, source) if n.op not in RESHAPING]
        if skipped:
            more = _ops([*skipped, *group.computing])
            return _Named(
                "dropped-op", f"{reader} reads {now}; {more} between it and what the model reads is left out."
            )
        sources = ", ".join(group.sources)
        return _Named("order", f"{reader} reads {now} where the model reads {ops} of {sources}, which is not there.")
    cause, names = _cause(stretch, group), _parameters(stretch, group)
    if cause == "weights":
        return _Named(cause, f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} absent from the file.")
    sites = _sites(stretch)
    lacks = f"{sites[0].op.removeprefix('aten.')} lacks {ops} in the file." if len(sites) == 1 else ""
    return _Named(cause, lacks or f"{ops} is missing from the file.")


def _extra(stretch: Stretch) -> set[int]:
    """The nodes of the file that stand for none of the model's."""
    assert stretch.comparison is not None
    pairs = stretch.comparison.beside.pairs
    return {own.index for right, own in pairs if right is None and own is not None and own.op != "Identity"}


def _ops(nodes: Iterable[Node]) -> str:
    return ", ".join(dict.fromkeys(node.op for node in nodes))


def _sites(stretch: Stretch) -> list[Site]:
    return [site for site in stretch.sites if not only_moves(site.op)]


def _replaced(stretch: Stretch, wanted: list[str], got: list[str], text: str) -> _Named:
    """The cause, where other nodes stand in the place of those that are absent."""
    if {*wanted, *got} <= MOVING:
        return _Named("layout", text)
    if len(wanted) == len(got) == 1:
        return _Named(replaced_by(wanted[0], got[0]), text)
    causes = {cause_at(site) for site in _sites(stretch)}
    if len(causes) == 1 and causes <= _ONE_NAME:
        return _Named(str(*causes), text)
    return _Named(causes.pop() or "dropped-op" if len(causes) == 1 else "dropped-op", text, decided=False)


def _cause(stretch: Stretch, group: _Group) -> str:
    ops, sites = {node.op for node in group.computing}, _sites(stretch)
    own = cause_at(sites[0]) if len(sites) == 1 else None
    if ops <= {"Add", "Mul"} and len(_parameters(stretch, group)) == len(group.computing):
        return "weights"
    if any("attention" in site.op for site in sites) and ops <= _ATTENTION_SCALE and len(sites) == 1:
        return "constant"
    if _is_mask(stretch, group):
        return "masking"
    if ops == {"Transpose"}:
        return "layout"
    if _is_epsilon(stretch, group):
        return "epsilon"
    if ops <= _SELECTING and all(base_name(site.op) in SELECTIONS for site in sites):
        return "indexing"
    return own if own in _ONE_NAME else "dropped-op"


def _is_mask(stretch: Stretch, group: _Group) -> bool:
    """Whether what is absent makes a mask and lays it on."""
    ops = {node.op for node in group.computing}
    laid = any(masks(node, _arrays(stretch, node)) for node in group.computing)
    made = "Trilu" in ops and ops.isdisjoint({"MatMul", "Gemm", "Softmax", "Conv"})
    attention = any("attention" in site.op for site in _sites(stretch))
    return made or (laid and ops <= _MASK) or (attention and ops <= _ATTENTION_MASK)


def _is_epsilon(stretch: Stretch, group: _Group) -> bool:
    producer = stretch.alignment.candidate.graph.producer
    readers = [(producer[node], slot) for node, slot, _ in group.readers]
    arrays = [array for node in group.nodes for array in _arrays(stretch, node)]
    return [node.op for node in group.computing] == ["Add"] and under_a_root(stretch, arrays, readers)


def _arrays(stretch: Stretch, node: Node) -> list[np.ndarray]:
    comparison = stretch.comparison
    assert comparison is not None
    return [array for name in node.inputs if (array := comparison.constants.get(name)) is not None]


def _parameters(stretch: Stretch, group: _Group) -> list[str]:
    """The parameters of the model among the constants of absent nodes."""
    found = (parameter_behind(stretch, array) for node in group.nodes for array in _arrays(stretch, node))
    return list(dict.fromkeys(name for name in found if name is not None))
