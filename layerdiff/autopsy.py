"""Where a runtime died: the graph is run again node by node, until a node brings the runtime down.

A node that does so alone, given what the nodes before it computed, is the answer. Where none does, the shortest part of
the graph that dies is looked for, and the optimisation passes without which the whole survives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.matches import match_values
from layerdiff.backends import Optimisation
from layerdiff.errors import BackendError, Death, RuntimeDiedError
from layerdiff.keys import call_key
from layerdiff.limits import limits_for
from layerdiff.measure import measure
from layerdiff.model import Diagnosis, Divergence, Evidence, Kind, LayerResult, Status
from layerdiff.reached import fails_at, guilty_passes, reached

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Node
    from layerdiff.model import Call, Noise, Reference, Tolerance

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Fall:
    """What brought a runtime down, as far as running it again could tell.

    `known` are the tensors that were computed before. `alone` says that `node` does it by itself; `passes` are the
    optimisation passes without which the runtime survives.
    """

    death: RuntimeDiedError
    known: Mapping[str, Array]
    node: Node | None = None
    alone: bool = False
    passes: tuple[str, ...] = ()


def locate(candidate: Candidate, death: RuntimeDiedError) -> Fall:
    """The node at which the runtime dies; every attempt that fails costs a process, a hung one its time limit."""
    known = dict(candidate.feeds)
    graph = candidate.graph
    for node in (graph.nodes[index] for index in sorted(graph.live_nodes)):
        wanted = [name for name in node.outputs if name in graph.computed_set]
        if not wanted:
            continue
        try:
            known |= _step(candidate, wanted, known)
        except RuntimeDiedError as error:
            return Fall(error, known, node, alone=True)
        except BackendError:  # what it depends on cannot be cut out
            break
    return _together(candidate, known, death)


def _step(candidate: Candidate, wanted: Sequence[str], known: Mapping[str, Array]) -> dict[str, Array]:
    """What one node computes from what is known, with the nodes before it whose results no run hands over."""
    nodes: set[int] = set()
    start: set[str] = set()
    for name in wanted:
        more, borders = candidate.graph.region(name, known)
        nodes |= more
        start |= borders
    return candidate.computed(wanted, nodes, {name: known[name] for name in start if name in known})


def _together(candidate: Candidate, known: Mapping[str, Array], death: RuntimeDiedError) -> Fall:
    """The shortest part of the graph that dies, where no node does alone; else the guilty optimisation passes."""
    for optimisation in (Optimisation.NONE, Optimisation.AS_SHIPPED):
        node = fails_at(candidate, optimisation, RuntimeDiedError)
        if node is not None:
            passes = () if optimisation is Optimisation.NONE else guilty_passes(candidate)
            return Fall(death, known, node, alone=False, passes=passes)
    return Fall(death, known, passes=guilty_passes(candidate))


class Autopsy:
    """What is told of a runtime that died: the layer it had reached, and the layers before that."""

    def __init__(
        self,
        candidate: Candidate,
        fall: Fall,
        reference: Reference,
        floor: Mapping[int, Noise],
        tolerance: Tolerance | None,
    ) -> None:
        self._candidate, self._fall, self._reference = candidate, fall, reference
        self._floor, self._tolerance = floor, tolerance
        expected = {v.index: v.array for v in reference.values if v.array is not None}
        self._matched = match_values(expected, fall.known, limits_for(reference, floor, tolerance))
        self._call = None if fall.node is None else reached(reference, candidate.graph, fall.node, self._matched)

    def layers(self) -> tuple[LayerResult, ...]:
        """One result per module call, in the order in which they returned."""
        last = {call.index: max(call.outputs, default=-1) for call in self._reference.calls}
        ordered = sorted(self._reference.calls, key=lambda call: (last[call.index], -call.index))
        return tuple(self._row(call) for call in ordered)

    def divergence(self) -> Divergence | None:
        """The layer in which the runtime died; None where that is not known."""
        node, call = self._fall.node, self._call
        if node is None:
            return None
        return Divergence(
            layer="" if call is None else call.layer,
            call=0 if call is None else call.call,
            type=self._reference.calls[0].type if call is None else call.type,
            op=None,
            onnx_nodes=(node.name,),
            onnx_ops=(node.op,),
            tensor=next(name for name in node.outputs if name),
            metrics=None,
            noise=None,
            kind=Kind.DIED,
            summary=self.summary(),
        )

    def diagnosis(self) -> Diagnosis:
        """The cause: a pass, or the kernel of a node. That memory ran out says nothing about whose fault it is."""
        fall = self._fall
        kernel = "unknown" if fall.death.how is Death.MEMORY else "runtime-kernel"
        return Diagnosis(
            cause="runtime-fusion" if fall.passes else kernel,
            layer="" if self._call is None else self._call.layer,
            summary=self.summary(),
            evidence={
                "how": str(fall.death.how),
                "message": str(fall.death),
                "node": "" if fall.node is None else fall.node.name,
                "alone": fall.alone,
                "passes": list(fall.passes),
                "tensors_computed_before": len(fall.known) - len(self._candidate.feeds),
            },
            remedy=self._remedy(),
            verified=fall.alone or bool(fall.passes),
        )

    def summary(self) -> str:
        """How the runtime died and what it takes to make it die, in a sentence or two."""
        fall = self._fall
        text = str(fall.death)
        text = f"{text}{'' if text.endswith('.') else '.'}"
        if fall.node is None:
            where = "No single node and no part of the graph does that when it is run again."
            return f"{text} {where}" if not fall.passes else f"{text} It survives without {', '.join(fall.passes)}."
        name = f"{fall.node.op} node {fall.node.name}"
        if fall.alone:
            return f"{text} The {name} does that alone, given what the nodes before it computed."
        without = f", and survives without {', '.join(fall.passes)}" if fall.passes else ""
        return f"{text} No node does that alone; the graph up to the {name} does{without}."

    def _remedy(self) -> str:
        fall = self._fall
        if fall.passes:
            return self._candidate.without(fall.passes)
        if fall.death.how is Death.MEMORY:
            return "look at the sizes that this node computes, try a smaller sample, or allow more memory."
        if fall.death.how is Death.HUNG:
            return "allow more time (time_limit_seconds, --time-limit) if it is only slow."
        return "another version of the runtime, or another operator in its place; report it to the runtime's makers."

    def _row(self, call: Call) -> LayerResult:
        held = [value for value in call.outputs if value in self._matched]
        fell = call is self._call
        if held and not fell:
            value = held[-1]
            tensor = self._matched[value][0]
            expected = self._reference.values[value]
            assert expected.array is not None
            actual = np.ascontiguousarray(self._fall.known[tensor]).reshape(expected.array.shape)
            noise = self._floor.get(value)
            metrics = measure(expected.array, actual, dtype=expected.dtype, noise=noise, tolerance=self._tolerance)
            return LayerResult(
                call.layer, call.call, call.type, None, tensor, Evidence.VALUES, Status.AGREES,
                "computed before the runtime died", metrics, None, noise, call_key(call), expected.shape,
            )  # fmt: skip
        status = Status.DIVERGES if fell else Status.UNMATCHED
        reason = (
            "the runtime died here" if fell else "no tensor that was computed before the runtime died holds its value"
        )
        return LayerResult(
            call.layer, call.call, call.type, None, None, None, status, reason, None, None, None, call_key(call)
        )
