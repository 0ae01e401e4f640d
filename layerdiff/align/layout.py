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

from layerdiff.align.sampled import SAMPLES, Table, widened
from layerdiff.align.values import same_numbers, says_nothing
from layerdiff.layout import after, inverse, is_trivial, one_axis_moved
from layerdiff.store import Made

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

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
    shown: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for name, array in tensors.items():
        if array.size > 1:
            shown[tuple(sorted(array.shape))].append(name)
    values: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, array in known.items():
        sizes = tuple(sorted(array.shape))
        if (
            array.ndim in RANKS
            and array.dtype.kind == "f"
            and sizes in shown
            and not says_nothing(array, limits[index])
        ):
            values[sizes].append(index)
    found: dict[str, Axes] = {}
    for sizes, indices in values.items():
        found |= _Permuted(known, tensors, limits, indices).found(shown[sizes])
    return {name: found[name] for name in tensors if name in found}


@dataclass(frozen=True, slots=True)
class _Permuted:
    """Values that tensors of the same sizes may hold with their axes in another order."""

    known: Mapping[int, Array]
    tensors: Mapping[str, Array]
    limits: Mapping[int, Limit]
    indices: list[int]

    def found(self, names: list[str]) -> dict[str, Axes]:
        """The axes after which some tensors hold a value."""
        corners = {index: _corners(self.known[index]) for index in self.indices}
        alike = {name for _, name in self._near(corners, {name: _corners(self.tensors[name]) for name in names})}
        left = [name for name in names if name in alike and not _is_constant(self.tensors[name])]
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


def _corners(array: Array) -> Array:
    """The first and the last number: no order of the axes moves them."""
    return widened(np.array([array.flat[0], array.flat[-1]]))


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
