"""A graph that runs portion by portion, each from what those before it made."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layerdiff.graph import Injection
from layerdiff.pieces import Piece

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

    from layerdiff.backends import Room
    from layerdiff.pieces import Pieces
    from layerdiff.store import Held

    Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Relay:
    """A run of a graph in portions.

    Some tensors are read with the given `values` instead of theirs, or by some nodes only with those of `edges`. What
    is `known` is not computed. Both are in the model's layout; `as_in_file` gives them as the file keeps them. `made`
    holds what has run, for the portions that follow to read.
    """

    pieces: Pieces
    as_in_file: Callable[[str, Array], Array]
    values: Mapping[str, Array] = field(default_factory=dict)
    edges: Sequence[Injection] = ()
    known: Mapping[str, Array] = field(default_factory=dict)
    made: dict[str, Held] = field(default_factory=dict)

    def run(self, asked: Sequence[str], room: Room | None = None) -> dict[str, Array]:
        """The tensors of one portion."""
        as_in_file, values, known, made = self.as_in_file, self.values, self.known, self.made
        nodes, start = self.pieces.graph.leading_to(asked, {*values, *known, *made})
        injections = [Injection(n, as_in_file(n, values[n])) for n in sorted(start) if n in values]
        injections += [
            replace(i, value=as_in_file(i.tensor, i.value))
            for i in self.edges
            if any(n in nodes for n, _ in i.edges or ())
        ]
        others = [name for name in sorted(start) if name not in values]
        sources = {n: made[n].array if n in made else self.pieces.fed[n] for n in others if n not in known}
        sources |= {n: as_in_file(n, known[n]) for n in others if n in known}
        return self.pieces.run(Piece(asked, injections, nodes, sources), room=room)
