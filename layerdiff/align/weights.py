"""Evidence from weights: a constant operand of a node that equals a parameter ties the node to a site.

Equal means equal in some layout (transposed, reshaped, gates in another order: the same numbers), equal up to a factor
per output channel (a BatchNorm was folded in), or nearly equal (another precision, a damaged channel).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import rows_in_double
from layerdiff.operators import base_name, only_moves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from layerdiff.graph import Graph
    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

_QUANTILES = 129
# So many channels of a weight, and numbers of each, tell what it resembles.
_CHANNELS, _OF_EACH = 64, 256
# Numbers that are looked at in one go.
_AT_ONCE = 1 << 20
_EQUAL = 1e-6
# By so many times the worst residual of a channel rounding shifts what looks like the factor of a channel.
_ROUNDED = 3.0
# Vectors that are shorter vary alike by accident.
_TELLING = 8


class Tie(str, Enum):
    """How a constant operand relates to a parameter."""

    EXACT = "exact"
    SCALED = "scaled"  # per output channel, as folding a BatchNorm does
    NEAR = "near"


def parameters_of_sites(reference: Reference) -> dict[int, tuple[str, ...]]:
    """The parameters that each site reads, also through views such as a transpose, by site index."""
    below: dict[int, tuple[str, ...]] = {}

    def names(value: int) -> tuple[str, ...]:
        known = reference.values[value]
        if known.parameter is not None:
            return (known.parameter,)
        if not known.constant or known.site is None:
            return ()
        if value not in below:
            below[value] = tuple(n for i in reference.sites[known.site].inputs for n in names(i))
        return below[value]

    found = {}
    for site in reference.sites:
        if any(not reference.values[i].constant for i in site.inputs):
            found[site.index] = tuple(dict.fromkeys(n for i in site.inputs for n in names(i)))
    return found


def constants_read(reference: Reference, site: Site) -> list[Array]:
    """What a layer computes with: its parameters as they are, or what was made of them (by weight norm, say)."""
    found = []
    for index in site.inputs:
        value = reference.values[index]
        while value.constant and value.parameter is None and value.site is not None:
            maker = reference.sites[value.site]
            if not only_moves(maker.op) or not maker.inputs:
                break
            value = reference.values[maker.inputs[0]]
        array = value.array if value.parameter is None else reference.parameters[value.parameter]
        if value.constant and array is not None:
            found.append(array)
    return found


def parameters_read(reference: Reference, site: Site) -> tuple[str, ...]:
    """The parameters that one site reads directly."""
    found = (reference.values[index].parameter for index in site.inputs)
    return tuple(name for name in found if name is not None)


@np.errstate(invalid="ignore")  # parameters that are not finite
def ties(reference: Reference, graph: Graph, constants: Mapping[str, Array]) -> dict[tuple[int, int], dict[str, Tie]]:
    """For ``(node, site)`` the parameters of the site that the node carries, with how well they match.

    `constants` are the numbers of initializers and of tensors computed from them.
    """
    sites_of: dict[str, list[int]] = {}
    for site, names in parameters_of_sites(reference).items():
        for name in names:
            sites_of.setdefault(name, []).append(site)
    relations: dict[str, dict[str, Tie]] = {}
    weights = _Weights(reference)
    found: dict[tuple[int, int], dict[str, Tie]] = {}
    for node, operand in ((n, name) for n in graph.nodes for name in n.inputs if name in constants):
        if operand not in relations:
            relations[operand] = weights.relations(constants[operand])
        for name, tie in relations[operand].items():
            for site in sites_of.get(name, ()):
                found.setdefault((node.index, site), {})[name] = tie
    return found


class _Weights:
    """The parameters of a reference, with some numbers of each: most weights lie as the model has them, or turned."""

    def __init__(self, reference: Reference) -> None:
        self._parameters = reference.parameters
        self._by_size: dict[int, list[str]] = {}
        self._by_shape: dict[tuple[int, ...], list[str]] = {}
        for name, array in self._parameters.items():
            if array.size > 1 and array.dtype.kind == "f":
                self._by_size.setdefault(array.size, []).append(name)
                self._by_shape.setdefault(array.shape, []).append(name)
        self._stacks: dict[tuple[tuple[int, ...], bool], _Stack] = {}
        self._outlines: dict[int, Array] = {}

    def relations(self, array: Array) -> dict[str, Tie]:
        """The parameters that an array may be; only the best kind of tie is kept."""
        if array.size not in self._by_size or array.dtype.kind not in "fiu":
            return {}
        stacks = [self._of_shape(array.shape[::-1] if turned else array.shape, turned) for turned in _turns(array)]
        some = _picks(array)
        equal = [name for stack in stacks for name in stack.equal(some)]
        if equal:  # quickly told, and then no other tie counts
            return dict.fromkeys(equal, Tie.EXACT)
        found: dict[str, Tie] = {}
        for stack in stacks:
            for name, tie in zip(stack.names, stack.resemblances(array, some), strict=True):
                if tie is not None:
                    found.setdefault(name, tie)
        if Tie.SCALED not in found.values():  # gates in another order, say: these are sorted
            found |= {name: Tie.EXACT for name in self._of_about(array) if _same_numbers(self._parameters[name], array)}
        best = next((tie for tie in Tie if tie in found.values()), None)
        return {name: tie for name, tie in found.items() if tie is best}

    def _of_shape(self, shape: tuple[int, ...], turned: bool) -> _Stack:  # noqa: FBT001  half of a key
        """The parameters of one shape, as they are or turned."""
        if (shape, turned) not in self._stacks:
            arrays = {name: self._parameters[name] for name in self._by_shape.get(shape, ())}
            self._stacks[shape, turned] = _Stack({n: _picks(a.T if turned else a) for n, a in arrays.items()})
        return self._stacks[shape, turned]

    def _of_about(self, array: Array) -> list[str]:
        """The parameters that may hold the numbers of an array in another order."""
        names = self._by_size[array.size]
        if array.size not in self._outlines:
            self._outlines[array.size] = np.stack([_outline(self._parameters[name]) for name in names])
        own = self._outlines[array.size]
        scale = np.abs(own[:, :2]).max(axis=1, keepdims=True)
        close = np.all(np.abs(own - _outline(array)) <= _EQUAL * np.where(scale > 0, scale, 1.0), axis=1)
        return [names[int(i)] for i in np.flatnonzero(close)]


class _Stack:
    """Some numbers of several parameters of one shape: all are looked at together."""

    def __init__(self, picked: Mapping[str, Array]) -> None:
        self.names = list(picked)
        self._numbers = np.stack(list(picked.values())) if picked else np.zeros((0, 1, 1))
        scale = np.abs(self._numbers).max(axis=(1, 2))
        self._room = _EQUAL * np.where(scale > 0, scale, 1.0)
        self._first = self._numbers[:, 0, 0].copy()

    def equal(self, some: Array) -> list[str]:
        """The parameters that hold some numbers, to a millionth of the largest."""
        if not self.names:
            return []
        near = np.flatnonzero(np.abs(self._first - some[0, 0]) <= self._room)
        step = max(1, _AT_ONCE // some.size)
        return [
            self.names[place]
            for few in (near[i : i + step] for i in range(0, len(near), step))
            for place in few[np.abs(self._numbers[few] - some).max(axis=(1, 2)) <= self._room[few]]
        ]

    def resemblances(self, array: Array, some: Array) -> list[Tie | None]:
        """How an array, of which some numbers are given, relates to each parameter."""
        alike, step = _likeness_of(array), max(1, _AT_ONCE // some.size)
        return [tie for i in range(0, len(self.names), step) for tie in alike(self._numbers[i : i + step], some)]


def _turns(array: Array) -> tuple[bool, ...]:
    """As it is, and turned where there is more than one axis."""
    return (False, True) if array.ndim > 1 else (False,)


def _picks(array: Array) -> Array:
    """Some numbers of some channels, in double precision: all of them where they are few. Shape (channels, numbers)."""
    if array.ndim < 2:
        flat = array.reshape(1, -1)
        return flat[:, :: max(1, array.size // (_CHANNELS * _OF_EACH))].astype(np.float64)
    steps: list[slice] = []
    room = _OF_EACH
    for count in reversed(array.shape[1:]):
        steps.insert(0, slice(None, None, max(1, count // room)))
        room = max(1, room // count)
    some = array[(slice(None, None, max(1, len(array) // _CHANNELS)), *steps)]
    return some.reshape(len(some), -1).astype(np.float64)


def relation(parameter: Array, array: Array) -> Tie | None:
    """How an array relates to a parameter of the same size."""
    if _same_numbers(parameter, array):
        return Tie.EXACT
    views = [view for view in (parameter, parameter.T) if view.shape == array.shape]
    found = (_likeness_of(array)(_picks(view)[None], _picks(array))[0] for view in views)
    return next((tie for tie in found if tie is not None), None)


def _outline(array: Array) -> Array:
    """Smallest, largest and mean number: the same for every layout of the same numbers, and quickly told."""
    return np.array([array.min(), array.max(), array.mean(dtype=np.float64)], np.float64)


def _close(one: Array, other: Array, outline: Array) -> bool:
    """Whether numbers are equal to a millionth of the largest of a parameter with such an outline."""
    scale = float(np.abs(outline[:2]).max()) or 1.0
    return bool(np.abs(one - other).max() <= _EQUAL * scale)


def _same_numbers(parameter: Array, array: Array) -> bool:
    """Whether two arrays hold the same numbers, in whatever order."""
    outline = _outline(parameter)
    return _close(outline, _outline(array), outline) and _close(_spread(parameter), _spread(array), outline)


def _likeness_of(array: Array) -> Callable[[Array, Array], list[Tie | None]]:
    """What tells how arrays of a type relate to parameters."""
    return _in_another_unit if array.dtype.kind in "iu" else _resemblances


def _resemblances(p: Array, a: Array) -> list[Tie | None]:
    """How some numbers of an array relate to those of parameters, of shapes (channels, numbers) and (n, ...)."""
    if p.shape[1] == 1:
        near = _cosines(_centred(p), _centred(a)) > 0.9 if p.shape[2] >= _TELLING else np.zeros(len(p), bool)
        return [Tie.NEAR if each else None for each in near]
    scaled = np.median(_channel_cosines(p, a), axis=1) > 0.9999
    return [
        _scaled_or_rounded(one, a) if parallel else _near_or_scaled(one, a) if alike else None
        for one, parallel, alike in zip(p, scaled, _cosines(p, a) > 0.8, strict=True)
    ]


def _scaled_or_rounded(p: Array, a: Array) -> Tie:
    """Whether channels that are parallel to those of a parameter are multiples of them, or the same, less precisely.

    As most of them are: one may be wrong.
    """
    factors, residuals = _factors(p, a)
    return Tie.NEAR if np.median(np.abs(factors - 1)) <= _ROUNDED * np.median(residuals) else Tie.SCALED


def _near_or_scaled(p: Array, a: Array) -> Tie:
    """Whether an array that is about a parameter has its channels scaled."""
    return Tie.SCALED if np.median(np.abs(channel_factors(p, a)[0] - 1)) > 0.02 else Tie.NEAR


def _in_another_unit(p: Array, a: Array) -> list[Tie | None]:
    """The same for an array of integers, which may be quantised parameters."""
    if p.shape[1] == 1:
        return [None] * len(p)
    return [Tie.NEAR if cosine > 0.8 else None for cosine in _cosines(_centred(p), _centred(a))]


def by_output_channel(reference: Reference, site: Site, weight: Array) -> Array:
    """A layer's weight with its output channels first.

    A matrix product keeps them last unless it is transposed, a transposed convolution second.
    """
    if site.arguments.get("transposed") and site.arguments.get("groups", 1) == 1:
        return weight.swapaxes(0, 1)
    if base_name(site.op) not in ("addmm", "mm") or weight.ndim != 2:
        return weight
    matrix = reference.values[site.inputs[-1]]
    return weight.T if matrix.parameter is not None else weight


def carried_as(weight: Array, constants: Iterable[Array]) -> list[Array]:
    """The constants that may be a weight, in its own layout: as they are, or with their channels exchanged."""
    found = []
    for array in constants:
        views = [array, array.swapaxes(0, 1)] if array.ndim >= 2 else [array]
        found += [view for view in views if view.shape == weight.shape]
    return found


def channel_factors(parameter: Array, array: Array) -> tuple[Array, float]:
    """The factor per output channel that maps a weight onto an array, and the worst relative residual it leaves."""
    factors, residuals = _factors(parameter, array)
    return factors, float(residuals.max(initial=0.0))


def _factors(parameter: Array, array: Array) -> tuple[Array, Array]:
    """The same with the residual of each channel."""
    factors, residuals = np.zeros((2, len(parameter)))
    for part, p, a in rows_in_double(parameter, array.reshape(parameter.shape)):
        factors[part] = np.einsum("cx,cx->c", p, a) / np.maximum(np.einsum("cx,cx->c", p, p), 1e-300)
        gap = np.linalg.norm(a - factors[part, None] * p, axis=1)
        residuals[part] = gap / np.maximum(np.linalg.norm(a, axis=1), 1e-300)
    return factors, residuals


def _spread(array: Array) -> Array:
    """Quantiles of the sorted numbers: equal for every layout of the same numbers."""
    flat = np.sort(array, axis=None)
    picks = np.linspace(0, flat.size - 1, min(_QUANTILES, flat.size)).astype(int)
    return np.asarray(flat[picks].astype(np.float64))


def _channel_cosines(p: Array, a: Array) -> Array:
    """How parallel each channel of an array is to that of parameters; shape (n, channels)."""
    if p.shape[2] < 4:  # so few numbers per channel are parallel by accident
        return np.zeros(p.shape[:2])
    norms = np.linalg.norm(p, axis=2) * np.linalg.norm(a, axis=1)
    return np.asarray(np.abs(np.einsum("ncx,cx->nc", p, a)) / np.maximum(norms, 1e-300))


def _centred(numbers: Array) -> Array:
    """Numbers without their mean, that of each parameter of its own."""
    return np.asarray(numbers - numbers.mean(axis=(-2, -1), keepdims=True))


def _cosines(p: Array, a: Array) -> Array:
    """The cosine of the angle between an array and each parameter; 0 where one of the two is nothing but zeros."""
    flat = p.reshape(len(p), -1)
    both = np.linalg.norm(flat, axis=1) * np.linalg.norm(a)
    return np.asarray(np.divide(flat @ a.reshape(-1), both, out=np.zeros(len(p)), where=both > 0))
