"""A piece of a graph, run on its own, with all axes as the file has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerdiff.backends import Optimisation, Sparing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy as np

    from layerdiff.backends import Backend, Room
    from layerdiff.graph import Graph, Injection

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tensors, computed by some nodes (None: those that lead there) from some sources (None: what is fed)."""

    outputs: Sequence[str]
    injections: Sequence[Injection] = ()
    nodes: Iterable[int] | None = None
    sources: Mapping[str, Array] | None = None


@dataclass(frozen=True, slots=True)
class Pieces:
    """Runs pieces of a graph."""

    graph: Graph
    backend: Backend
    fed: Mapping[str, Array]

    def run(
        self, piece: Piece, optimisation: Optimisation = Optimisation.NONE, room: Room | None = None
    ) -> dict[str, Array]:
        """What a piece gives, in a room where there is one and the runtime can put it there."""
        if not piece.outputs:
            return {}
        sources = self.fed if piece.sources is None else piece.sources
        feeds = {**sources, **{injection.feed: injection.value for injection in piece.injections}}
        model = self.graph.rewritten(piece.outputs, piece.injections, nodes=piece.nodes, sources=piece.sources)
        session = self.backend.open(model, optimisation)
        if room is not None and isinstance(session, Sparing):
            arrays = session.run_into(room, feeds)
        else:
            arrays = session.run(feeds)
        return {name: array for name, array in arrays.items() if array is not None}
