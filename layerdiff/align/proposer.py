"""Counterparts for what values cannot pair: from structure, weights and names, taken back where a run refutes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align import structure
from layerdiff.align.names import affinity
from layerdiff.align.values import comparable_kind, sample
from layerdiff.align.weights import Tie
from layerdiff.model import Evidence, Pair
from layerdiff.operators import base_name, is_batch_norm, likeness, only_moves
from layerdiff.store import Made

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.align.alignment import Alignment
    from layerdiff.model import Site

    Array = np.ndarray[Any, Any]

THRESHOLD = 0.9
# Weights scaled per channel say that something was folded in: the node gives the value behind the fold.
_TIE_SCORES = {Tie.EXACT: 2.0, Tie.NEAR: 1.5}
_FOLDED_SCORE = 2.5
_TAKE_A_NORM_IN = frozenset({"convolution", "addmm", "mm", "linear"})
# What exporters and optimisers fold into the weights before it, besides a BatchNorm.
_FOLDABLE = frozenset({"mul", "div"})


class Proposer:
    """Proposes counterparts for what values could not pair, and takes back what a run refutes."""

    def __init__(self, alignment: Alignment) -> None:
        self._alignment = alignment
        self._reference, self._graph = alignment.reference, alignment.candidate.graph
        self._value_families = alignment.families
        self._tensor_families = structure.tensor_families(self._graph, alignment.candidate.moving)
        self._value_order = structure.value_order(self._reference)
        self._tensor_order = structure.tensor_order(self._graph)
        self._refuted: set[tuple[int, str]] = set()
        self._held: set[int] = set()
        self._folded_away = self._convolutions_before_folded_norms()

    def _convolutions_before_folded_norms(self) -> set[int]:
        """The convolutions before a BatchNorm, in a graph without one."""
        if any(is_batch_norm(node.op) for node in self._graph.nodes):
            return set()
        return self._before_norms(frozenset({"convolution"}))

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
        tensors = [t for t in self._tensor_order if t in set(tensors) and self._tensor_families[t].members[0] == t]
        if not values or not tensors:
            return
        scores = self._scores(values, tensors)
        for i, j in structure.best_pairing(scores, THRESHOLD):
            evidence = Evidence.WEIGHTS if self._tie(values[i], tensors[j]) else Evidence.STRUCTURE
            self._alignment.proposed[values[i]] = Pair(values[i], tensors[j], evidence, float(scores[i, j]))

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
        return {value for value, family in self._value_families.items() if not paired.intersection(family.members)}

    def _open_values(self) -> list[int]:
        """The first member of every family of which nothing is paired, in canonical order."""
        unpaired = self.unpaired_values()
        found = []
        for value in self._value_order:
            family = self._value_families.get(value)
            known = self._reference.values[value]
            if family is None or family.members[0] != value or known.array is None or known.site is None:
                continue
            if value in unpaired and known.array.size:
                found.append(value)
        return found

    def open_tensors(self) -> Mapping[str, Array]:
        """The live tensors of which nothing is paired, with their numbers in the latest run."""
        found, tapped = self._alignment, self._alignment.candidate.tapped
        taken = {name for family in map(self._tensor_families.get, found.forced()) if family for name in family.members}
        names = [n for n in self._graph.computed if self._graph.is_live(n) and n not in taken and n in tapped]
        return Made(dict.fromkeys(names), lambda name: found.isolated[name] if name in found.isolated else tapped[name])

    def _scores(self, values: list[int], tensors: list[str]) -> Array:
        reference, tapped = self._reference, self._alignment.candidate.tapped
        scores = np.full((len(values), len(tensors)), -1.0)
        columns: dict[tuple[int, str], list[int]] = {}
        for j, name in enumerate(tensors):
            columns.setdefault((tapped[name].size, comparable_kind(tapped[name])), []).append(j)
        rows: dict[tuple[int, str], list[int]] = {}
        for i, value in enumerate(values):
            array = reference.values[value].array
            assert array is not None
            rows.setdefault((array.size, comparable_kind(array)), []).append(i)
        latest = self._alignment.isolated or tapped
        for key, i_s in rows.items():
            j_s = columns.get(key)
            if not j_s:
                continue
            arrays = (reference.values[values[i]].array for i in i_s)
            alike = structure.likenesses(
                [sample(a) for a in arrays if a is not None],
                [sample(latest[tensors[j]] if tensors[j] in latest else tapped[tensors[j]]) for j in j_s],
            )
            for row, i in enumerate(i_s):
                for column, j in enumerate(j_s):
                    scores[i, j] = self._score(values[i], tensors[j], float(alike[row, column]))
        return scores

    def _score(self, value: int, tensor: str, alike: float) -> float:
        if (value, tensor) in self._refuted:
            return -1.0
        reference = self._reference
        site = reference.producer(value)
        node = self._graph.nodes[self._graph.producer[tensor]]
        assert site is not None
        if site.index in self._folded_away:
            return -1.0
        possible, tie = likeness(site.op, node.op), self._tie(value, tensor)
        if possible < 0 and tie <= 0:
            return -1.0
        shapes = {reference.values[v].shape for v in self._value_families[value].members}
        tapped = self._alignment.candidate.tapped
        same_shape = any(tapped[t].shape in shapes for t in self._tensor_families[tensor].members if t in tapped)
        return (
            max(0.0, possible)
            + tie
            + 2.5 * alike
            + 0.5 * same_shape
            + 0.5 * affinity(reference.layer_of(site), node.scope)
        )

    def _tie(self, value: int, tensor: str) -> float:
        """The score of the weights that tie the tensor's node to the value's site, or to a site folded into it."""
        site = self._reference.producer(value)
        assert site is not None
        node = self._graph.nodes[self._graph.producer[tensor]]
        own = self._alignment.tied.get((node.index, site.index), {})
        score = 0.0
        if own and Tie.SCALED not in own.values() and not self._goes_on(node.index, site):
            # The last parameter to enter decides between MatMul and the Add of its bias.
            score = max(_TIE_SCORES[tie] for tie in own.values()) + 0.5 * any(name.endswith("bias") for name in own)
        if not (is_batch_norm(site.op) or base_name(site.op) in _FOLDABLE):
            return score
        sources = (self._reference.producer(self._alignment.root(v)) for v in site.inputs)
        before = [self._alignment.tied.get((node.index, s.index), {}) for s in sources if s is not None]
        if any(Tie.SCALED in tied.values() for tied in before):
            score = max(score, _FOLDED_SCORE)
        return score

    def _goes_on(self, node: int, site: Site) -> bool:
        """Whether the node holds the parameter of a later site, too, that adds it to this one's result."""
        later = [s for (n, s), own in self._alignment.tied.items() if n == node and s > site.index and own]
        made = {self._alignment.root(value) for value in site.outputs}
        roots = ({self._alignment.root(v) for v in self._reference.sites[s].inputs} for s in later)
        return any(made & read for read in roots)

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
            and not found.resembles(value, found.isolated.get(pair.tensor))
            and not self._kept_by_weights(pair)
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
            if pair.tensor not in confirmed and not found.resembles(pair.value, found.isolated.get(pair.tensor))
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

    def _confirmed_from_below(self) -> set[str]:
        """The forced tensors from which something else comes out right."""
        found = self._alignment
        forced = found.forced()
        confirmed: set[str] = set()
        for tensor, value in forced.items():
            if found.holds(value, found.isolated.get(tensor)):
                _, start = self._graph.region(tensor, forced)
                family = self._tensor_families.get(tensor)
                confirmed |= start - set(family.members if family else ())
        return confirmed
