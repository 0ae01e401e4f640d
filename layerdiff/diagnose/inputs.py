"""Inputs that the file takes for each other: renamed, reordered, or fed in another order."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from layerdiff.diagnose.prove import Explained
from layerdiff.errors import BackendError
from layerdiff.model import Diagnosis, Divergence, Healed, Kind
from layerdiff.patch import Rewire

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.outputs import OutputPairs
    from layerdiff.patch import Patch

MOST = 15
"""Pairs of inputs that are tried."""


def inputs_exchanged(
    candidate: Candidate, outputs: OutputPairs, others: Sequence[Explained], root_type: str
) -> tuple[Divergence, Explained] | None:
    """The finding that two inputs are taken for each other; None where they are not, or all is explained without.

    One exchange at the border explains more than several wrong wires behind it.
    """
    wires = any(o.diagnosis.cause == "order" and (len(others) > 1 or len(o.patch or ()) > 1) for o in others)
    if all(other.diagnosis.verified for other in others) and not wires:
        return None
    pair = _exchanged(candidate, outputs)
    return None if pair is None else _explained(candidate, outputs, pair, root_type)


def _exchanged(candidate: Candidate, outputs: OutputPairs) -> tuple[str, str] | None:
    """The two inputs of one type and shape with which, each fed to the other, every output agrees."""
    feeds = candidate.feeds
    before = outputs.measured(candidate.tapped)
    if all(metrics is not None and metrics.agrees for metrics in before.values()):
        return None
    alike = [
        (a, b)
        for a, b in combinations(feeds, 2)
        if feeds[a].shape == feeds[b].shape and feeds[a].dtype == feeds[b].dtype and (feeds[a] != feeds[b]).any()
    ]
    for a, b in alike[:MOST]:
        swapped = candidate.fed({**feeds, a: feeds[b], b: feeds[a]})
        try:
            if outputs.all_agree(swapped.outputs_with(())):
                return a, b
        except BackendError:
            continue
    return None


def _explained(
    candidate: Candidate, outputs: OutputPairs, pair: tuple[str, str], root_type: str
) -> tuple[Divergence, Explained]:
    """The finding for two inputs that are exchanged: the root's own, healed and verified by feeding them crosswise."""
    a, b = pair
    before = outputs.worst(outputs.measured(candidate.tapped))
    swapped = candidate.fed({**candidate.feeds, a: candidate.feeds[b], b: candidate.feeds[a]})
    after = outputs.worst(outputs.measured(swapped.outputs_with(())))
    text = f"the graph takes {a} and {b} for each other"
    divergence = Divergence(
        "", 0, root_type, None, (), (), a, None, None, Kind.EXCHANGED, text, Healed(before, after, agrees=True)
    )
    diagnosis = Diagnosis(
        "inputs",
        "",
        f"The inputs {a} and {b} are exchanged: with each fed to the other all outputs agree.",
        {"exchanged": [a, b], "error_before": before, "error_after": after},
        f'session.run(None, {{"{a}": {b}, "{b}": {a}}})  # or export again with input_names in the order of forward',
        verified=True,
    )
    return divergence, Explained(diagnosis, _crossed(candidate, pair))


def _crossed(candidate: Candidate, pair: tuple[str, str]) -> Patch:
    graph = candidate.graph
    return tuple(
        Rewire(graph.nodes[node].outputs[0], slot, other)
        for name, other in (pair, pair[::-1])
        for node, slot in graph.consumers.get(name, ())
        if slot >= 0
    )
