"""Evidence from weights: a constant operand of a node that equals a parameter ties the node to a site.

Equal means equal in some layout (transposed, reshaped, gates in another order: the same numbers), equal up to a factor
per output channel (a BatchNorm was folded in), or nearly equal (another precision, a damaged channel).
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import all_within
from layerdiff.operators import base_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from layerdiff.graph import Graph
    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

_QUANTILES = 129
# Of weights with more numbers than this, about so many channels are looked at before all are.
_LARGE, _CHANNELS = 65_536, 64
_FEW = 8


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
    by_size: dict[int, list[str]] = {}
    for name, array in reference.parameters.items():
        if array.size > 1 and array.dtype.kind == "f":
            by_size.setdefault(array.size, []).append(name)
    sites_of: dict[str, list[int]] = {}
    for site, names in parameters_of_sites(reference).items():
        for name in names:
            sites_of.setdefault(name, []).append(site)
    relations: dict[str, dict[str, Tie]] = {}
    seen = _Seen(reference)
    found: dict[tuple[int, int], dict[str, Tie]] = {}
    for node, operand in ((n, name) for n in graph.nodes for name in n.inputs if name in constants):
        if operand not in relations:
            relations[operand] = _relations(constants[operand], by_size, seen)
        for name, tie in relations[operand].items():
            for site in sites_of.get(name, ()):
                found.setdefault((node.index, site), {})[name] = tie
    return found


class _Seen:
    """The parameters of a reference; what was once found of one is known from then on."""

    def __init__(self, reference: Reference) -> None:
        self._parameters = reference.parameters
        self._outlines: dict[str, Array] = {}

    def array(self, name: str) -> Array:
        """The numbers of a parameter."""
        return self._parameters[name]

    def of_about(self, outline: Array, names: Sequence[str]) -> list[str]:
        """The parameters, of those of one size, that may hold the numbers of an array with such an outline."""
        key = names[0]  # no other size has it
        if key not in self._outlines:
            self._outlines[key] = np.stack([_outline(self._parameters[name]) for name in names])
        own = self._outlines[key]
        scale = np.abs(own[:, :2]).max(axis=1, keepdims=True)
        close = np.all(np.abs(own - outline) <= 1e-6 * np.where(scale > 0, scale, 1.0), axis=1)
        return [names[int(i)] for i in np.flatnonzero(close)]


def _relations(array: Array, by_size: Mapping[int, list[str]], seen: _Seen) -> dict[str, Tie]:
    """The parameters that an array may be; only the best kind of tie is kept."""
    names = by_size.get(array.size, [])
    if not names or array.size < 2 or array.dtype.kind not in "fiu":
        return {}
    likely = seen.of_about(_outline(array), names)
    exact = {name: Tie.EXACT for name in likely if _same_numbers(seen.array(name), array)}
    if exact:
        return exact
    found = {name: tie for name in names if (tie := _resemblance(seen.array(name), array)) is not None}
    best = next((tie for tie in Tie if tie in found.values()), None)
    return {name: tie for name, tie in found.items() if tie is best}


def relation(parameter: Array, array: Array) -> Tie | None:
    """How an array relates to a parameter of the same size."""
    return Tie.EXACT if _same_numbers(parameter, array) else _resemblance(parameter, array)


def _outline(array: Array) -> Array:
    """Smallest, largest and mean number: the same for every layout of the same numbers, and quickly told."""
    return np.array([array.min(), array.max(), array.mean(dtype=np.float64)], np.float64)


def _close(one: Array, other: Array, outline: Array) -> bool:
    """Whether numbers are equal to a millionth of the largest of a parameter with such an outline."""
    scale = float(np.abs(outline[:2]).max()) or 1.0
    return bool(np.abs(one - other).max() <= 1e-6 * scale)


def _same_numbers(parameter: Array, array: Array) -> bool:
    """Whether two arrays hold the same numbers, in whatever order."""
    outline = _outline(parameter)
    if _near_in_place(parameter, array, outline):
        return True
    return _close(outline, _outline(array), outline) and _close(_spread(parameter), _spread(array), outline)


def _near_in_place(parameter: Array, array: Array, outline: Array) -> bool:
    """Whether two arrays are equal as they lie, or one turned: most weights are, and no sorting is needed then."""
    room = 1e-6 * (float(np.abs(outline[:2]).max()) or 1.0)
    for view in (parameter, parameter.T):
        if view.size == array.size and view.dtype == array.dtype == np.float32:
            flat = array if array.shape == view.shape else array.reshape(view.shape)
            some = tuple(slice(None, None, max(1, count // _FEW)) for count in view.shape)
            if np.abs(view[some] - flat[some]).max() <= room:
                return bool(all_within(np.ascontiguousarray(view), np.ascontiguousarray(flat), room, room))
    return False


def _resemblance(parameter: Array, array: Array) -> Tie | None:
    """How an array relates to a parameter of the same size that holds other numbers."""
    if parameter.size > _LARGE and array.dtype.kind == "f" and parameter.ndim >= 2 and not _alike(parameter, array):
        return None
    p, a = parameter.astype(np.float64), array.astype(np.float64)
    if array.dtype.kind in "iu":  # quantised: the same numbers in another unit
        views = (v for v in (p, p.T) if v.shape == a.shape and v.ndim >= 2)
        return Tie.NEAR if any(_cosine(v - v.mean(), a - a.mean()) > 0.8 for v in views) else None
    for view in {p.shape: p, p.T.shape: p.T}.values():
        if view.shape != a.shape or view.ndim < 2:
            continue
        if np.median(_channel_cosines(view, a)) > 0.9999:
            return Tie.SCALED
        if _cosine(view, a) > 0.8:
            rescaled = view.shape[0] > 1 and np.median(np.abs(channel_factors(view, a)[0] - 1)) > 0.02
            return Tie.SCALED if rescaled else Tie.NEAR
    if p.ndim == 1 and a.ndim == 1 and p.size >= 8 and _cosine(p - p.mean(), a - a.mean()) > 0.9:
        return Tie.NEAR
    return None


def _alike(parameter: Array, array: Array) -> bool:
    """Whether some channels of two large arrays point in similar directions; those of unrelated weights do not."""
    for view in {parameter.shape: parameter, parameter.T.shape: parameter.T}.values():
        if view.shape == array.shape:
            picked = slice(None, None, max(1, len(view) // _CHANNELS))
            p, a = view[picked].astype(np.float64), array[picked].astype(np.float64)
            if _cosine(p, a) > 0.5 or np.median(_channel_cosines(p, a)) > 0.9:
                return True
    return False


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
