"""From pairs to origins: where good values go in and a wrong one comes out, as narrowly as can be proven.

An origin starts as a wrong tensor all of whose sources are right. Between sources and tensor lie some reference
operators and some ONNX nodes. The earliest reference value that, put somewhere in that region, makes the tensor right
again ends the faulty stretch: what comes after it is innocent. Trials run on the few nodes of the region alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import BackendError
from layerdiff.graph import Injection
from layerdiff.operators import base_name, only_moves
from layerdiff.precision import Rounded, explained, is_diffuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerdiff.align import Alignment

    Array = np.ndarray[Any, Any]

TRIALS = 150
MOST_READERS = 5
_FORWARD = 50
"""Nodes behind a tensor that are looked at for what comes out right."""


@dataclass(frozen=True, slots=True)
class Slot:
    """A place of the candidate graph where a value can be put: a tensor, or one edge from it to a node.

    `axes` permutes the value first, where the candidate keeps it in another layout.
    """

    tensor: str
    edges: frozenset[tuple[int, int]] | None = None
    axes: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A faulty stretch: reference sites on one side, ONNX nodes on the other, and where putting the value in heals.

    Inserted nodes have no reference side; `readers` are the sites that get to read what they changed. Rewired nodes
    are right and read something else than the value. `wrong` is the tensor that came out wrong from right sources, and
    the value it should hold: where the search started.
    """

    value: int
    slot: Slot
    sites: tuple[int, ...]
    nodes: tuple[int, ...]
    inserted: bool = False
    rewired: bool = False
    provable: bool = True
    readers: tuple[int, ...] = ()
    wrong: tuple[str, int] | None = field(default=None, compare=False)


def find_origins(alignment: Alignment, misstored: frozenset[str] = frozenset()) -> tuple[list[Origin], list[Rounded]]:
    """The origins in execution order, each as narrow as trials could make it; and what a number format explains.

    Rounding is only set apart when it is all over the graph: a single rounded layer is an origin. So is one that reads
    a constant which is known not to be the model's (asked for where rounding is all over), however little that shows.
    """
    if not alignment.isolated and not alignment.misshapen:
        return [], []
    forced = alignment.forced()
    isolated = alignment.isolated
    wrong = [
        tensor
        for tensor, value in forced.items()
        if not (
            alignment.holds_in(isolated, value, tensor) if tensor in isolated else _fed_right(alignment, value, tensor)
        )
    ]
    rounded = [r for t in wrong if (r := explained(alignment, t, forced[t], forced, misstored)) is not None]
    if misstored or is_diffuse(alignment, rounded):
        wrong = sorted(set(wrong) - {r.tensor for r in rounded})
    else:
        rounded = []
    position = {name: i for i, name in enumerate(alignment.candidate.graph.computed)}
    in_order = sorted(wrong, key=lambda t: position.get(t, -1))
    found = [replace(_narrowed(alignment, forced, tensor), wrong=(tensor, forced[tensor])) for tensor in in_order]
    if not found and not rounded:
        found = [_first_misshapen(alignment, forced, value, name) for value, name in alignment.misshapen.items()]
    found = [replace(origin, nodes=_telling(alignment, origin)) for origin in _inner(alignment, _merged(found))]
    return sorted(found, key=lambda origin: _made_at(alignment, origin.value)), rounded


def _telling(alignment: Alignment, origin: Origin) -> tuple[int, ...]:
    """The nodes of an origin without those that make its constants and without Identity.

    Tools put both in and take both out at will. Nodes that were inserted are all told.
    """
    graph = alignment.candidate.graph
    computing = tuple(n for n in origin.nodes if not graph.constant.issuperset(graph.nodes[n].outputs))
    if origin.inserted or not computing:
        return computing or origin.nodes
    return tuple(n for n in computing if graph.nodes[n].op != "Identity")


def _merged(origins: list[Origin]) -> list[Origin]:
    """Two wrong tensors can lead back to one place, or to several readers of one value: that is one origin."""
    found: dict[tuple[int, str], Origin] = {}
    for origin in origins:
        key = (origin.value, origin.slot.tensor)
        before = found.setdefault(key, origin)
        if before.slot.edges is not None and origin.slot.edges is not None:
            slot = replace(before.slot, edges=before.slot.edges | origin.slot.edges)
            found[key] = replace(before, slot=slot)
    by_tensor = {(origin.slot.tensor, origin.slot.edges): origin for origin in reversed(found.values())}
    return list(by_tensor.values())


def _inner(alignment: Alignment, origins: list[Origin]) -> list[Origin]:
    """The origins without that of an output which only passes on what another one, inside, stands for."""
    graph = alignment.candidate.graph
    inside = {(origin.value, origin.slot.tensor) for origin in origins if origin.slot.edges is None}

    def passes_on(origin: Origin) -> bool:
        maker = graph.producer.get(origin.slot.tensor)
        node = None if maker is None else graph.nodes[maker]
        return node is not None and node.op == "Identity" and (origin.value, node.inputs[0]) in inside

    return [origin for origin in origins if not passes_on(origin)]


def _made_at(alignment: Alignment, value: int) -> int:
    site = alignment.reference.producer(alignment.root(value))
    return -1 if site is None else site.index


def _first_misshapen(alignment: Alignment, forced: dict[str, int], value: int, tensor: str) -> Origin:
    """For an output of another size: the first operator with good inputs and no counterpart of its own size."""
    sites, _ = reference_region(alignment, value)
    first = min(meaningful(alignment, tuple(sorted(sites))), default=None)
    nodes, _ = alignment.candidate.graph.region(tensor, forced)
    return Origin(value, Slot(tensor), () if first is None else (first,), tuple(sorted(nodes)[:1]), provable=False)


def _fed_right(alignment: Alignment, value: int, tensor: str) -> bool:
    """A tensor that is a graph input, or a constant, is not computed: it holds what was fed, or stored."""
    return alignment.holds(value, alignment.candidate.tapped.get(tensor))


def _narrowed(alignment: Alignment, forced: dict[str, int], tensor: str) -> Origin:
    value = forced[tensor]
    nodes, start = alignment.candidate.graph.region(tensor, forced)
    if alignment.tensors_of(value) & start and tensor in alignment.turned():  # an output, in another layout
        return Origin(value, Slot(tensor), (), tuple(sorted(nodes)), inserted=True)
    sites, border = reference_region(alignment, value)
    region = _Region(alignment, tensor, value, frozenset(nodes), {t: forced[t] for t in start if t in forced})
    for early, tried in _trials(alignment, region, sites, border):
        if not region.healed_by(early, tried):
            continue
        slot = _only_where_wrong(alignment, forced, tried, nodes)
        if early in border:
            for same in (early, *_twins(alignment, early, border)):
                inserted = _between(alignment, forced, same, slot.tensor)
                if inserted:
                    return Origin(same, slot, (), inserted, inserted=True, readers=tuple(sorted(sites)))
            ahead = set() if slot.tensor in forced else alignment.candidate.graph.region(slot.tensor, forced)[0]
            return _rewired(alignment, early, slot, tuple(sorted(sites)), (tuple(sorted(nodes)), tuple(sorted(ahead))))
        kept, _ = reference_region(alignment, early)
        ahead, _ = alignment.candidate.graph.region(slot.tensor, forced)
        return Origin(early, slot, tuple(sorted(kept)), tuple(sorted(ahead & nodes)))
    return Origin(value, Slot(tensor), tuple(sorted(sites)), tuple(sorted(nodes)))


def _only_where_wrong(alignment: Alignment, forced: dict[str, int], slot: Slot, nodes: set[int]) -> Slot:
    """The readers among some nodes, where the tensor is right for readers elsewhere: they have a wrong wire."""
    graph = alignment.candidate.graph
    edges = [(n, at) for n, at in graph.consumers.get(slot.tensor, ()) if n >= 0 <= at]
    elsewhere = [n for n, _ in edges if n not in nodes and n in graph.live_nodes]
    if slot.edges is not None or not any(_leads_to_right(alignment, forced, n) for n in elsewhere):
        return slot
    return replace(slot, edges=frozenset(edge for edge in edges if edge[0] in nodes))


def _leads_to_right(alignment: Alignment, forced: dict[str, int], node: int) -> bool:
    """Whether the first tensors behind a node that have a counterpart come out right."""
    graph, todo, seen = alignment.candidate.graph, [node], {node}
    found = False
    while todo and len(seen) <= _FORWARD:
        for name in graph.nodes[todo.pop()].outputs:
            if name in forced:
                if not alignment.holds_in(alignment.isolated, forced[name], name):
                    return False
                found = True
                continue
            readers = {n for n, _ in graph.consumers.get(name, ()) if n >= 0} - seen
            seen |= readers
            todo += readers
    return found


def _twins(alignment: Alignment, value: int, border: list[int]) -> list[int]:
    """The other right values that hold the same numbers: putting in the one or the other heals alike."""
    values = alignment.reference.values
    array = values[value].array
    return [
        other
        for other in border
        if other != value and array is not None and (twin := values[other].array) is not None
        if twin.shape == array.shape and np.array_equal(twin, array)
    ]


def _rewired(
    alignment: Alignment, value: int, slot: Slot, sites: tuple[int, ...], nodes: tuple[tuple[int, ...], tuple[int, ...]]
) -> Origin:
    """A reader that reads something else than a value which the graph does compute.

    Where nothing live holds the value any more, its own operator was cut off, or became the second of the two groups of
    nodes (those before the slot): that is the fault. Else the wires are wrong between the two.
    """
    maker = alignment.reference.producer(alignment.root(value))
    if maker is not None and not alignment.tensors_of(value) and not alignment.tensors_of(alignment.root(value)):
        return Origin(value, slot, (maker.index,), nodes[1])
    if maker is None:  # an input of the model goes in where it should not: no layer of its own is at fault
        return Origin(value, slot, (), nodes[0], rewired=True)
    first = meaningful(alignment, sites)[:1]
    return Origin(value, slot, tuple(first), nodes[0], rewired=True)


def reference_region(alignment: Alignment, value: int) -> tuple[set[int], list[int]]:
    """The sites that lead to a value from values known to come out right (also in dead nodes), and those values."""
    reference = alignment.reference
    good = (alignment.matched, alignment.isolated_matches, alignment.proposed)
    sites: set[int] = set()
    border: dict[int, None] = {}
    todo = [value]
    while todo:
        current = todo.pop()
        site = reference.producer(current)
        if current != value and any(current in known for known in good):
            border[current] = None
        elif site is None:
            if not reference.values[current].constant:
                border[current] = None
        elif site.index not in sites and not reference.values[current].constant:
            sites.add(site.index)
            todo += site.inputs
    return sites, sorted(border)


@dataclass(frozen=True, slots=True)
class _Region:
    """The nodes between right sources and a wrong tensor, ready for trials."""

    alignment: Alignment
    tensor: str
    value: int
    nodes: frozenset[int]
    sources: dict[str, int]

    def slots(self) -> Iterator[Slot]:
        """Every tensor inside, and every edge through which a source enters."""
        graph = self.alignment.candidate.graph
        entries = [
            (n, s) for n in sorted(self.nodes) for s, name in enumerate(graph.nodes[n].inputs) if name in self.sources
        ]
        for name, same in self._copies().items():
            edges = frozenset((n, s) for n, s in entries if graph.nodes[n].inputs[s] in same)
            if len(edges) > 1:
                yield Slot(name, edges)
        yield from self._duplicates()
        yield from self._some_readers(entries)
        for index in sorted(self.nodes):
            for slot, name in enumerate(graph.nodes[index].inputs):
                if name in self.sources:
                    yield Slot(name, frozenset({(index, slot)}))
            for name in graph.nodes[index].outputs:
                if name and name != self.tensor and name not in graph.constant:
                    yield Slot(name)

    def _some_readers(self, entries: Sequence[tuple[int, int]]) -> Iterator[Slot]:
        """Some of the edges of one source: an operator that reads a value beside its own input may be several nodes."""
        graph = self.alignment.candidate.graph
        for name in self.sources:
            edges = [(n, s) for n, s in entries if graph.nodes[n].inputs[s] == name]
            if 3 <= len(edges) <= MOST_READERS:
                for count in range(2, len(edges)):
                    yield from (Slot(name, frozenset(some)) for some in combinations(edges, count))

    def _duplicates(self) -> Iterator[Slot]:
        """Tensors inside that hold the same numbers: optimisers copy a node for each of its readers."""
        graph, tapped = self.alignment.candidate.graph, self.alignment.candidate.tapped
        groups: dict[tuple[str, tuple[int, ...], bytes], list[str]] = {}
        for index in sorted(self.nodes):
            for name in graph.nodes[index].outputs:
                if name in tapped and name != self.tensor and name not in graph.constant:
                    array = tapped[name]
                    groups.setdefault((graph.nodes[index].op, array.shape, array.tobytes()), []).append(name)
        for names in groups.values():
            if len(names) > 1:
                edges = frozenset(edge for name in names for edge in graph.consumers.get(name, ()) if edge[1] >= 0)
                if edges:
                    yield Slot(names[0], edges)

    def _copies(self) -> dict[str, set[str]]:
        """The sources that hold one value in one shape, under the name of the first: an Identity makes another."""
        tapped = self.alignment.candidate.tapped
        groups: dict[tuple[int, tuple[int, ...]], list[str]] = {}
        for name, value in self.sources.items():
            groups.setdefault((value, tapped[name].shape), []).append(name)
        return {names[0]: set(names) for names in groups.values()}

    def healed_by(self, value: int, slot: Slot) -> bool:
        """Whether the tensor comes out right when the value is put into the slot."""
        found = self.alignment
        sources = {name: found.expected_for(name, v) for name, v in self.sources.items()}
        injection = Injection(slot.tensor, found.expected_for(slot.tensor, value, slot.axes), slot.edges)
        try:
            actual = found.candidate.region(self.tensor, self.nodes, sources, [injection])
        except BackendError:  # the value does not fit there
            return False
        return found.holds(self.value, actual)


def _trials(alignment: Alignment, region: _Region, sites: set[int], border: list[int]) -> Iterator[tuple[int, Slot]]:
    """Values with slots worth trying, earliest value first."""
    reference, tapped = alignment.reference, alignment.candidate.tapped
    inside = [v for index in sorted(sites) for v in reference.sites[index].outputs if v != region.value]
    slots = list(region.slots())
    count = 0
    for value in (*border, *inside):
        array = reference.values[value].array
        if array is None:
            continue
        own = alignment.tensors_of(value)
        maker = reference.producer(value)
        absorbed = maker is not None and base_name(maker.op) == "constant_pad_nd"  # into the node that follows
        for slot in slots:
            actual = tapped.get(slot.tensor)
            if actual is None or actual.dtype.kind != array.dtype.kind:
                continue
            if actual.size != array.size and (actual.ndim != array.ndim or absorbed):
                continue
            moved = permutation(array.shape, actual.shape)
            for axes in (None,) if moved is None else (moved, None):
                if slot.tensor not in own and count < TRIALS:
                    count += 1
                    yield value, replace(slot, axes=axes)


def permutation(shape: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...] | None:
    """The axes that turn one shape into the other, where there is exactly one way and it is not trivial."""
    if shape == other or len(set(shape)) != len(shape) or sorted(shape) != sorted(other):
        return None
    return tuple(shape.index(size) for size in other)


def _between(alignment: Alignment, forced: dict[str, int], value: int, tensor: str) -> tuple[int, ...]:
    """The nodes from the tensors that hold a value to another tensor; empty when it does not come from them."""
    graph = alignment.candidate.graph
    nodes, start = graph.region(tensor, forced)
    return tuple(sorted(nodes)) if alignment.tensors_of(value) & start else ()


def meaningful(alignment: Alignment, sites: tuple[int, ...]) -> list[int]:
    """The sites that compute something; all of them when none does. Exporters merge and move transposes freely."""
    computing = [index for index in sites if not only_moves(alignment.reference.sites[index].op)]
    return computing or list(sites)
