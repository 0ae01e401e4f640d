"""A run with every tensor visible that keeps little: what was looked at goes, portion by portion.

Where a graph is probably right, each tensor is read once, to be compared with a value. Memory that all of them would
take costs more to get from the operating system than the numbers in it cost to compute.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from layerdiff.backends import Room
from layerdiff.portions import portions
from layerdiff.shelf import Remade, Shelf
from layerdiff.store import SMALL, Resident

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping, Sequence

    import numpy as np

    from layerdiff.graph import Graph
    from layerdiff.relay import Relay
    from layerdiff.store import Held, Store

    Array = np.ndarray[Any, Any]

WORTH_IT = 128 << 20
"""Bytes: what the tensors of a graph take at least, for it to be better not to keep them."""
AT_ONCE = 64 << 20
"""About so many bytes are looked at together. Of less, more would have to be kept for the next portion."""
MOSTLY = 0.95
"""The share of tensors whose shapes must be known before."""


def skimmed(
    relay: Relay,
    shapes: Mapping[str, tuple[int, ...]],
    store: Store,
    look: Callable[[Shelf[str]], Container[str]],
    again: Callable[[], Mapping[str, Array]],
) -> Shelf[str] | None:
    """Every tensor that a graph computes, most of them let go, and what `look` noted with each portion.

    `look` returns the names of what is to stay. Whoever reads another one has all of them made `again`. None where it
    is not worth it, or not all shapes are known.
    """
    graph = relay.pieces.graph
    names = list(graph.computed)
    sizes = {name: 4 * math.prod(shapes[name]) for name in names if name in shapes}
    if len(sizes) < MOSTLY * len(names) or sum(sizes.values()) < WORTH_IT:
        return None
    groups = portions(graph, names, sizes, AT_ONCE if store.budget is None else min(AT_ONCE, store.budget // 2))
    room = Room(shapes, max(sum(sizes.get(name, 0) for name in group) for group in groups))
    notes: dict[tuple[str, Any], Any] = {}
    for group, needed in zip(groups, _needed_later(graph, groups), strict=True):
        room.clear()
        found = relay.run(group, room)
        portion = Shelf({name: Resident(array) for name, array in found.items()})
        stays = look(portion)
        notes |= portion.notes
        for name, array in found.items():
            kept = array.nbytes < SMALL or name in needed or name in stays
            relay.made[name] = store.keep_copy(array) if kept else _let_go(name, array, again)
    whole = Shelf(relay.made)
    whole.notes = notes
    return whole


def _let_go(name: str, array: Array, again: Callable[[], Mapping[str, Array]]) -> Held:
    return Remade(name, array.shape, array.dtype, again)


def _needed_later(graph: Graph, groups: Sequence[Sequence[str]]) -> list[set[str]]:
    """For each portion what those behind it read, and the outputs of the graph."""
    found: list[set[str]] = []
    later = {port.name for port in graph.outputs}
    for group in reversed(groups):
        found.append(set(later))
        later |= {name for made in group for name in graph.nodes[graph.producer[made]].reads}
    return found[::-1]
