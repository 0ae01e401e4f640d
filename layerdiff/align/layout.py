"""Tensors that the candidate keeps in another layout than the model: channels last in the file, first in torch.

What holds a value's numbers only after a permutation of its axes says so by its values. Behind a fault no values match;
there the layout is carried on from node to node, as long as the nodes allow it. From then on the candidate shows every
such tensor in the model's layout, and takes values for it in that layout. Outputs are left as they are: an output in
another layout is a difference.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.sampled import SAMPLES
from layerdiff.align.values import same_numbers, says_nothing
from layerdiff.layout import after, inverse, is_trivial, one_axis_moved
from layerdiff.store import Made

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Graph, Node
    from layerdiff.layout import Axes
    from layerdiff.measure import Limit

    Array = np.ndarray[Any, Any]

RANKS = (3, 4, 5)
# Operators whose result has its channels second, whatever came before.
_CHANNELS_FIRST = frozenset(
    {
        "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "MaxPool", "AveragePool", "GlobalAveragePool", "LpPool",
        "GlobalMaxPool", "BatchNormalization", "InstanceNormalization", "GroupNormalization", "DepthToSpace",
        "SpaceToDepth", "LRN", "GridSample", "Reshape", "Flatten",
    }
)  # fmt: skip

_PRODUCTS = frozenset({"MatMul", "Gemm", "Einsum"})


def layouts(
    known: Mapping[int, Array], matched: Mapping[int, list[str]], candidate: Candidate, limits: Mapping[int, Limit]
) -> dict[str, Axes]:
    """For each tensor in a foreign layout the axes that bring it into the model's."""
    graph, tapped = candidate.graph, candidate.tapped
    plain = {name for names in matched.values() for name in names} | {port.name for port in graph.outputs}
    seen = [n for n, a in tapped.items() if n not in plain and a.ndim in RANKS and a.dtype.kind == "f"]
    found = _by_values(known, Made(dict.fromkeys(seen), lambda name: tapped[name]), limits) if seen else {}
    if not found:
        return {}
    _Carrier(graph, tapped, found, {array.shape for array in known.values()}).carry_on(plain)
    return found


def _by_values(
    known: Mapping[int, Array], tensors: Mapping[str, Array], limits: Mapping[int, Limit]
) -> dict[str, Axes]:
    values: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, array in known.items():
        if array.ndim in RANKS and array.dtype.kind == "f" and array.size and not says_nothing(array, limits[index]):
            values[tuple(sorted(array.shape))].append(index)
    tables = {sizes: _Corners(indices, known, limits) for sizes, indices in values.items()}
    picked: dict[int, tuple[Array, Array]] = {}
    result: dict[str, Axes] = {}
    for name, array in tensors.items():
        table = tables.get(tuple(sorted(array.shape)))
        alike = table.like(array) if table is not None and array.size > 1 else []
        if not alike or _is_constant(array):
            continue
        for index in alike:
            if index not in picked:
                numbers = _picked(known[index], range(known[index].ndim))
                picked[index] = numbers, _room(numbers, limits[index])
        for axes in _orders(array.ndim):
            shape = tuple(array.shape[axis] for axis in axes)
            candidates = [i for i in alike if known[i].shape == shape]
            near = _near([picked[i] for i in candidates], _picked(array, axes)) if candidates else []
            likely = [i for i, is_near in zip(candidates, near, strict=True) if is_near]
            if any(same_numbers(known[i], array.transpose(axes), limits[i]) for i in likely):
                result[name] = axes
                break
    return result


class _Corners:
    """The first and last numbers of values of the same sizes: no order of the axes moves them."""

    def __init__(self, indices: list[int], known: Mapping[int, Array], limits: Mapping[int, Limit]) -> None:
        self._indices = np.array(indices)
        self._numbers = np.stack([_corners(known[index]) for index in indices])
        self._rooms = np.stack([_room(n, limits[i]) for n, i in zip(self._numbers, indices, strict=True)])

    def like(self, array: Array) -> list[int]:
        """The values that may be an array with its axes in another order."""
        near = _within(self._numbers, _corners(array), self._rooms).all(axis=1)
        return [int(index) for index in self._indices[near]]


def _corners(array: Array) -> Array:
    return np.array([array.flat[0], array.flat[-1]], np.float64)


def _is_constant(array: Array) -> bool:
    """Whether all numbers are one; some of them tell mostly that they are not."""
    first = array.flat[0]
    return bool(np.all(array.reshape(-1)[:: max(1, array.size // SAMPLES)] == first) and np.all(array == first))


def _orders(rank: int) -> list[Axes]:
    """All permutations but the trivial one, moves of the channel axis first."""
    likely = one_axis_moved(rank)
    return likely + [axes for axes in permutations(range(rank)) if axes not in likely and not is_trivial(axes)]


def _picked(array: Array, axes: Iterable[int]) -> Array:
    """Elements of an array at fixed places of its permuted self, without moving it."""
    view = array.transpose(tuple(axes))
    places = np.random.default_rng(array.size).integers(0, array.size, min(SAMPLES, array.size))
    return np.asarray(view[np.unravel_index(places, view.shape)], dtype=np.float64)


def _near(picked: Sequence[tuple[Array, Array]], sampled: Array) -> list[bool]:
    """Which of some picked numbers, each with its room, are about the sampled ones: in a deep network they are many."""
    numbers, rooms = (np.stack(rows) for rows in zip(*picked, strict=True))
    near: list[bool] = np.asarray(_within(numbers, sampled, rooms).all(axis=1)).tolist()
    return near


def _room(picked: Array, limit: Limit) -> Array:
    """How far a few numbers may be off for all to be compared."""
    return np.asarray(2 * np.max(limit.atol) + (limit.rtol + 1e-3) * np.abs(picked))


def _within(picked: Array, sampled: Array, room: Array) -> Array:
    with np.errstate(invalid="ignore"):
        close = (np.abs(sampled - picked) <= room) | (sampled == picked)
    return np.asarray(close | (np.isnan(sampled) & np.isnan(picked)))


@dataclass(frozen=True, slots=True)
class _Carrier:
    """Carries layouts on to tensors whose values say nothing, from what they are computed from."""

    graph: Graph
    tapped: Mapping[str, Array]
    found: dict[str, Axes]
    shapes: set[tuple[int, ...]]

    def carry_on(self, plain: set[str]) -> None:
        """Add what can be said of tensors that hold no value in its own layout."""
        found = self.found
        usual = {
            self.graph.transposed_by(node)
            for node in self.graph.nodes
            if node.op == "Transpose" and node.inputs[0] not in found and node.outputs[0] in found
        }
        for node in self.graph.nodes:
            for name in node.outputs:
                if name in found or name in plain or name not in self.tapped:
                    continue
                is_transpose = node.op == "Transpose"
                axes = self._transposed(node, name, usual) if is_transpose else self._inherited(node, name)
                if axes is not None and not is_trivial(axes):
                    found[name] = axes

    def _inherited(self, node: Node, name: str) -> Axes | None:
        """The layout of what a node reads, if its result can have the same."""
        if node.op in _CHANNELS_FIRST:
            return None
        rank = self.tapped[name].ndim
        operands = node.inputs
        if node.op in _PRODUCTS:  # rows of the one and columns of the other; a weight leaves the rows as they are
            operands = (
                operands[:1] if operands[1] in self.graph.constant or operands[1] in self.graph.initializers else ()
            )
        fitting = (n for n in operands if n in self.found and self.tapped[n].ndim == rank)
        return next((self.found[n] for n in fitting), None)

    def _transposed(self, node: Node, name: str, usual: set[Axes | None]) -> Axes | None:
        """The layout behind a Transpose of something foreign, or of something that the model has in that shape only."""
        axes = self.graph.transposed_by(node)
        if axes is None:
            return None
        source, shape = node.inputs[0], self.tapped[name].shape
        back = after(inverse(axes), self.found.get(source, tuple(range(len(axes)))))
        foreign = shape not in self.shapes and tuple(shape[axis] for axis in back) in self.shapes
        leads_there = axes in usual and inverse(axes) != axes  # what undoes itself may as well lead back
        return back if source in self.found or leads_there or foreign else None


def turned(expected: Array, actual: Array | None, limit: Limit) -> Axes | None:
    """The permutation after which an array holds the expected numbers; None where there is none."""
    if actual is None or actual.ndim != expected.ndim or sorted(actual.shape) != sorted(expected.shape):
        return None
    if expected.ndim not in (2, *RANKS) or expected.size < 2:
        return None
    fitting = (o for o in _orders(expected.ndim) if tuple(actual.shape[axis] for axis in o) == expected.shape)
    return next((axes for axes in fitting if same_numbers(expected, actual.transpose(axes), limit)), None)
