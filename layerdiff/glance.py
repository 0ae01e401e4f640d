"""The normal run of a graph that is probably right, looked through while it runs, so that little of it has to be kept.

What `sound` asks of each tensor is answered as soon as the tensor is there, and noted with the run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerdiff import measure
from layerdiff.align import varying
from layerdiff.align.layout import Corners, passed_on
from layerdiff.align.matches import Sought
from layerdiff.align.values import same_in
from layerdiff.errors import BackendError, RuntimeDiedError
from layerdiff.sound import near, rounds_each
from layerdiff.twinless import collected, draws

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Graph
    from layerdiff.limits import Limit
    from layerdiff.model import Reference
    from layerdiff.outputs import OutputPairs
    from layerdiff.shelf import Shelf

    Array = np.ndarray[Any, Any]


def glance(reference: Reference, candidate: Candidate, outputs: OutputPairs, added: Mapping[int, Limit]) -> None:
    """Have most tensors of the normal run looked at and let go, if what ships is about right.

    `added` is what one layer may add to each value.
    """
    wide = collected(added)
    if outputs.masks or draws(candidate) or not near(outputs, candidate.shipped, wide):
        return
    try:
        candidate.skim(_Look(reference, candidate.graph, wide))
    except RuntimeDiedError:
        raise
    except BackendError:  # a portion takes no values from outside: the graph runs whole
        return


class _Look:
    """Notes of each tensor which values it holds, and how well. Called with a portion, it tells what is to stay."""

    def __init__(self, reference: Reference, graph: Graph, limits: Mapping[int, Limit]) -> None:
        self._known, self._graph, self._limits = varying(reference), graph, limits
        self._sought, self._corners = Sought(self._known, limits), Corners(self._known, limits)
        self._returned = {value for call in reference.calls for value in call.outputs}
        ends = (rounds_each(reference, site) for site in reference.sites)
        self._read_again = {value for pair in ends if pair is not None for value in pair}
        self._turned: set[str] = set()

    def __call__(self, portion: Shelf[str]) -> set[str]:
        held: dict[str, list[int]] = {}
        for value, name in self._sought.near(portion):
            self._note(portion, name, value)
            held.setdefault(name, []).append(value)
        self._note_turned(portion, [name for name in portion if name not in held])
        stays = {
            name
            for name, values in held.items()
            if not self._read_again.isdisjoint(values) or any((name, value) not in portion.notes for value in values)
        }
        return stays | self._turned

    def _note(self, portion: Shelf[str], name: str, value: int) -> None:
        """Note how far a tensor is from a value, and of a layer's result all that its metrics take."""
        if value in self._returned:
            measure.look(portion, name, value, self._known[value])
        same_in(portion, name, value, self._known[value], self._limits[value])

    def _note_turned(self, portion: Shelf[str], others: list[str]) -> None:
        """Add the tensors that may hold a value with its axes in another order, and what may inherit that order."""
        self._turned.update(*(names for _, names in self._corners.alike(portion.only(others))))
        for name in others:
            node = self._graph.nodes[self._graph.producer[name]]
            if not self._turned.isdisjoint(passed_on(self._graph, node)):
                self._turned.add(name)
