"""Weigh all evidence: which reference value is which ONNX tensor.

Values come first: what holds the same numbers in a normal run is paired. What is left lies behind a fault (or was
folded away). It gets proposals from structure, weights, names and correlation; then one run with every paired tensor
fed its expected value shows which proposals are right. A pair is confirmed from above when the tensor comes out right
from expected inputs, and from below when something computed from it comes out right. A pair confirmed only from below
is an origin: good values go in, a wrong one comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align import structure
from layerdiff.align.ambiguity import in_order
from layerdiff.align.chains import step_by_step
from layerdiff.align.given import settle
from layerdiff.align.layout import layouts, turned
from layerdiff.align.names import affinity
from layerdiff.align.values import comparable_kind, match_values, same_numbers, sample
from layerdiff.align.weights import Tie, ties
from layerdiff.model import Evidence, Pair
from layerdiff.operators import base_name, is_batch_norm, likeness, only_moves
from layerdiff.store import Made, Shelf

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.candidate import Candidate
    from layerdiff.layout import Axes
    from layerdiff.measure import Limit
    from layerdiff.model import Reference, Site
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

ROUNDS = 4
THRESHOLD = 0.9
RESEMBLANCE = 0.1
# Weights scaled per channel say that something was folded in: the node gives the value behind the fold.
_TIE_SCORES = {Tie.EXACT: 2.0, Tie.NEAR: 1.5}
_FOLDED_SCORE = 2.5
_TAKE_A_NORM_IN = frozenset({"convolution", "addmm", "mm", "linear"})
# What exporters and optimisers fold into the weights before it, besides a BatchNorm.
_FOLDABLE = frozenset({"mul", "div"})


@dataclass(slots=True)
class Alignment:
    """Everything that is known about which value is which tensor."""

    reference: Reference
    candidate: Candidate
    limits: Mapping[int, Limit]
    outputs: dict[int, str]
    matched: dict[int, list[str]]
    misshapen: dict[int, str] = field(default_factory=dict)
    constants: dict[int, list[str]] = field(default_factory=dict)
    proposed: dict[int, Pair] = field(default_factory=dict)
    isolated_matches: dict[int, list[str]] = field(default_factory=dict)
    isolated: Mapping[str, Array] = field(default_factory=dict)
    tied: dict[tuple[int, int], dict[str, Tie]] = field(default_factory=dict)
    families: dict[int, structure.Family] = field(default_factory=dict)
    unconfirmed: frozenset[int] = frozenset()

    @property
    def settled(self) -> bool:
        """Whether every output holds its value in the normal run."""
        return not self.misshapen and all(name in self.matched.get(value, ()) for value, name in self.outputs.items())

    def live(self, value: int) -> list[str]:
        """The live tensors that hold a value in the normal run."""
        return [name for name in self.matched.get(value, ()) if self.candidate.graph.is_live(name)]

    def pair(self, value: int) -> Pair | None:
        """The best counterpart of a value: one with the same numbers, else a proposal that runs confirmed.

        What holds for a value holds for all that are only reshapes of it.
        """
        given = self.proposed.get(value)
        if given is not None and given.evidence is Evidence.GIVEN:
            return given
        if value in self.outputs:
            return Pair(value, self.outputs[value], Evidence.OUTPUT)
        if value in self.constants:
            return Pair(value, self.constants[value][0], Evidence.VALUES)
        for names, evidence in ((self.live(value), Evidence.VALUES), (self.isolated_matches.get(value), None)):
            if names:
                return Pair(value, self._same_shape(value, names), evidence or Evidence.ISOLATED_VALUES)
        root = self.root(value)
        return self.proposed.get(value) or (None if root == value else self.pair(root))

    def _same_shape(self, value: int, names: list[str]) -> str:
        shape, arrays = self.reference.values[value].shape, self.candidate.tapped
        return next((name for name in names if name in arrays and arrays[name].shape == shape), names[0])

    def forced(self) -> dict[str, int]:
        """For each tensor that has a counterpart, the value it should hold."""
        found = {name: value for value in self.isolated_matches for name in self.isolated_matches[value]}
        found |= {pair.tensor: value for value, pair in self.proposed.items()}
        found |= {name: value for value in self.matched for name in self.live(value)}
        return found | {name: value for value, name in self.outputs.items()}

    def tensors_of(self, value: int) -> set[str]:
        """Every live tensor that is known to stand for a value."""
        found = {*self.live(value), *self.isolated_matches.get(value, ())}
        pair = self.proposed.get(value)
        return found | ({pair.tensor} if pair else set()) | ({self.outputs[value]} if value in self.outputs else set())

    def root(self, value: int) -> int:
        """The value that was computed, of all those that are only reshapes of it."""
        family = self.families.get(value)
        return int(family.members[0]) if family else value

    def expected_for(self, tensor: str, value: int, axes: tuple[int, ...] | None = None) -> Array:
        """A reference value in the shape and type of a tensor, its axes permuted first where `axes` says so."""
        array, actual = self.reference.values[value].array, self.candidate.tapped[tensor]
        assert array is not None
        moved = array if axes is None else array.transpose(axes)
        with np.errstate(over="ignore"):  # a value beyond the range of a half precision tensor is infinite in it
            typed = moved.astype(actual.dtype, copy=False)
        # Where the candidate computes another shape, it is fed the right one.
        return typed if moved.size != actual.size else typed.reshape(actual.shape)

    def holds(self, value: int, actual: Array | None) -> bool:
        """Whether an array holds the numbers of a value, in memory order."""
        array = self.reference.values[value].array
        if array is None or actual is None or array.size != actual.size:
            return False
        return same_numbers(array, actual, self.limits[value])

    def without(self, values: frozenset[int]) -> Alignment:
        """The same without the proposals for some values, and what every tensor is then from right inputs."""
        found = replace(self, proposed={value: pair for value, pair in self.proposed.items() if value not in values})
        found.isolated = self.candidate.isolated(found.expected())
        return found

    def turned(self) -> dict[str, Axes]:
        """The outputs that come out right from right inputs but for the order of their axes, with the axes to use."""
        found = {}
        for value, name in (self.outputs | self.misshapen).items():
            array, actual = self.reference.values[value].array, self.isolated.get(name)
            if array is not None and not (
                actual is not None and actual.shape == array.shape and self.holds(value, actual)
            ):
                axes = turned(array, actual, self.limits[value])
                if axes is not None:
                    found[name] = axes
        return found

    def resembles(self, value: int, actual: Array | None) -> bool:
        """Whether an array is close enough to a value to be it, computed less precisely or with a small fault."""
        array = self.reference.values[value].array
        if array is None or actual is None or array.size != actual.size or array.dtype.kind != "f":
            return self.holds(value, actual)
        e, a = (np.nan_to_num(x.reshape(-1).astype(np.float64), posinf=0.0, neginf=0.0) for x in (array, actual))
        return bool(np.linalg.norm(a - e) <= RESEMBLANCE * np.linalg.norm(e)) or self.holds(value, actual)

    def expected(self) -> Made[str]:
        """What each tensor with a counterpart should hold, without the graph's inputs; made when it is asked for."""
        inputs = {port.name for port in self.candidate.graph.inputs}
        pairs = {tensor: value for tensor, value in self.forced().items() if tensor not in inputs}
        return Made(pairs, lambda tensor: self.expected_for(tensor, pairs[tensor]))


def align(
    reference: Reference,
    candidate: Candidate,
    outputs: OutputPairs,
    limits: Mapping[int, Limit],
    given: Mapping[int, Pair] | None = None,
) -> Alignment:
    """Pair values with tensors; the outputs, and what the user has given, are paired from the start."""
    found = _by_values(reference, candidate, outputs, limits)
    settle(found, given or {})
    return _completed(found, _varying(reference))


def only_by_values(
    reference: Reference, candidate: Candidate, outputs: OutputPairs, limits: Mapping[int, Limit]
) -> Alignment | None:
    """The alignment where values alone pair all that is computed, but for layers that a BatchNorm went into.

    None where anything is left over that could be a layer gone wrong.
    """
    found = _by_values(reference, candidate, outputs, limits)
    return found if found.settled and _Proposer(found).nothing_is_open() else None


def _varying(reference: Reference) -> Shelf[int]:
    """The values that depend on the inputs."""
    return Shelf({v.index: v.held for v in reference.values if v.held is not None and not v.constant})


def _by_values(
    reference: Reference, candidate: Candidate, outputs: OutputPairs, limits: Mapping[int, Limit]
) -> Alignment:
    """What the numbers of a normal run tell."""
    known = _varying(reference)
    families = structure.value_families(reference)
    plain = match_values(known, candidate.tapped, limits)
    foreign = layouts(known, plain, candidate, limits)
    candidate = candidate.in_layout(foreign)
    matched = in_order(match_values(known, candidate.tapped, limits) if foreign else plain, families, candidate)
    matched = step_by_step(matched, reference, families, candidate)
    comparable = outputs.comparable(candidate.tapped)
    metrics = outputs.measured(candidate.tapped)
    for value, name in comparable.items():
        judged = metrics[value]
        if judged is not None and judged.agrees and name not in matched.get(value, ()):
            matched.setdefault(value, []).append(name)  # positions among equals: the same answer in other numbers
    returned = {value for call in reference.calls for value in call.outputs} | set(reference.outputs.values())
    computed = {value for site in reference.sites if not only_moves(site.op) for value in site.outputs}
    wanted = sorted(returned | computed)  # not every weight that is turned
    held = {i: v.held for i in wanted if (v := reference.values[i]).constant and v.held is not None}
    fixed = Shelf({index: one for index, one in held.items() if math.prod(one.shape) > 1})
    constants = match_values(fixed, candidate.constants, limits)
    misshapen = {value: name for value, name in outputs.tensors.items() if value not in comparable}
    return Alignment(reference, candidate, limits, comparable, matched, misshapen, constants, families=families)


def _completed(found: Alignment, known: Shelf[int]) -> Alignment:
    """The alignment with counterparts for what values could not pair, as far as runs confirm them."""
    candidate, limits, settled = found.candidate, found.limits, found.settled
    proposer = _Proposer(found)
    if settled and not found.proposed and not proposer.could_pair():
        return found
    found.tied = ties(found.reference, candidate.graph, candidate.constants)
    outdated = False
    for _ in range(ROUNDS):
        proposer.propose()
        if settled and not found.proposed:
            break  # the outputs agree, and nothing inside is left that could differ
        found.isolated = candidate.isolated(found.expected())
        unmatched = known.only(proposer.unpaired_values())
        fresh = match_values(unmatched, proposer.open_tensors(), limits)
        found.isolated_matches |= fresh
        outdated = proposer.drop_refuted() or bool(fresh)
        if not outdated:
            break
    if outdated:  # what was put in for pairs that are taken back must not show
        found.isolated = candidate.isolated(found.expected())
    found.unconfirmed = proposer.unconfirmed()
    return found


class _Proposer:
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
