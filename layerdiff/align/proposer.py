"""Counterparts for what values cannot pair: from structure, weights and names, taken back where a run refutes them."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

from layerdiff.align import structure
from layerdiff.align.sampled import comparable_kind
from layerdiff.align.scores import Scores
from layerdiff.align.stretches import best_pairs
from layerdiff.align.weights import constants_read
from layerdiff.formats import format_of, rounds_to
from layerdiff.model import Evidence, Pair
from layerdiff.operators import base_name, is_batch_norm, likeness, only_moves
from layerdiff.shelf import Made

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy as np

    from layerdiff.align.alignment import Alignment
    from layerdiff.model import Site

    Array = np.ndarray[Any, Any]

_TAKE_A_NORM_IN = frozenset({"convolution", "addmm", "mm", "linear"})
_SHAPES = frozenset({"Shape", "Size"})


class Proposer:
    """Proposes counterparts for what values could not pair, and takes back what a run refutes."""

    def __init__(self, alignment: Alignment) -> None:
        self._alignment = alignment
        self._reference, self._graph = alignment.reference, alignment.candidate.graph
        self._value_families = alignment.families
        self._tensor_families = alignment.tensor_families
        self._refuted: set[tuple[int, str]] = set()
        self._held: set[int] = set()
        self._folded_away = self._convolutions_before_folded_norms()

    def _convolutions_before_folded_norms(self) -> set[int]:
        """The convolutions before a BatchNorm, in a graph where each that still has one behind it is paired."""
        graph, matched = self._graph, self._alignment.matched
        taken = {name for names in matched.values() for name in names}
        read = (node.inputs[0] for node in graph.nodes if is_batch_norm(node.op))
        left = (graph.nodes[graph.producer[name]].op for name in read if name in graph.producer and name not in taken)
        unfolded = any(likeness("aten.convolution", op) >= 1 for op in left)
        return set() if unfolded else self._before_norms(frozenset({"convolution"}))

    def _before_norms(self, ops: frozenset[str]) -> set[int]:
        """The sites of some operators whose result only a BatchNorm reads."""
        readers: dict[int, list[Site]] = {}
        for site in self._reference.sites:
            for value in site.inputs:
                readers.setdefault(value, []).append(site)
        return {
            site.index
            for site in self._reference.sites
            if base_name(site.op) in ops
            and all(is_batch_norm(reader.op) for reader in readers.get(site.outputs[0], ()))
            and readers.get(site.outputs[0])
        }

    def propose(self) -> None:
        """Add the best order-keeping proposals for all that is open."""
        values, tensors = self._open_values(), list(self.open_tensors())
        is_open = set(tensors)
        in_order = structure.tensor_order(self._graph)
        tensors = [t for t in in_order if t in is_open and self._tensor_families.root(t) == t]
        if not values or not tensors:
            return
        scores = Scores(self._alignment, self._tensor_families, self._folded_away, self._refuted)
        for value, tensor, score in best_pairs(scores, values, tensors):
            evidence = Evidence.WEIGHTS if scores.tie(value, tensor) else Evidence.STRUCTURE
            self._alignment.proposed[value] = Pair(value, tensor, evidence, score)

    def could_pair(self) -> bool:
        """Whether an open value and an open tensor are of one size and kind; cheap to tell, unlike weights."""
        sizes = {(array.size, comparable_kind(array)) for array in self.open_tensors().values()}
        for value in self._open_values() if sizes else ():
            array, site = self._reference.values[value].array, self._reference.producer(value)
            assert array is not None
            folded = site is not None and site.index in self._folded_away
            if not folded and (array.size, comparable_kind(array)) in sizes:
                return True
        return False

    def nothing_is_open(self) -> bool:
        """Whether all that an output depends on is paired.

        But for layers whose result only a BatchNorm reads, and for what moves numbers and computes none: both go into
        what comes next, and show there.
        """
        makers = (self._reference.producer(value) for value in self._open_values())
        absorbed = self._before_norms(_TAKE_A_NORM_IN)
        return all(site is not None and (site.index in absorbed or only_moves(site.op)) for site in makers)

    def unpaired_values(self) -> set[int]:
        """The values of every family of which nothing is paired."""
        paired = set(self._alignment.matched) | set(self._alignment.isolated_matches)
        paired |= set(self._alignment.proposed) | set(self._alignment.outputs)
        families = self._value_families
        return {value for value in families if paired.isdisjoint(families.members(value))}

    def _open_values(self) -> list[int]:
        """The first member of every family of which nothing is paired, in canonical order."""
        unpaired = self.unpaired_values()
        found = []
        for value in structure.value_order(self._reference) if unpaired else ():
            known = self._reference.values[value]
            if value not in unpaired or self._value_families.root(value) != value or known.site is None:
                continue
            if known.array is not None and known.array.size:
                found.append(value)
        return found

    def open_tensors(self) -> Mapping[str, Array]:
        """The live tensors of which nothing is paired, with their numbers in the latest run."""
        found, tapped = self._alignment, self._alignment.candidate.tapped
        taken = {name for tensor in found.forced() for name in self._tensor_families.members(tensor)}
        names = [n for n in self._graph.computed if self._graph.is_live(n) and n not in taken and n in tapped]
        return Made(dict.fromkeys(names), lambda name: found.isolated[name] if name in found.isolated else tapped[name])

    def drop_refuted(self) -> bool:
        """Take back proposals that the latest run confirms neither from above nor from below.

        One that held before is not taken back together with new ones: a wrong value fed before it is enough to
        make it look wrong.
        """
        found = self._alignment
        confirmed = self._confirmed_from_below()
        refuted = {
            value: pair
            for value, pair in found.proposed.items()
            if pair.evidence is not Evidence.GIVEN
            and pair.tensor not in confirmed
            and not found.resembles(value, pair.tensor)
            and not self._kept_by_weights(pair)
            and not self._in_place(pair)
        }
        refuted = {v: p for v, p in refuted.items() if v not in self._held} or refuted
        self._refuted |= {(value, pair.tensor) for value, pair in refuted.items()}
        self._held = set(found.proposed) - set(refuted)
        found.proposed = {v: p for v, p in found.proposed.items() if v not in refuted}
        return bool(refuted)

    def unconfirmed(self) -> frozenset[int]:
        """The values whose given tensor looks unlike them, and from which nothing comes out right."""
        found = self._alignment
        confirmed = self._confirmed_from_below()
        given = [pair for pair in found.proposed.values() if pair.evidence is Evidence.GIVEN]
        return frozenset(
            pair.value
            for pair in given
            if pair.tensor not in confirmed and not found.resembles(pair.value, pair.tensor)
        )

    def _kept_by_weights(self, pair: Pair) -> bool:
        """Several faults in a row confirm nothing of each other; weights still tell which node is which layer.

        Weights that went to the wrong place would tell the opposite, so the node must also be of the layer's kind.
        """
        shape = self._reference.values[pair.value].shape
        same_shape = self._alignment.candidate.tapped[pair.tensor].shape == shape
        site, node = self._reference.producer(pair.value), self._graph.nodes[self._graph.producer[pair.tensor]]
        of_its_kind = site is not None and likeness(site.op, node.op) > 0
        return pair.evidence is Evidence.WEIGHTS and same_shape and of_its_kind

    def _in_place(self, pair: Pair) -> bool:
        """Whether a node of the layer's kind reads what the layer reads, and is read by what stands for its readers.

        Two layers in a row that are both wrong confirm nothing of each other: a block that holds another's weights.
        """
        found, graph = self._alignment, self._graph
        constants = found.candidate.constants
        site, node = self._reference.producer(pair.value), graph.nodes[graph.producer[pair.tensor]]
        if site is None or likeness(site.op, node.op) < 1:
            return False
        sizes = {array.size for array in constants_read(self._reference, site) if array.size > 1}
        if not sizes & {constants[name].size for name in node.inputs if name in constants}:
            return False  # without weights of its own it may as well be another step
        if found.candidate.tapped[pair.tensor].shape != self._reference.values[pair.value].shape:
            return False
        given = [v for v in site.inputs if not self._reference.values[v].constant]
        read = {self._tensor_families.root(name) for name in node.reads if name not in graph.constant}
        holding = [{self._tensor_families.root(name) for name in found.tensors_of(value)} for value in given]
        if len(read) != len(given) or not all(read & names for names in holding):
            return False
        return self._read_alike(pair)

    def _read_alike(self, pair: Pair) -> bool:
        """Whether each layer that reads a value has its pair among what nodes make of the tensor."""
        readers = self._readers.get(self._value_families.root(pair.value), [])
        names = self._tensor_families.members(pair.tensor)
        nodes = {n for name in names for n, _ in self._graph.consumers.get(name, ())}
        made = {name for n in nodes for name in self._graph.nodes[n].outputs}
        return bool(readers) and all(self._alignment.tensors_of(s.outputs[0]) & made for s in readers)

    @cached_property
    def _readers(self) -> dict[int, list[Site]]:
        """The sites that compute with each value, or a reshape of it."""
        found: dict[int, list[Site]] = {}
        for site in self._reference.sites:
            own = {self._value_families.root(value) for value in site.outputs}
            for root in {self._value_families.root(value) for value in site.inputs} - own:
                found.setdefault(root, []).append(site)
        return found

    def _confirmed_from_below(self) -> set[str]:
        """The forced tensors from which something else comes out right."""
        found = self._alignment
        forced = found.forced()
        confirmed: set[str] = set()
        for tensor, value in forced.items():
            right = found.holds_in(found.isolated, value, tensor)
            if not right and self._is_exact:
                continue
            nodes, start = self._graph.region(tensor, forced)
            if right or self._rounded(tensor, value, nodes):
                used = {name for name in start if self._numbers_count(name, nodes)}
                confirmed |= used.difference(self._tensor_families.members(tensor))
        return confirmed

    def _numbers_count(self, name: str, nodes: set[int]) -> bool:
        """Whether some nodes read more of a tensor than its shape."""
        readers = {n for n, _ in self._graph.consumers.get(name, ()) if n in nodes}
        return any(self._graph.nodes[n].op not in _SHAPES for n in readers)

    @cached_property
    def _is_exact(self) -> bool:
        """Whether nothing in the graph is narrower than float32."""
        return format_of(self._alignment.candidate, range(len(self._graph.nodes))) is None

    def _rounded(self, tensor: str, value: int, nodes: Iterable[int]) -> bool:
        """Whether a tensor is, from right inputs, as right as the format that it is computed in can have it."""
        expected, actual = self._reference.values[value].array, self._alignment.isolated.get(tensor)
        if expected is None or actual is None:
            return False
        kind = format_of(self._alignment.candidate, nodes)
        return kind is not None and rounds_to(kind, expected, actual)
