"""Which module is to blame for an origin, and which others nothing in the file tells apart from it.

Several operators may lie in an origin. Those that evidence acquits are struck out: the right one of a fold (by its
weights), and those whose own node is there while another's is not. What is left is blamed on the smallest module that
holds all of it.
Nodes that the model does not have stand on an edge: they belong to any module that gives that value out, takes it in or
passes it on. The name that an exporter left on them picks one of these; without it the one that made the value is
accused, and the others are told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import parameters_read
from layerdiff.graph import RANDOM
from layerdiff.localise import meaningful
from layerdiff.operators import base_name, is_reshaping, likeness, only_moves
from layerdiff.unfold import constants_of, holds_folded, unfolded

if TYPE_CHECKING:
    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Call, Reference, Site, Value

    Array = np.ndarray[Any, Any]

# Modules whose own forward does nothing but call their members.
_CHAINS = frozenset({"Sequential", "ModuleList", "ModuleDict"})


@dataclass(frozen=True, slots=True)
class Blame:
    """The call that holds the fault, its operator when there is one only, and the calls that it may be in as well."""

    call: int
    op: str | None
    also: tuple[int, ...] = ()


def blame(alignment: Alignment, origin: Origin) -> Blame:
    """Who is to blame for an origin."""
    reference = alignment.reference
    if origin.inserted:
        site = reference.producer(alignment.root(origin.value))
        first, *others = _beside_edge(alignment, origin) or [0]
        return Blame(first, None if site is None else site.op, tuple(others))
    sites = [reference.sites[index] for index in meaningful(alignment, origin.sites)]
    if not sites:
        return Blame(0, None)
    maker = None if holds_folded(alignment, origin, sites) else _wrong_constant(alignment, origin, sites)
    if maker is not None:
        return Blame(maker.owner, maker.op)
    sites = [s for s in sites if not all(reference.values[v].constant for v in s.outputs)] or sites
    left, equal = unfolded(alignment, origin, sites)
    left = _standing_alone(alignment, origin, left)
    call = _common_call(reference, {site.owner for site in left})
    also = dict.fromkeys(site.owner for site in equal if site.owner != call)
    return Blame(call, left[0].op if len(left) == 1 else None, tuple(also))


def edges_of(alignment: Alignment, call: int) -> tuple[int, ...]:
    """The calls that a change of what a call gives out may as well be in: they pass it on, or are given it."""
    reference = alignment.reference
    family = {member for value in reference.calls[call].outputs for member in _family(alignment, value)}
    readers = [s for s in reference.sites if family.intersection(s.inputs) and not only_moves(s.op)]
    found = [c.index for c in reference.calls if _passes_on(c, family)]
    return tuple(c for c in dict.fromkeys([*found, *_takers(reference, call, readers)]) if c != call)


def _beside_edge(alignment: Alignment, origin: Origin) -> list[int]:
    """The calls that inserted nodes may belong to, the likeliest first; one if their names tell."""
    reference, graph = alignment.reference, alignment.candidate.graph
    root = alignment.root(origin.value)
    family = _family(alignment, root) | _before_casts(alignment, root)
    site = reference.producer(root)
    computing = [reference.sites[index] for index in origin.readers if not only_moves(reference.sites[index].op)]
    using = [s for s in computing if _reads(reference, s, family)] or computing
    found: list[int] = []
    if _all_read_the_change(alignment, origin):
        maker = [] if site is None else [site.owner]
        idle = [c.index for c in reference.calls if c.outputs and family.issuperset(c.inputs + c.outputs)][-1:]
        # What draws at random is a Dropout that stands there; whatever else was put in is likelier the maker's.
        drawn = any(graph.nodes[n].op in RANDOM or "dropout" in graph.nodes[n].op for n in origin.nodes)
        found += [*idle, *maker] if drawn else [*maker, *idle]
        found += [call.index for call in reference.calls if _passes_on(call, family)]
    if using:
        start = using[0].owner if site is None else site.owner
        found += _takers(reference, start, using)
    found = list(dict.fromkeys(found))
    scopes = {graph.nodes[index].scope for index in origin.nodes} - {""}
    named = [call for call in found if scopes & _names(reference.calls[call])]
    return named[:1] if len(scopes) == 1 and named else found


def _names(call: Call) -> set[str]:
    """What exporters call a call: TorchScript numbers those behind the first."""
    return {f"{call.layer}_{call.call}" if call.call else call.layer, call.layer}


def _all_read_the_change(alignment: Alignment, origin: Origin) -> bool:
    """Whether nobody reads the value as it was before the inserted nodes."""
    graph = alignment.candidate.graph
    sources = alignment.tensors_of(alignment.root(origin.value)) | alignment.tensors_of(origin.value)
    readers = {n for t in sources for n, _ in graph.consumers.get(t, ()) if n in graph.live_nodes}
    copies = {n for n in readers if is_reshaping(graph.nodes[n].op) and sources.issuperset(graph.nodes[n].outputs)}
    return readers - copies <= set(origin.nodes)


def _passes_on(call: Call, family: set[int]) -> bool:
    return bool(family.intersection(call.outputs)) and call.type not in _CHAINS


def _takers(reference: Reference, maker: int, readers: list[Site]) -> list[int]:
    """From the first reader outwards: the calls that are given the value, and the one that passes it from its maker."""
    if not readers:
        return []
    inside = set(enclosing(reference, maker))
    found: list[int] = []
    for call in enclosing(reference, readers[0].owner):
        if call in inside:  # the innermost that holds both: its own forward passes the value on
            return found if reference.calls[call].type in _CHAINS else [*found, call]
        holds_all = all(call in enclosing(reference, reader.owner) for reader in readers)
        if holds_all and reference.calls[call].type not in _CHAINS:
            found.append(call)
    return found


def _family(alignment: Alignment, value: int) -> set[int]:
    return set(alignment.families.members(value))


def _before_casts(alignment: Alignment, value: int) -> set[int]:
    """What casts made a value from, as far as the tensors that hold it hold that, too, within rounding."""
    reference, tensors = alignment.reference, set(alignment.matched.get(value, ()))
    found: set[int] = set()
    site = reference.producer(value)
    while (
        site is not None
        and base_name(site.op) == "_to_copy"
        and tensors.intersection(alignment.matched.get(site.inputs[0], ()))
    ):
        found |= _family(alignment, site.inputs[0])
        site = reference.producer(site.inputs[0])
    return found


def _reads(reference: Reference, site: Site, family: set[int]) -> bool:
    """Whether a site reads one of some values, perhaps moved."""
    for value in site.inputs:
        while value not in family:
            maker = reference.producer(value)
            if maker is None or not only_moves(maker.op) or not maker.inputs:
                break
            value = maker.inputs[0]  # noqa: PLW2901  one step up
        if value in family:
            return True
    return False


def _wrong_constant(alignment: Alignment, origin: Origin, sites: list[Site]) -> Site | None:
    """Where the fault is in a value that does not depend on the inputs (a position table), the site that made it."""
    reference = alignment.reference
    sizes = {array.size for array in constants_of(alignment, origin)}
    for site in sites:
        for value in site.inputs:
            known, maker = reference.values[value], _maker(reference, value)
            suspect = known.constant and known.parameter is None and known.array is not None and known.array.size > 1
            if not suspect or maker is None or value in alignment.constants or known.array is None:
                continue
            if known.array.size in sizes:
                return _table_or_positions(alignment, origin, maker, known)
    return None


def _table_or_positions(alignment: Alignment, origin: Origin, maker: Site, known: Value) -> Site:
    """Of a folded look-up: its own site, or the maker of the positions if every row is in the table."""
    reference = alignment.reference
    if base_name(maker.op) != "embedding" or known.array is None:
        return maker
    width = known.array.shape[-1]
    tables = [a for name in parameters_read(reference, maker) if (a := reference.parameters[name]).shape[-1] == width]
    rows = [a.reshape(-1, width) for a in constants_of(alignment, origin) if a.size == known.array.size]
    positions = _maker(reference, maker.inputs[1]) if len(maker.inputs) > 1 else None
    for table in tables:
        entries = {row.tobytes() for row in np.ascontiguousarray(table.reshape(-1, width))}
        for found in rows:
            same = all(row.astype(table.dtype).tobytes() in entries for row in found)
            if same and positions is not None:
                return positions
    return maker


def _maker(reference: Reference, value: int) -> Site | None:
    """The site that computed a value, behind all that only moves it."""
    site = reference.producer(value)
    while site is not None and only_moves(site.op) and site.inputs:
        site = reference.producer(site.inputs[0])
    return site


def _common_call(reference: Reference, owners: set[int]) -> int:
    """The innermost call that encloses all the given ones; of several calls of one layer the first."""
    if len({reference.calls[owner].layer for owner in owners}) == 1:
        return min(owners)
    chains = [enclosing(reference, owner) for owner in owners]
    shared = set.intersection(*map(set, chains))
    return max(shared)


def enclosing(reference: Reference, call: int) -> list[int]:
    """A call and all around it, from the inside out."""
    chain = [call]
    while (parent := reference.calls[chain[-1]].parent) is not None:
        chain.append(parent)
    return chain


def _standing_alone(alignment: Alignment, origin: Origin, sites: list[Site]) -> list[Site]:
    """The sites that the origin's nodes are not there for; where one node absorbed a padding, the node's own site."""
    if len(sites) < 2 or not origin.nodes:
        return sites
    absent = _absent(alignment, origin, sites) or sites
    if len(origin.nodes) != 1:
        return absent
    op = alignment.candidate.graph.nodes[origin.nodes[0]].op
    kin = [site for site in sites if likeness(site.op, op) > 0]
    strangers = [site for site in sites if likeness(site.op, op) < 0 or base_name(site.op) == "constant_pad_nd"]
    return kin if len(kin) == 1 and len(kin) + len(strangers) == len(sites) else absent


def _absent(alignment: Alignment, origin: Origin, sites: list[Site]) -> list[Site]:
    """The sites without a node, where every node of the origin is of the kind of another site; else none."""
    graph, constant = alignment.candidate.graph, alignment.candidate.graph.constant
    nodes = [graph.nodes[index] for index in origin.nodes]
    ops = [node.op for node in nodes if not constant.issuperset(node.outputs)]
    kin = {site.index: [op for op in ops if likeness(site.op, op) >= 1] for site in sites}
    if not ops or any(all(op not in found for found in kin.values()) for op in ops):
        return []
    return [site for site in sites if not kin[site.index]]
