"""Evidence from weights: a constant operand of a node that equals a parameter ties the node to a site.

Equal means equal in some layout (transposed, reshaped, gates in another order: the same numbers), equal up to a factor
per output channel (a BatchNorm was folded in), or nearly equal (another precision, a damaged channel).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.operators import base_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerdiff.graph import Graph
    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

_QUANTILES = 129
# So many channels of a weight, and numbers of each, tell what it resembles.
_CHANNELS, _OF_EACH = 64, 256
# Numbers that are looked at in one go.
_AT_ONCE = 1 << 20
_EQUAL = 1e-6
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


def parameters_read(reference: Reference, site: Site) -> tuple[str, ...]:
    """The parameters that one site reads directly."""
    found = (reference.values[index].parameter for index in site.inputs)
    return tuple(name for name in found if name is not None)


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
        self._picked: dict[tuple[tuple[int, ...], bool], Array] = {}
        self._outlines: dict[int, Array] = {}

    def relations(self, array: Array) -> dict[str, Tie]:
        """The parameters that an array may be; only the best kind of tie is kept."""
        if array.size not in self._by_size or array.dtype.kind not in "fiu":
            return {}
        found: dict[str, Tie] = {}
        for turned in (False, True) if array.ndim > 1 else (False,):
            names, picked = self._of_shape(array.shape[::-1] if turned else array.shape, turned=turned)
            for name, tie in zip(names, _resemblances(picked, array), strict=True):
                if tie is not None and (name not in found or tie is Tie.EXACT):
                    found[name] = tie
        if not {Tie.EXACT, Tie.SCALED}.intersection(found.values()):  # gates in another order, say: these are sorted
            found |= {name: Tie.EXACT for name in self._of_about(array) if _same_numbers(self._parameters[name], array)}
        best = next((tie for tie in Tie if tie in found.values()), None)
        return {name: tie for name, tie in found.items() if tie is best}

    def _of_shape(self, shape: tuple[int, ...], *, turned: bool) -> tuple[list[str], Array]:
        """The parameters of one shape, and some numbers of each as it is or turned."""
        names = self._by_shape.get(shape, [])
        if names and (shape, turned) not in self._picked:
            arrays = (self._parameters[name] for name in names)
            self._picked[shape, turned] = np.stack([_picks(array.T if turned else array) for array in arrays])
        return names, self._picked.get((shape, turned), np.zeros((0, 1, 1)))

    def _of_about(self, array: Array) -> list[str]:
        """The parameters that may hold the numbers of an array in another order."""
        names = self._by_size[array.size]
        if array.size not in self._outlines:
            self._outlines[array.size] = np.stack([_outline(self._parameters[name]) for name in names])
        own = self._outlines[array.size]
        scale = np.abs(own[:, :2]).max(axis=1, keepdims=True)
        close = np.all(np.abs(own - _outline(array)) <= _EQUAL * np.where(scale > 0, scale, 1.0), axis=1)
        return [names[int(i)] for i in np.flatnonzero(close)]


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


def _resemblances(parameters: Array, array: Array) -> list[Tie | None]:
    """How an array relates to several parameters, of which some numbers are given: shape (n, channels, numbers)."""
    if not len(parameters):
        return []
    some, alike = _picks(array), _in_another_unit if array.dtype.kind in "iu" else _resemblance
    step = max(1, _AT_ONCE // some.size)
    equal = np.concatenate([_equal(parameters[i : i + step], some) for i in range(0, len(parameters), step)])
    if equal.any():
        return [Tie.EXACT if same else None for same in equal]
    return [alike(one, some) for one in parameters]


def _equal(parameters: Array, some: Array) -> Array:
    """Which of several parameters hold some numbers, to a millionth of the largest."""
    scale = np.abs(parameters).max(axis=(1, 2))
    return np.asarray(np.abs(parameters - some).max(axis=(1, 2)) <= _EQUAL * np.where(scale > 0, scale, 1.0))


def relation(parameter: Array, array: Array) -> Tie | None:
    """How an array relates to a parameter of the same size."""
    if _same_numbers(parameter, array):
        return Tie.EXACT
    views = [view for view in (parameter, parameter.T) if view.shape == array.shape]
    alike = _in_another_unit if array.dtype.kind in "iu" else _resemblance
    found = (alike(_picks(view), _picks(array)) for view in views)
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


def _resemblance(p: Array, a: Array) -> Tie | None:
    """How some numbers of an array relate to those of a parameter; both are of shape (channels, numbers)."""
    if len(p) == 1:
        return Tie.NEAR if p.size >= _TELLING and _cosine(p - p.mean(), a - a.mean()) > 0.9 else None
    if np.median(_channel_cosines(p, a)) > 0.9999:
        return Tie.SCALED
    if _cosine(p, a) > 0.8:
        return Tie.SCALED if np.median(np.abs(channel_factors(p, a)[0] - 1)) > 0.02 else Tie.NEAR
    return None


def _in_another_unit(p: Array, a: Array) -> Tie | None:
    """The same for an array of integers, which may be a quantised parameter."""
    return Tie.NEAR if len(p) > 1 and _cosine(p - p.mean(), a - a.mean()) > 0.8 else None


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
    p = parameter.astype(np.float64).reshape(parameter.shape[0], -1)
    a = array.astype(np.float64).reshape(parameter.shape[0], -1)
    factors = np.sum(p * a, axis=1) / np.maximum(np.sum(p * p, axis=1), 1e-300)
    gap = np.linalg.norm(a - factors[:, None] * p, axis=1)
    return factors, float((gap / np.maximum(np.linalg.norm(a, axis=1), 1e-300)).max())


def _spread(array: Array) -> Array:
    """Quantiles of the sorted numbers: equal for every layout of the same numbers."""
    flat = np.sort(array, axis=None)
    picks = np.linspace(0, flat.size - 1, min(_QUANTILES, flat.size)).astype(int)
    return np.asarray(flat[picks].astype(np.float64))


def _channel_cosines(p: Array, a: Array) -> Array:
    p, a = p.reshape(p.shape[0], -1), a.reshape(a.shape[0], -1)
    if p.shape[1] < 4:  # so few numbers per channel are parallel by accident
        return np.zeros(1)
    norms = np.linalg.norm(p, axis=1) * np.linalg.norm(a, axis=1)
    return np.asarray(np.abs(np.sum(p * a, axis=1)) / np.maximum(norms, 1e-300))


def _cosine(p: Array, a: Array) -> float:
    both = float(np.linalg.norm(p) * np.linalg.norm(a))
    return float(np.sum(p * a)) / both if both > 0 else 0.0
