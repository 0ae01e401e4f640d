"""What speaks for each pair of an open value and an open tensor, as one number."""

from __future__ import annotations

from collections import defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align import structure
from layerdiff.align.names import affinity
from layerdiff.align.sampled import comparable_kind, sample
from layerdiff.align.weights import Tie, parameters_of_sites
from layerdiff.operators import base_name, is_batch_norm, likeness

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence

    from layerdiff.align.alignment import Alignment
    from layerdiff.graph import Node
    from layerdiff.model import Site

    Array = np.ndarray[Any, Any]

IMPOSSIBLE = -1.0
# Weights scaled per channel say that something was folded in: the node gives the value behind the fold.
_TIE_SCORES = {Tie.EXACT: 2.0, Tie.NEAR: 1.5}
_FOLDED_SCORE = 2.5
# What may leave a bias to an Add behind it.
_PRODUCTS = frozenset({"MatMul", "Conv", "ConvTranspose", "Gemm"})
_QUANTISERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What exporters and optimisers fold into the weights before it, besides a BatchNorm.
_FOLDABLE = frozenset({"mul", "div"})


class Scores:
    """Weighs operators, weights, likeness of the numbers in the latest run, shapes and names.

    `folded_away` are sites that no tensor stands for, `refuted` pairs that a run has taken back.
    """

    def __init__(
        self,
        alignment: Alignment,
        families: structure.Families[str],
        folded_away: Collection[int],
        refuted: Collection[tuple[int, str]],
    ) -> None:
        self._alignment, self._families = alignment, families
        self._reference, self._graph = alignment.reference, alignment.candidate.graph
        self._folded_away = folded_away
        self._refuted: dict[int, list[str]] = defaultdict(list)
        for value, tensor in refuted:
            self._refuted[value].append(tensor)
        self._tied_sites: dict[int, list[int]] = defaultdict(list)
        self._tied_nodes: dict[int, list[int]] = defaultdict(list)
        for (node, site), own in alignment.tied.items():
            if own:
                self._tied_sites[node].append(site)
                self._tied_nodes[site].append(node)

    def of(self, values: Sequence[int], tensors: Sequence[str]) -> Array:
        """The score of every pair; below 0 where it is none."""
        ties = self.ties(values, tensors)
        sites, nodes = [self._site(value) for value in values], [self._node(tensor) for tensor in tensors]
        possible = _by_kind([s.op for s in sites], [n.op for n in nodes], likeness)
        shapes = _by_kind([self._shapes_of(v) for v in values], [self._shapes_at(t) for t in tensors], _any_shared)
        named = _by_kind([self._reference.layer_of(s) for s in sites], [n.scope for n in nodes], affinity)
        alike = self._likenesses(values, tensors)
        scores = np.maximum(0.0, possible) + ties + 2.5 * alike + 0.5 * shapes + 0.5 * named
        scores[np.isnan(alike) | ((possible < 0) & (ties <= 0))] = IMPOSSIBLE
        scores[[site.index in self._folded_away for site in sites]] = IMPOSSIBLE
        column = {tensor: j for j, tensor in enumerate(tensors)}
        for i, value in enumerate(values):
            scores[i, [column[t] for t in self._refuted.get(value, ()) if t in column]] = IMPOSSIBLE
        return np.asarray(scores)

    def ties(self, values: Sequence[int], tensors: Sequence[str]) -> Array:
        """The scores of the weights that tie each tensor's node to each value's site."""
        found = np.zeros((len(values), len(tensors)))
        for i, j in self.tied_pairs(values, tensors):
            found[i, j] = self.tie(values[i], tensors[j])
        return found

    def tied_pairs(self, values: Sequence[int], tensors: Sequence[str]) -> list[tuple[int, int]]:
        """The rows and columns of the pairs of which some weight tells something."""
        columns: dict[int, list[int]] = defaultdict(list)
        for j, tensor in enumerate(tensors):
            columns[self._node(tensor).index].append(j)
        found = []
        for i, value in enumerate(values):
            site = self._site(value)
            nodes = {n for s in (site, *self._folded_into(site)) for n in self._tied_nodes.get(s.index, ())}
            nodes |= {add for n in nodes if (add := self._bias_behind(n, site)) is not None}
            found += [(i, j) for n in sorted(nodes) for j in columns.get(n, ())]
        return found

    def tie(self, value: int, tensor: str) -> float:
        """The score of the weights that tie the tensor's node to the value's site, or to a site folded into it."""
        site, node, tied = self._site(value), self._node(tensor), self._alignment.tied
        own = tied.get((node.index, site.index), {})
        product = self._before_bias.get(node.index)
        if not own and product is not None and self._bias_behind(product, site) is not None:
            own = tied.get((product, site.index), {})  # the bias may be the very thing that is wrong
        score = 0.0
        added = self._is_added_to(node, site) or self._bias_behind(node.index, site) is not None
        ends = not (self._goes_on(node.index, site) or added)
        if own and ends and Tie.SCALED not in own.values():
            # The last parameter to enter decides between MatMul and the Add of its bias.
            score = max(_TIE_SCORES[tie] for tie in own.values()) + 0.5 * any(name.endswith("bias") for name in own)
        if any(Tie.SCALED in tied.get((node.index, s.index), {}).values() for s in self._folded_into(site)):
            score = max(score, _FOLDED_SCORE)
        return score

    def _folded_into(self, site: Site) -> list[Site]:
        """The sites before one that exporters and optimisers fold into the weights of these."""
        if not (is_batch_norm(site.op) or base_name(site.op) in _FOLDABLE):
            return []
        sources = (self._reference.producer(self._alignment.root(v)) for v in site.inputs)
        return [source for source in sources if source is not None]

    def _goes_on(self, node: int, site: Site) -> bool:
        """Whether the node holds the parameter of a later site, too, that adds it to this one's result."""
        if node not in self._shared:
            return False
        later = {s for value in site.outputs for s in self._readers.get(self._alignment.root(value), ())}
        return any(s > site.index and self._alignment.tied.get((node, s)) for s in later)

    @cached_property
    def _shared(self) -> frozenset[int]:
        """The nodes that hold a parameter of more sites than one."""
        return frozenset(node for node, sites in self._tied_sites.items() if len(sites) > 1)

    @cached_property
    def _readers(self) -> dict[int, list[int]]:
        """The sites with parameters that read each value, or a reshape of it."""
        found: dict[int, list[int]] = defaultdict(list)
        for index in self._tied_nodes:
            for value in self._reference.sites[index].inputs:
                found[self._alignment.root(value)].append(index)
        return found

    def _is_added_to(self, node: Node, site: Site) -> bool:
        """Whether another node with weights of the same site reads what the node gives, as the Add of its bias does."""
        readers = {n for name in node.outputs for n, _ in self._read_by(name)}
        return not readers.isdisjoint(self._tied_nodes.get(site.index, ()))

    def _read_by(self, name: str) -> Iterator[tuple[int, int]]:
        """The nodes that read a tensor, and where; quantisers put a pair of nodes between a product and its bias."""
        for index, slot in self._graph.consumers.get(name, ()):
            if index >= 0 and slot == 0 and self._graph.nodes[index].op in _QUANTISERS:
                yield from self._read_by(self._graph.nodes[index].outputs[0])
            else:
                yield index, slot

    @cached_property
    def _before_bias(self) -> dict[int, int]:
        """For each Add of a constant vector to the product of a node with a layer's weight: that node."""
        constants, found = self._alignment.candidate.constants, {}
        for index in self._tied_sites:
            node = self._graph.nodes[index]
            readers = list(self._read_by(node.outputs[0]))
            if len(readers) != 1 or self._graph.nodes[readers[0][0]].op != "Add":
                continue
            add, slot = self._graph.nodes[readers[0][0]], readers[0][1]
            other = add.inputs[1 - slot] if slot in (0, 1) else ""
            if other in constants and constants[other].size > 1 and node.op in _PRODUCTS:
                found[add.index] = index
        return found

    def _bias_behind(self, node: int, site: Site) -> int | None:
        """The Add of a vector as long as the bias of the site to what a node makes of the site's weight."""
        add = self._adds.get(node)
        if add is None or not self._alignment.tied.get((node, site.index)):
            return None
        constants = self._alignment.candidate.constants
        sizes = {constants[name].size for name in self._graph.nodes[add].inputs if name in constants}
        parameters = (self._reference.parameters[name] for name in self._parameters.get(site.index, ()))
        return add if any(array.ndim == 1 and array.size in sizes for array in parameters) else None

    @cached_property
    def _adds(self) -> dict[int, int]:
        return {product: add for add, product in self._before_bias.items()}

    @cached_property
    def _parameters(self) -> dict[int, tuple[str, ...]]:
        return parameters_of_sites(self._reference)

    def _site(self, value: int) -> Site:
        site = self._reference.producer(value)
        assert site is not None
        return site

    def _node(self, tensor: str) -> Node:
        return self._graph.nodes[self._graph.producer[tensor]]

    def _shapes_of(self, value: int) -> frozenset[tuple[int, ...]]:
        return frozenset(self._reference.values[v].shape for v in self._alignment.families.members(value))

    def _shapes_at(self, tensor: str) -> frozenset[tuple[int, ...]]:
        tapped = self._alignment.candidate.tapped
        return frozenset(tapped[t].shape for t in self._families.members(tensor) if t in tapped)

    def _likenesses(self, values: Sequence[int], tensors: Sequence[str]) -> Array:
        """How alike the numbers of each value and tensor are; NaN where they are not as many, or of another kind."""
        latest, tapped = self._alignment.isolated or self._alignment.candidate.tapped, self._alignment.candidate.tapped
        known = self._reference.values
        rows, columns = _groups(known[v].array for v in values), _groups(tapped[name] for name in tensors)
        found = np.full((len(values), len(tensors)), np.nan)
        for kind in rows.keys() & columns.keys():
            left = [sample(a) for i in rows[kind] if (a := known[values[i]].array) is not None]
            names = [tensors[j] for j in columns[kind]]
            right = [sample(latest[name] if name in latest else tapped[name]) for name in names]
            found[np.ix_(rows[kind], columns[kind])] = structure.likenesses(left, right)
        return found


def _groups(arrays: Iterable[Array | None]) -> dict[tuple[int, str], list[int]]:
    """The places of the arrays of each size and kind; they are not held all at once."""
    found: dict[tuple[int, str], list[int]] = defaultdict(list)
    for place, array in enumerate(arrays):
        if array is not None:
            found[array.size, comparable_kind(array)].append(place)
    return found


def _any_shared(one: frozenset[Any], other: frozenset[Any]) -> float:
    return float(not one.isdisjoint(other))


def _by_kind(rows: Sequence[Hashable], columns: Sequence[Hashable], score: Callable[[Any, Any], float]) -> Array:
    """A score for each row and column that depends on what they are only: asked once for each two that differ."""
    kinds, others = list(dict.fromkeys(rows)), list(dict.fromkeys(columns))
    table = np.array([[score(kind, other) for other in others] for kind in kinds], dtype=np.float64)
    row, column = {kind: i for i, kind in enumerate(kinds)}, {other: j for j, other in enumerate(others)}
    return np.asarray(table[np.ix_([row[kind] for kind in rows], [column[other] for other in columns])])
