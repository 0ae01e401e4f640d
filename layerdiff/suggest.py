"""Tensors that could be the counterpart of a value for which none was found: of its size, and near its place."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from layerdiff.align.sampled import comparable_kind
from layerdiff.shelf import outline, size_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from layerdiff.align import Alignment

SUGGESTED = 3


class Places:
    """Where the values of a reference lie in the candidate graph, as far as pairs tell."""

    def __init__(self, alignment: Alignment) -> None:
        self._alignment = alignment
        graph, tapped = alignment.candidate.graph, alignment.candidate.tapped
        self._position = {name: i for i, name in enumerate(graph.computed)}
        taken = alignment.forced()
        self._open = [n for n in graph.computed if n not in taken and n in tapped and graph.is_live(n)]
        self._readers: dict[int, list[int]] = {}
        for site in alignment.reference.sites:
            for value in site.inputs:
                self._readers.setdefault(value, []).extend(site.outputs)

    def near(self, value: int) -> tuple[str, ...]:
        """Up to three tensors without a counterpart that have the value's size, the nearest to its place first."""
        array, tapped = self._alignment.reference.values[value].array, self._alignment.candidate.tapped
        if array is None:
            return ()
        size, kind = array.size, comparable_kind(array)
        known = {name: one for name in self._open if (one := outline(tapped, name)) is not None}
        fitting = [name for name, one in known.items() if size_of(one) == size and comparable_kind(one) == kind]
        if not fitting:
            return ()
        low = max(self._paired(value, self._made_from), default=-1)
        high = min(self._paired(value, self._made_into), default=len(self._position))

        def distance(name: str) -> tuple[int, bool]:
            at = self._position[name]
            return max(low - at, at - high, 0), known[name].shape != array.shape

        return tuple(sorted(fitting, key=distance)[:SUGGESTED])

    def _made_from(self, value: int) -> Iterable[int]:
        site = self._alignment.reference.producer(value)
        return () if site is None else site.inputs

    def _made_into(self, value: int) -> Iterable[int]:
        return self._readers.get(value, ())

    def _paired(self, value: int, neighbours: Callable[[int], Iterable[int]]) -> list[int]:
        """The positions of the nearest paired values on one side."""
        found: list[int] = []
        todo: deque[Any] = deque(neighbours(value))
        seen: set[int] = set()
        while todo:
            current = todo.popleft()
            if current in seen:
                continue
            seen.add(current)
            at = [self._position[name] for name in self._alignment.tensors_of(current) if name in self._position]
            if at:
                found += at
            else:
                todo.extend(neighbours(current))
        return found
