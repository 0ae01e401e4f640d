"""Weigh all evidence: which reference value is which ONNX tensor.

Values come first: what holds the same numbers in a normal run is paired. What is left lies behind a fault (or was
folded away). It gets proposals from structure, weights, names and correlation; then one run with every paired tensor
fed its expected value shows which proposals are right. A pair is confirmed from above when the tensor comes out right
from expected inputs, and from below when something computed from it comes out right. A pair confirmed only from below
is an origin: good values go in, a wrong one comes out.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from layerdiff.align import structure
from layerdiff.align.alignment import Alignment
from layerdiff.align.ambiguity import in_order, left_to_its_own_node
from layerdiff.align.chains import step_by_step
from layerdiff.align.given import settle
from layerdiff.align.guards import idle_guards
from layerdiff.align.layout import layouts
from layerdiff.align.matches import match_values
from layerdiff.align.proposer import Proposer
from layerdiff.align.weights import ties
from layerdiff.model import Evidence, Pair
from layerdiff.operators import only_moves
from layerdiff.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from layerdiff.candidate import Candidate
    from layerdiff.limits import Limit
    from layerdiff.model import Reference
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

ROUNDS = 4


def align(  # noqa: PLR0913  two sides with their outputs, two sorts of limits, and what is known already
    reference: Reference,
    candidate: Candidate,
    outputs: OutputPairs,
    limits: Mapping[int, Limit],
    *,
    given: Mapping[int, Pair] | None = None,
    added: Mapping[int, Limit] | None = None,
) -> Alignment:
    """Pair values with tensors; the outputs, and what the user has given, are paired from the start.

    With `added`, see `Alignment`, only what may be wrong is run from right inputs.
    """
    found = _by_values(reference, candidate, outputs, limits)
    found.added = added or {}
    settle(found, given or {})
    return _completed(found, varying(reference))


def only_by_values(
    reference: Reference, candidate: Candidate, outputs: OutputPairs, limits: Mapping[int, Limit]
) -> Alignment | None:
    """The alignment where values alone pair all that is computed, but for layers that a BatchNorm went into.

    None where anything is left over that could be a layer gone wrong.
    """
    found = _by_values(reference, candidate, outputs, limits)
    return found if found.settled and Proposer(found).nothing_is_open() else None


def varying(reference: Reference) -> Shelf[int]:
    """The values that depend on the inputs."""
    return Shelf({v.index: v.held for v in reference.values if v.held is not None and not v.constant})


def _by_values(
    reference: Reference, candidate: Candidate, outputs: OutputPairs, limits: Mapping[int, Limit]
) -> Alignment:
    """What the numbers of a normal run tell."""
    known = varying(reference)
    families = structure.value_families(reference)
    plain = match_values(known, candidate.tapped, limits)
    foreign = layouts(known, plain, candidate, limits)
    candidate = candidate.in_layout(foreign)
    matched = match_values(known, candidate.tapped, limits) if foreign else plain
    tensors = structure.tensor_families(candidate.graph, candidate.moving)
    matched = in_order(matched, reference, families, tensors, candidate)
    matched = left_to_its_own_node(matched, reference, families, tensors, candidate)
    matched = step_by_step(matched, reference, families, tensors, candidate)
    comparable = outputs.comparable(candidate.tapped)
    metrics = outputs.measured(candidate.tapped)
    astray = not all(one is not None and one.agrees for one in metrics.values())
    guards = idle_guards(matched, reference, families, tensors, candidate) if astray else {}
    matched = {value: names for value, names in matched.items() if value not in guards}
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
    found = Alignment(reference, candidate, limits, comparable, matched, misshapen, constants)
    found.families, found.tensor_families = families, tensors
    found.proposed = {value: Pair(value, tensor, Evidence.STRUCTURE) for value, tensor in guards.items()}
    return found


def _completed(found: Alignment, known: Shelf[int]) -> Alignment:
    """The alignment with counterparts for what values could not pair, as far as runs confirm them."""
    candidate, limits, settled = found.candidate, found.limits, found.settled
    proposer = Proposer(found)
    if settled and not found.proposed and not proposer.could_pair():
        return found
    found.tied = ties(found.reference, candidate.graph, candidate.constants)
    outdated = False
    for _ in range(ROUNDS):
        proposer.propose()
        if settled and not found.proposed:
            break  # the outputs agree, and nothing inside is left that could differ
        found.isolate()
        unmatched = known.only(proposer.unpaired_values())
        fresh = match_values(unmatched, proposer.open_tensors(), limits)
        found.isolated_matches |= fresh
        outdated = proposer.drop_refuted() or bool(fresh)
        if not outdated:
            break
    if outdated:  # what was put in for pairs that are taken back must not show
        found.isolate()
    found.unconfirmed = proposer.unconfirmed()
    return found
