"""Evidence from structure: both graphs in one canonical order, and the best pairing that keeps that order.

The canonical order is a depth-first post-order from the outputs that visits operands in their written order: it does
not depend on how a tool listed independent nodes. What could not be paired by values is then aligned the way sequences
are (Needleman and Wunsch, 1970, with free gaps), with a score per pair that weighs operators, weights, shapes, names
and how the values correlate.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from layerdiff.operators import is_reshaping

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from layerdiff.graph import Graph
    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]


K = TypeVar("K")


class Families(Generic[K]):
    """Values (or tensors) that hold the same numbers because only reshapes lie between them; the first was computed.

    Most have a family of their own: nothing is kept of what would be a list of one.
    """

    def __init__(self) -> None:
        self._roots: dict[K, K] = {}
        self._members: dict[K, list[K]] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._roots

    def __iter__(self) -> Iterator[K]:
        return iter(self._roots)

    def add(self, name: K, source: K | None = None) -> None:
        """Take one in that is only a reshape of another, or was computed."""
        root = self._roots[name] = name if source is None else self._roots[source]
        if root != name:
            self._members.setdefault(root, [root]).append(name)

    def root(self, name: K) -> K:
        """The one that was computed, of all those that are only reshapes of it."""
        return self._roots.get(name, name)

    def members(self, name: K) -> Sequence[K]:
        """All that hold the same numbers, that which was computed first."""
        root = self.root(name)
        return self._members.get(root, (root,))


def value_families(reference: Reference) -> Families[int]:
    """The family of every value that depends on the inputs."""
    families: Families[int] = Families()
    for value in reference.values:
        if value.constant:
            continue
        site = reference.producer(value.index)
        source = site.inputs[0] if site is not None and is_reshaping(site.op) and site.inputs else None
        keeps = source is not None and source in families and _size(reference, source) == _size(reference, value.index)
        families.add(value.index, source if keeps else None)
    return families


def _size(reference: Reference, value: int) -> int:
    return int(math.prod(reference.values[value].shape))


def tensor_families(graph: Graph, moving: Collection[int] = ()) -> Families[str]:
    """The family of every computed tensor and graph input; `moving` are Transposes that count as reshapes."""
    families: Families[str] = Families()
    for port in graph.inputs:
        families.add(port.name)
    for node in graph.nodes:
        for name in node.outputs:
            if not name or name in graph.constant:
                continue
            keeps = node.inputs and (is_reshaping(node.op) or node.index in moving)
            families.add(name, node.inputs[0] if keeps and node.inputs[0] in families else None)
    return families


def value_order(reference: Reference) -> list[int]:
    """Values in canonical order."""

    def operands(value: int) -> Iterable[int]:
        site = reference.producer(value)
        return () if site is None else site.inputs

    return _post_order(reference.outputs.values(), operands)


def tensor_order(graph: Graph) -> list[str]:
    """Live tensors in canonical order."""

    def operands(name: str) -> Iterable[str]:
        index = graph.producer.get(name)
        return () if index is None else graph.nodes[index].reads

    return _post_order((port.name for port in graph.outputs), operands)


def _post_order(roots: Iterable[Any], operands: Callable[[Any], Iterable[Any]]) -> list[Any]:
    order: dict[Any, None] = {}
    seen: set[Any] = set()
    todo: list[tuple[Any, bool]] = [(root, False) for root in reversed(list(roots))]
    while todo:
        item, done = todo.pop()
        if done:
            order[item] = None
        elif item not in seen:
            seen.add(item)
            todo.append((item, True))
            todo += [(operand, False) for operand in reversed(list(operands(item)))]
    return list(order)


def best_pairing(scores: Array, threshold: float) -> list[tuple[int, int]]:
    """The order-keeping pairs of rows and columns with the largest total score, none below the threshold."""
    rows, columns = scores.shape
    best = np.zeros((rows + 1, columns + 1))
    gains = np.where(scores >= threshold, scores, -np.inf)
    for i in range(rows):
        taken = np.maximum(best[i, 1:], best[i, :-1] + gains[i])
        best[i + 1, 1:] = np.maximum.accumulate(taken)
    pairs = []
    i, j = rows, columns
    while i > 0 and j > 0:
        if best[i, j] == best[i, j - 1]:
            j -= 1
        elif best[i, j] == best[i - 1, j]:
            i -= 1
        else:
            pairs.append((i - 1, j - 1))
            i, j = i - 1, j - 1
    return pairs[::-1]


def likenesses(left: Sequence[Array], right: Sequence[Array]) -> Array:
    """How alike every sample on the left is to every one on the right, from 0 to 1.

    Half is the squared Pearson correlation, which a changed scale does not hurt; half is one minus the relative
    distance, which tells apart tensors that are multiples of each other.
    """
    a, b = _finite(np.stack(left)), _finite(np.stack(right))
    correlated = np.maximum(_unit(a - a.mean(axis=1, keepdims=True)) @ _unit(b - b.mean(axis=1, keepdims=True)).T, 0.0)
    squares = np.sum(a * a, axis=1)[:, None] + np.sum(b * b, axis=1)[None, :]
    apart = np.sqrt(np.maximum(squares - 2 * a @ b.T, 0.0))
    size = np.sqrt(np.maximum(np.sum(a * a, axis=1), 1e-300))[:, None]
    return np.asarray(0.5 * correlated**2 + 0.5 * np.maximum(0.0, 1.0 - apart / size))


def _finite(samples: Array) -> Array:
    return np.where(np.abs(samples) < 1e30, samples, 0.0)


def _unit(samples: Array) -> Array:
    norms = np.linalg.norm(samples, axis=1, keepdims=True)
    return np.where(norms > 0, samples / np.where(norms > 0, norms, 1.0), 0.0)
