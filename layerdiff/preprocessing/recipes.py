"""How an input was made from a picture: recipes, and what they make."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.blocks import Grey, Integral
from layerdiff.preprocessing.colour import Relation, related
from layerdiff.preprocessing.kernels import UNTOUCHED, Kernel, kernels, whole_levels
from layerdiff.preprocessing.orientation import STILL, TURNS, Turn, back, same

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerdiff.preprocessing.borders import Box
    from layerdiff.preprocessing.frames import Frame
    from layerdiff.preprocessing.sources import Source

Array = np.ndarray[Any, Any]

SAME = 1e-4
"""The share of the range within which an input made again is the input: one resize in floats against another."""
_FAR = 0.98  # a correlation that whole levels, and cutting off what overshoots, cannot mend
_PLACES = 4000
_CUT_OFF = 8  # levels from either end within which a colour may have been cut off


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that was done to a picture to make the planes (C, H, W) of an input."""

    source: Source
    before: Turn
    after: Turn
    frame: Frame
    kernel: Kernel
    relation: Relation  # from the channels of the picture to those of the input
    pad: Array | None

    @property
    def upright(self) -> bool:
        """Whether the picture lies as it should."""
        return self.before.still and self.after.still

    @property
    def turn(self) -> Turn:
        """How it was turned, before and after it was resized."""
        return next(turn for turn in TURNS if same(self.after, self.before, turn))


@dataclass(frozen=True, slots=True)
class Way:
    """A picture in a frame, turned before it is resized or after it."""

    before: Turn
    after: Turn
    frame: Frame


@dataclass(slots=True)
class Workshop:
    """The pictures, and everything that was made of them so far."""

    sources: Sequence[Source]
    _turned: dict[tuple[int, Turn], Array] = field(default_factory=dict)
    _grey: list[Grey] = field(default_factory=list)
    _sums: dict[Turn, Integral] = field(default_factory=dict)
    _resized: dict[tuple[int, Turn, Box, tuple[int, int], Kernel], Array | None] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = field(default_factory=kernels)

    def picture(self, which: int, turn: Turn) -> Array:
        """A picture (H, W, C), turned."""
        if (which, turn) not in self._turned:
            self._turned[which, turn] = self.sources[which].turned(turn)
        return self._turned[which, turn]

    def sums(self, turn: Turn) -> Integral:
        """The integral image of the first picture, turned."""
        if not self._grey:
            self._grey.append(Grey.of(np.moveaxis(self.sources[0].shown(STILL), 2, 0)))
        if turn not in self._sums:
            self._sums[turn] = self._grey[0].turned(turn).integral()
        return self._sums[turn]

    def resized(self, which: int, turn: Turn, frame: Frame, kernel: Kernel) -> Array | None:
        """What a frame shows of a picture (h, w, C), by one kernel; None where that cannot do it."""
        if kernel.floats is not None:
            floats = self.resized(which, turn, frame, kernel.floats)
            return None if floats is None else whole_levels(floats, kernel.digits, self.sources[which].pixels)
        key = (which, turn, frame.cut, frame.size, kernel)
        if key not in self._resized:
            cut = self.picture(which, turn)[frame.cut.rows, frame.cut.columns]
            self._resized[key] = cut if kernel is UNTOUCHED else kernel.on(np.ascontiguousarray(cut), frame.size)
        made = self._resized[key]
        return None if made is None else made[frame.window.rows, frame.window.columns]

    def made(self, recipe: Recipe) -> Array | None:
        """An input (C, H, W) by a recipe, in float64."""
        which = self.sources.index(recipe.source)
        shown = self.resized(which, recipe.before, recipe.frame, recipe.kernel)
        if shown is None:
            return None
        pixels = np.moveaxis(shown, 2, 0).astype(np.float64)
        inside = recipe.relation.predicted(pixels)
        planes = np.empty((len(inside), *recipe.frame.canvas))
        if recipe.pad is not None:
            planes[:] = recipe.pad[:, None, None]
        target = recipe.frame.target
        planes[:, target.rows, target.columns] = inside
        return recipe.after.on(planes, -2, -1)


def tries(
    shop: Workshop, planes: Array, way: Way, order: Sequence[Kernel], which: int = 0
) -> Iterator[tuple[Recipe, float]]:
    """One way to place a picture with every kernel, and the share of the range that each leaves of planes (C, H, W)."""
    frame, planes = way.frame, back(way.after).on(planes, -2, -1)
    target, pad = frame.target.of(planes), frame.target.around(planes)
    far: set[Kernel] = set()
    for kernel in (UNTOUCHED,) if frame.size == frame.cut.size else order:
        if kernel.floats in far:  # whole levels make no other picture of it
            continue
        shown = shop.resized(which, way.before, frame, kernel)
        if shown is None or shown.shape[:2] != frame.target.size:
            continue
        relation, left = _fit(shown, target)
        far |= {kernel} if relation.score < _FAR else set()
        yield Recipe(shop.sources[which], way.before, way.after, frame, kernel, relation, pad), left


def _fit(shown: Array, target: Array) -> tuple[Relation, float]:
    """The relation of what was made (h, w, C) and a target (C, h, w), and the share of the range that it leaves."""
    height, width = target.shape[-2:]
    for count in (_PLACES // 4, _PLACES):
        if height * width <= _PLACES:
            y, x = (v.ravel() for v in np.mgrid[:height, :width])
        else:
            rng = np.random.default_rng(0)
            y, x = rng.integers(0, height, count), rng.integers(0, width, count)
        relation = related(target[:, y, x].astype(np.float64), shown[y, x].T.astype(np.float64))
        if relation.left > (20 * SAME if count < _PLACES else SAME):
            return relation, relation.left
    made = relation.predicted(np.moveaxis(shown, 2, 0).astype(np.float64))
    span = max(float(np.ptp(target)), 1e-30)
    return relation, float(np.abs(made - target).max()) / span


def brightness_left(shop: Workshop, recipe: Recipe, planes: Array) -> float:
    """How far the brightness of what a recipe makes is from any mix of an input's channels (C, H, W), in levels.

    Decoders that differ in colour agree in brightness, but where a colour is cut off at either end. Which mix of the
    target's numbers that is follows from the numbers: the factors of a relation would be those of the wrong colours.
    """
    shown = shop.resized(shop.sources.index(recipe.source), recipe.before, recipe.frame, recipe.kernel)
    target = recipe.frame.target.of(back(recipe.after).on(planes, -2, -1))
    if shown is None or shown.shape[2] != 3 or len(target) != 3:
        return 1 - recipe.relation.score
    made, wanted = shown[::5, ::5].astype(np.float64), target[:, ::5, ::5].astype(np.float64)
    levels = made.reshape(-1, 3)
    channels = np.column_stack([*(plane.ravel() for plane in wanted), np.ones(wanted[0].size)])
    inside = ((levels > _CUT_OFF) & (levels < 255 - _CUT_OFF)).all(axis=1)
    if inside.mean() > 0.05:
        levels, channels = levels[inside], channels[inside]
    brightness = levels @ np.array([0.299, 0.587, 0.114])
    mix = np.linalg.lstsq(channels, brightness, rcond=None)[0]
    return float(np.sqrt(np.mean((channels @ mix - brightness) ** 2)))


def with_kernel_of(shop: Workshop, recipe: Recipe, other: Recipe, planes: Array) -> bool:
    """Whether the kernel of another recipe makes the same planes: then the two cannot be told apart here."""
    tried = replace(recipe, kernel=other.kernel) if recipe.kernel is not UNTOUCHED else recipe
    shown = shop.resized(shop.sources.index(recipe.source), tried.before, tried.frame, tried.kernel)
    if shown is None:
        return False
    turned = back(recipe.after).on(planes, -2, -1)
    return _fit(shown, tried.frame.target.of(turned))[1] <= SAME
