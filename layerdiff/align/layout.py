"""Tensors that the candidate keeps in another layout than the model: channels last in the file, first in torch.

What holds a value's numbers only after a permutation of its axes says so by its values. Behind a fault no values match;
there the layout is carried on from node to node, as long as the nodes allow it. From then on the candidate shows every
such tensor in the model's layout, and takes values for it in that layout. Outputs are left as they are: an output in
another layout is a difference.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from itertools import permutations
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.sampled import SAMPLES, Table, widened
from layerdiff.align.values import same_numbers, says_nothing
from layerdiff.layout import after, inverse, is_trivial, one_axis_moved
from layerdiff.shelf import noted, outline

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Graph, Node
    from layerdiff.layout import Axes
    from layerdiff.limits import Limit

    Array = np.ndarray[Any, Any]

RANKS = (3, 4, 5)
CORNERS = "corners"
"""Under which it is noted what is at the corners of a tensor."""
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
    others = {name: candidate.outline(name) for name in tapped if name not in plain}
    seen = [name for name, one in others.items() if len(one.shape) in RANKS and one.dtype.kind == "f"]
    found = _by_values(known, tapped.only(seen), limits) if seen else {}
    if not found:
        return {}
    _Carrier(graph, tapped, found, {array.shape for array in known.values()}).carry_on(plain)
    return found


def _by_values(
    known: Mapping[int, Array], tensors: Mapping[str, Array], limits: Mapping[int, Limit]
) -> dict[str, Axes]:
    found: dict[str, Axes] = {}
    for indices, names in Corners(known, limits).alike(tensors):
        telling = [index for index in indices if not says_nothing(known[index], limits[index])]
        if telling:
            found |= _Permuted(known, tensors, limits, telling).found(names)
    return {name: found[name] for name in tensors if name in found}


class Corners:
    """Values by the numbers at their corners, which no order of the axes moves far."""

    def __init__(self, known: Mapping[int, Array], limits: Mapping[int, Limit]) -> None:
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for index, array in known.items():
            if array.ndim in RANKS and array.dtype.kind == "f" and array.size > 1:
                groups[tuple(sorted(array.shape))].append(index)
        self._known: dict[tuple[int, ...], tuple[list[int], Array, Array]] = {}
        for sizes, indices in groups.items():
            numbers = np.stack([corners_of(known[index]) for index in indices])
            rooms = np.stack([_room(row, limits[index]) for row, index in zip(numbers, indices, strict=True)])
            self._known[sizes] = indices, numbers, rooms

    def alike(self, tensors: Mapping[str, Array]) -> Iterator[tuple[list[int], list[str]]]:
        """Some values of the same sizes, and the tensors that may be one of them with its axes in another order."""
        shown: dict[tuple[int, ...], list[str]] = defaultdict(list)
        for name in tensors:
            one = outline(tensors, name)
            if one is not None and one.dtype.kind == "f" and (sizes := tuple(sorted(one.shape))) in self._known:
                shown[sizes].append(name)
        for sizes, names in shown.items():
            indices, wanted, rooms = self._known[sizes]
            table = Table(np.stack([noted(tensors, name, CORNERS, corners_of) for name in names]))
            near = {row for _, rows, _ in table.near(wanted, rooms) for row in rows.tolist()}
            if near:
                yield indices, [names[row] for row in sorted(near)]


@dataclass(frozen=True, slots=True)
class _Permuted:
    """Values that tensors of the same sizes may hold with their axes in another order."""

    known: Mapping[int, Array]
    tensors: Mapping[str, Array]
    limits: Mapping[int, Limit]
    indices: list[int]

    def found(self, names: list[str]) -> dict[str, Axes]:
        """The axes after which some tensors hold a value."""
        left = [name for name in names if not _is_constant(self.tensors[name])]
        rank = self.known[self.indices[0]].ndim
        wanted: dict[tuple[int, ...], dict[int, Array]] = defaultdict(dict)
        for index in self.indices if left else ():
            wanted[self.known[index].shape][index] = _picked(self.known[index], range(rank))
        shapes = {name: self.tensors[name].shape for name in left}
        found: dict[str, Axes] = {}
        for axes in _orders(rank) if left else ():
            turned = {name: tuple(shapes[name][axis] for axis in axes) for name in left}
            for shape, picked in wanted.items():
                fitting = [name for name in left if turned[name] == shape]
                for index, name in self._near(picked, {n: _picked(self.tensors[n], axes) for n in fitting}):
                    array = self.tensors[name].transpose(axes)
                    if name not in found and same_numbers(self.known[index], array, self.limits[index]):
                        found[name] = axes
            left = [name for name in left if name not in found]
        return found

    def _near(self, wanted: Mapping[int, Array], shown: Mapping[str, Array]) -> Iterator[tuple[int, str]]:
        """Which tensors may hold which values, by some numbers of each."""
        if not shown:
            return
        values, names = list(wanted), list(shown)
        rooms = np.stack([_room(numbers, self.limits[index]) for index, numbers in wanted.items()])
        for places, rows, _ in Table(np.stack(list(shown.values()))).near(np.stack(list(wanted.values())), rooms):
            yield from ((values[p], names[r]) for p, r in zip(places.tolist(), rows.tolist(), strict=True))


def corners_of(array: Array) -> Array:
    """The smallest and largest of the corners that lie at the end of as many axes: no order of the axes moves these."""
    corners = array[tuple(slice(None, None, max(n - 1, 1)) for n in array.shape)]
    order, begins = _by_axes_at_their_end(corners.shape)
    numbers = corners.reshape(-1)[order]
    return widened(np.concatenate([np.minimum.reduceat(numbers, begins), np.maximum.reduceat(numbers, begins)]))


@lru_cache(maxsize=64)
def _by_axes_at_their_end(shape: tuple[int, ...]) -> tuple[Array, Array]:
    """The corners of an array ordered by how many axes they lie at the end of, and where each such group begins."""
    at_end = np.indices(shape).sum(axis=0).reshape(-1)
    order = np.argsort(at_end, kind="stable")
    return order, np.unique(at_end[order], return_index=True)[1]


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
    return widened(view[np.unravel_index(places, view.shape)])


def _room(picked: Array, limit: Limit) -> Array:
    """How far a few numbers may be off for all to be compared."""
    return np.asarray(2 * np.max(limit.atol) + (limit.rtol + 1e-3) * np.abs(picked))


def passed_on(graph: Graph, node: Node) -> Sequence[str]:
    """The operands of a node whose layout its result may have."""
    if node.op in _CHANNELS_FIRST:
        return ()
    if node.op in _PRODUCTS:  # rows of the one and columns of the other; a weight leaves the rows as they are
        is_weight = node.inputs[1] in graph.constant or node.inputs[1] in graph.initializers
        return node.inputs[:1] if is_weight else ()
    return node.inputs


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

    def _shape(self, tensor: str) -> tuple[int, ...]:
        one = outline(self.tapped, tensor)
        assert one is not None
        return one.shape

    def _inherited(self, node: Node, name: str) -> Axes | None:
        """The layout of what a node reads, if its result can have the same."""
        rank = len(self._shape(name))
        fitting = (n for n in passed_on(self.graph, node) if n in self.found and len(self._shape(n)) == rank)
        return next((self.found[n] for n in fitting), None)

    def _transposed(self, node: Node, name: str, usual: set[Axes | None]) -> Axes | None:
        """The layout behind a Transpose of something foreign, or of something that the model has in that shape only."""
        axes = self.graph.transposed_by(node)
        if axes is None:
            return None
        source, shape = node.inputs[0], self._shape(name)
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
