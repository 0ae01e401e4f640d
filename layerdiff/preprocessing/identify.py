"""How an input was made from a picture: found by making it again with the operations that people use."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.frames import Sampling
from layerdiff.preprocessing.likely import as_the_other, stages, ways
from layerdiff.preprocessing.orientation import back
from layerdiff.preprocessing.recipes import SAME, brightness_left, tries

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from layerdiff.preprocessing.kernels import Kernel
    from layerdiff.preprocessing.likely import Likely
    from layerdiff.preprocessing.recipes import Recipe, Way, Workshop

Array = np.ndarray[Any, Any]
Found = tuple["Recipe | None", float]
Tried = dict["Way", tuple[float, Sampling]]  # how near each way came, and which sampling suits it

_EXACT = 1e-5
"""What one and the same routine leaves; below it no other kernel is tried, above it a better one is looked for."""
_CLEAR = 0.99  # a correlation that leaves little but the kernel to find
_SURE = 0.9995  # a correlation that leaves no doubt of the frame
_NEAR = 0.9  # a correlation of a frame that is the right one, or beside it
_AHEAD = 0.002  # by which a right frame is better than the next one
_FAR_AHEAD = 0.05
_AS_NEAR = 0.002
_RELATED = 0.3  # a correlation that the right frame has with any kernel, even of white noise
_NEAREST = 8  # kernels that are tried with every decoder; rounding to levels can put the right one behind a few others
_ALIKE = 1e-6  # levels of brightness by which kernels differ that compute the same
_NOTHING: Found = (None, float("inf"))


def identify(shop: Workshop, planes: Array, precision: float, first: Recipe | None = None) -> Found:
    """How planes (C, H, W) were made, and the largest difference that is left, as a share of their range.

    `precision` is what a number format may leave; `first` is a recipe of the other side: its frame and its kernel are
    tried before all others. Frames that need no search come first, then crops at any scale.
    """
    allowed = max(SAME, precision)
    enough = max(_EXACT, precision)
    quick = [*([first.kernel] if first is not None else []), *shop.kernels[:3]]
    best = _NOTHING
    tried: Tried = {}
    others = as_the_other(shop, planes, first)
    if first is not None:  # most often all is as on the other side but the decoder
        sure = [item for item in others[:1] if item.score > _NEAR]
        best = _with_any_decoder(shop, planes, sure, first.kernel, enough)
    for frames, clear in _clear_first(chain([others], stages(shop, planes, tried))):
        if best[1] <= enough:
            return best
        best = _better(best, _quickly(shop, planes, frames, (quick, enough), tried))
        likely = _likeliest(tried, clear)
        if best[1] > enough and likely:
            best = _better(best, _thoroughly(shop, planes, likely, enough, (best, tried[likely[0]][1])))
            tried |= {way: (0.0, tried[way][1]) for way in likely}
        if best[1] <= allowed:
            return best
    likely = _likeliest(tried, _RELATED)
    if likely:
        best = _better(best, _thoroughly(shop, planes, likely, enough, (best, tried[likely[0]][1])))
    return best


def _clear_first(stages_of: Iterable[list[Likely]]) -> Iterator[tuple[list[Likely], float]]:
    """Stages of frames, each with the correlation from which every kernel is worth trying.

    A best frame that is clearly better than the next goes alone, before the others; one that is far better needs less.
    """
    for frames in stages_of:
        ahead = frames[0].score - frames[1].score if len(frames) > 1 else 0.0
        if ahead > _AHEAD and frames[0].score > _NEAR:
            yield frames[:1], _NEAR if ahead > _FAR_AHEAD else _CLEAR
            yield frames[1:], _CLEAR
        else:
            yield frames, _CLEAR


def _better(one: Found, other: Found) -> Found:
    return other if other[1] < one[1] else one


def _likeliest(tried: Tried, least: float) -> list[Way]:
    """The ways that came nearest, where one came near enough: two, and those that came about as near as the first.

    Turned before a resize or after it is nearly the same, so that a wrong one can be ahead until the kernel is right.
    """
    order = sorted(tried, key=lambda way: -tried[way][0])
    if not order or tried[order[0]][0] <= least:
        return []
    as_near = [way for way in order if tried[way][0] > tried[order[0]][0] - _AS_NEAR]
    return as_near[:4] if len(as_near) > 2 else [way for way in order[:2] if way in as_near or tried[way][0] > least]


def _best_of(recipes: Iterable[tuple[Recipe, float]], enough: float) -> Found:
    """The best of some recipes, or the first that is good enough."""
    best = _NOTHING
    for found in recipes:
        best = _better(best, found)
        if best[1] <= enough:
            break
    return best


def _quickly(
    shop: Workshop, planes: Array, frames: list[Likely], how: tuple[Sequence[Kernel], float], tried: Tried
) -> Found:
    """The best recipe of some frames with the usual kernels and one decoder; `tried` learns how near each way came."""
    best = _NOTHING
    stored = back(shop.sources[0].upright)
    for item in frames:
        order = [*how[0], *_of_sampling(shop.kernels, item.sampling)]
        for way in ways(item.turn, item.frame, planes, stored) if item.score >= _RELATED else ():
            if way in tried:
                continue
            for recipe, left in tries(shop, planes, way, order):
                tried[way] = max(tried.get(way, (0.0, item.sampling)), (recipe.relation.score, item.sampling))
                best = _better(best, (recipe, left))
                if left <= how[1]:
                    return best
        if best[0] is not None and best[0].relation.score > _SURE:
            break  # there it lies, whatever the kernel is
    return best


def _of_sampling(every: Sequence[Kernel], sampling: Sampling) -> list[Kernel]:
    """A kernel that samples so, where the usual ones do not, with all that may become of its digits."""
    wanted = {
        Sampling.MIDDLE: lambda k: k.library == "PIL" and k.family == "nearest",
        Sampling.ALIGNED: lambda k: k.options == "aligned corners" and k.family == "bilinear",
    }.get(sampling)
    return [] if wanted is None else [k for k in every if wanted(k)]


def _samples(kernel: Kernel, sampling: Sampling) -> bool:
    """Whether a kernel shows a picture as a sampling does: an average over all that a pixel covers, or one place."""
    one = kernel.family.startswith("nearest")
    aligned = kernel.options == "aligned corners"
    if sampling in (Sampling.CORNER, Sampling.MIDDLE):
        return one
    if sampling is Sampling.ALIGNED:
        return aligned
    wide = kernel.library == "PIL" or kernel.family == "area" or kernel.options == "antialias"
    return not one and not aligned and wide == (sampling is Sampling.AREA)


def _with_any_decoder(shop: Workshop, planes: Array, frames: list[Likely], kernel: Kernel, enough: float) -> Found:
    """The best recipe of some frames with one kernel and every decoder."""
    stored = back(shop.sources[0].upright)
    placed = [way for item in frames for way in ways(item.turn, item.frame, planes, stored)[:2]]
    return _best_of(
        (r for way in placed for n in range(len(shop.sources)) for r in tries(shop, planes, way, [kernel], n)), enough
    )


def _thoroughly(
    shop: Workshop, planes: Array, likely: list[Way], enough: float, known: tuple[Found, Sampling]
) -> Found:
    """The best recipe of the first of some ways with every kernel, then of all of them with every decoder.

    Decoders differ in colour more than in brightness, and one turn before or after a resize differs by rounding only:
    the kernels that came near in brightness are enough for those, and the best one so far goes first. `known` is that,
    and the sampling that suits the first way: kernels that sample so go first.
    """
    rest = [(way, n) for n in range(len(shop.sources)) for way in likely if (way, n) != (likely[0], 0)]
    best = _NOTHING
    (sofar, _), sampling = known
    if sofar is not None:
        best = _elsewhere(shop, planes, rest, [sofar.kernel], enough)
    every = sorted(shop.kernels, key=lambda kernel: not _samples(kernel, sampling))
    seen: list[tuple[float, Kernel]] = []
    for recipe, left in tries(shop, planes, likely[0], every) if best[1] > enough else ():
        best = _better(best, (recipe, left))
        if left <= enough:
            return best
        seen.append((brightness_left(shop, recipe, planes), recipe.kernel))
    for family in _nearest(seen):
        if best[1] <= enough:
            break
        order = [kernel for kernel in shop.kernels if family in (kernel, kernel.floats)]
        best = _better(best, _elsewhere(shop, planes, rest, order, enough))
    return best


def _elsewhere(
    shop: Workshop, planes: Array, rest: list[tuple[Way, int]], order: Sequence[Kernel], enough: float
) -> Found:
    """The best recipe of some kernels over ways, each with a decoder."""
    return _best_of((recipe for way, n in rest for recipe in tries(shop, planes, way, order, n)), enough)


def _nearest(seen: list[tuple[float, Kernel]]) -> list[Kernel]:
    """The kernels that leave least, without what became of the digits, and without those that leave the same."""
    found: dict[Kernel, float] = {}
    for left, kernel in sorted(seen, key=lambda item: item[0]):
        if all(abs(left - other) > _ALIKE for other in found.values()):
            found.setdefault(kernel.floats or kernel, left)
    return list(found)[:_NEAREST]
