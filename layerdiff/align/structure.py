"""Evidence from structure: both graphs in one canonical order, and the best pairing that keeps that order.

The canonical order is a depth-first post-order from the outputs that visits operands in their written order: it does
not depend on how a tool listed independent nodes. What could not be paired by values is then aligned the way sequences
are (Needleman and Wunsch, 1970, with free gaps), with a score per pair that weighs operators, weights, shapes, names
and how the values correlate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.operators import is_reshaping

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from layerdiff.graph import Graph
    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Family:
    """Values (or tensors) that hold the same numbers because only reshapes lie between them; the first was computed."""

    members: list[Any] = field(default_factory=list)


def value_families(reference: Reference) -> dict[int, Family]:
    """The family of every value that depends on the inputs."""
    families: dict[int, Family] = {}
    for value in reference.values:
        if value.constant:
            continue
        site = reference.producer(value.index)
        source = site.inputs[0] if site is not None and is_reshaping(site.op) and site.inputs else None
        keeps = source in families and np.prod(reference.values[source].shape) == np.prod(value.shape)
        family = families[source] if keeps and source is not None else Family()
        family.members.append(value.index)
        families[value.index] = family
    return families


def tensor_families(graph: Graph, moving: Collection[int] = ()) -> dict[str, Family]:
    """The family of every computed tensor and graph input; `moving` are Transposes that count as reshapes."""
    families: dict[str, Family] = {port.name: Family([port.name]) for port in graph.inputs}
    for node in graph.nodes:
        for name in node.outputs:
            if not name or name in graph.constant:
                continue
            keeps = node.inputs and (is_reshaping(node.op) or node.index in moving)
            source = node.inputs[0] if keeps else None
            family = families.get(source, Family()) if source is not None else Family()
            family.members.append(name)
            families[name] = family
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
