"""How an input was made from a picture: found by making it again with the operations that people use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.blocks import Grey, Integral
from layerdiff.preprocessing.borders import Box, content
from layerdiff.preprocessing.colour import Relation, related
from layerdiff.preprocessing.frames import Frame, Sampling, around, sides, simple_frames, window_frames
from layerdiff.preprocessing.kernels import FLOAT, UNTOUCHED, Kernel, kernels, whole_levels
from layerdiff.preprocessing.orientation import STILL, TURNS, Turn, back, same
from layerdiff.preprocessing.shifts import shift_between

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.preprocessing.sources import Source

Array = np.ndarray[Any, Any]

_SAME = 1e-4
"""The share of the range within which an input made again is the input: one resize in floats against another."""
_EXACT = 1e-5
"""What one and the same routine leaves; below it no other kernel is tried, above it a better one is looked for."""
_FAR = 0.98  # a correlation that whole levels, and cutting off what overshoots, cannot mend
_CLEAR = 0.99  # a correlation that leaves little but the kernel to find
_NEAR = 0.6  # a correlation that no other frame reaches by chance
_PLACES = 4000
_RELATED = 0.07  # a correlation that chance does not reach in so many places and frames


_NEAREST = 8  # kernels that are tried with every decoder; rounding to levels can put the right one behind a few others
_ALIKE = 1e-6  # levels of brightness by which kernels differ that compute the same
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


@dataclass(frozen=True, slots=True)
class Likely:
    """A turned picture in a frame, how well an input correlates with it, and which sampling does best."""

    score: float
    turn: Turn
    frame: Frame
    sampling: Sampling


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


def identify(
    shop: Workshop, planes: Array, precision: float, first: Recipe | None = None
) -> tuple[Recipe | None, float]:
    """How planes (C, H, W) were made, and the largest difference that is left, as a share of their range.

    `precision` is what a number format may leave; `first` is a recipe of the other side: its kernel is tried before all
    others. Frames that need no search come first, then crops at any scale.
    """
    allowed = max(_SAME, precision)
    enough = max(_EXACT, precision)
    quick = [*([first.kernel] if first is not None else []), *shop.kernels[:3]]
    best: tuple[Recipe | None, float] = (None, float("inf"))
    tried: dict[Way, float] = {}
    for frames in chain(_as_the_other(shop, planes, first), _stages(shop, planes, tried)):
        best = min(best, _quickly(shop, planes, frames, (quick, enough), tried), key=lambda item: item[1])
        likely = max(tried, key=lambda way: tried[way], default=None)
        if best[1] > enough and likely is not None and tried[likely] > _CLEAR:
            best = min(best, _thoroughly(shop, planes, likely, enough), key=lambda item: item[1])
            tried[likely] = 0.0
        if best[1] <= allowed:
            return best
    for way in sorted(tried, key=lambda way: -tried[way])[:2]:
        if tried[way] > _RELATED and best[1] > allowed:
            best = min(best, _thoroughly(shop, planes, way, enough), key=lambda item: item[1])
    return best


def _quickly(
    shop: Workshop,
    planes: Array,
    frames: list[Likely],
    how: tuple[Sequence[Kernel], float],
    tried: dict[Way, float],
) -> tuple[Recipe | None, float]:
    """The best recipe of some frames with the usual kernels and one decoder; `tried` learns how near each way came."""
    best: tuple[Recipe | None, float] = (None, float("inf"))
    stored = back(shop.sources[0].upright)
    for item in frames:
        order = [*how[0], *_of_sampling(shop.kernels, item.sampling)]
        for way in _ways(item.turn, item.frame, planes, stored) if item.score >= _RELATED else ():
            if way in tried:
                continue
            for recipe, left in _recipes(shop, planes, way, order, shop.sources[:1]):
                tried[way] = max(tried.get(way, 0.0), recipe.relation.score)
                best = min(best, (recipe, left), key=lambda item: item[1])
                if left <= how[1]:
                    return best
    return best


def _of_sampling(every: Sequence[Kernel], sampling: Sampling) -> list[Kernel]:
    """A kernel that samples so, where the usual ones do not."""
    wanted = {
        Sampling.MIDDLE: lambda k: k.library == "PIL" and k.family == "nearest",
        Sampling.ALIGNED: lambda k: k.options == "aligned corners" and k.digits == FLOAT,
    }.get(sampling)
    return [] if wanted is None else [k for k in every if wanted(k)][:1]


def _thoroughly(shop: Workshop, planes: Array, way: Way, allowed: float) -> tuple[Recipe | None, float]:
    """The best recipe of one way to place the picture, with every kernel and every decoder."""
    best: tuple[Recipe | None, float] = (None, float("inf"))
    for recipe, left in _recipes(shop, planes, way, shop.kernels, shop.sources):
        best = min(best, (recipe, left), key=lambda item: item[1])
        if left <= allowed:
            break
    return best


def _as_the_other(shop: Workshop, planes: Array, first: Recipe | None) -> Iterator[list[Likely]]:
    """The frame of the other side, with the picture turned in every way: most settings are the same on both sides."""
    if first is None or first.frame.canvas != planes.shape[-2:]:
        return
    square = first.frame.canvas[0] == first.frame.canvas[1]
    frames = [(t, turned_back(first.frame, t, first.frame.canvas)[0]) for t in TURNS if square or not t.transpose]
    yield [item for item in _scored(shop, planes, frames, _PLACES) if item.score > 0.5][:2]


def _stages(shop: Workshop, planes: Array, tried: Mapping[Way, float]) -> Iterator[list[Likely]]:
    """Frames with the turn of the picture, likeliest first: simple ones, then crops of any scale while none fits."""
    simple = [(turn, frame) for turn in TURNS for frame in simple_frames(planes, shop.sums(turn).size)]
    scored = _scored(shop, planes, simple, _PLACES // 3)
    yield scored[:3]
    best = scored[0].turn if scored else STILL
    stored = back(shop.sources[0].upright)  # as the picture lies without its EXIF orientation
    turns = list(dict.fromkeys([best, STILL, stored]))
    flips = [turn for turn in TURNS if turn not in turns and not turn.transpose]
    for far, looked_at in ((False, turns), (False, flips), (True, turns)):
        if max(tried.values(), default=0.0) > _NEAR and (far or looked_at is flips):
            return
        found = [(turn, frame) for turn in looked_at for frame in _searched(shop, planes, turn, far=far)]
        rough = _scored(shop, planes, found, _PLACES // 6)[:6]
        near = [(item.turn, frame) for item in rough for frame in around(item.frame)]
        fine = _scored(shop, planes, list(dict.fromkeys(near)), _PLACES // 2)
        if fine and fine[0].frame not in [item.frame for item in rough]:  # where it climbed to, it may climb on
            further = [(fine[0].turn, frame) for frame in around(fine[0].frame)]
            fine += _scored(shop, planes, [way for way in further if way not in near], _PLACES // 2)
        yield sorted(fine, key=lambda item: -item.score)[:4]


def _scored(shop: Workshop, planes: Array, frames: list[tuple[Turn, Frame]], places: int) -> list[Likely]:
    """Frames with the correlation of what they show with the input, at places inside its border; the best first."""
    rng = np.random.default_rng(0)
    grey = planes.astype(np.float32).sum(axis=0)
    inside = content(planes)
    rows = inside.top + rng.integers(0, inside.height, places)
    columns = inside.left + rng.integers(0, inside.width, places)
    values = grey[rows, columns].astype(np.float64)
    found = []
    for turn, frame in frames:
        target = frame.target
        use = (rows >= target.top) & (rows < target.top + target.height)
        use &= (columns >= target.left) & (columns < target.left + target.width)
        share = float(use.mean())
        if share > 0.125:
            y, x, v = (rows, columns, values) if share == 1 else (rows[use], columns[use], values[use])
            score, sampling = frame.score(shop.sums(turn), y, x, v)
            found.append(Likely(share * score, turn, frame, sampling))
    return sorted(found, key=lambda item: -item.score)


def _searched(shop: Workshop, planes: Array, turn: Turn, *, far: bool) -> Iterator[Frame]:
    """Crops: every length of the short side, and windows of the picture in its own size."""
    size, canvas = shop.sums(turn).size, planes.shape[-2:]
    full = Box(0, 0, *size)
    for side in sides(full, canvas, far=far):
        ends = side in (min(canvas), min(size))
        near = window_frames(full, canvas, side, corners=ends)
        yield from near if ends else islice(near, 1)  # the neighbours of the best are looked at afterwards
    if not far and full.height >= canvas[0] and full.width >= canvas[1] and min(canvas) >= 8:
        shift = shift_between(np.moveaxis(shop.sources[0].shown(turn), 2, 0), planes)
        if shift is not None and -shift[0] >= 0 and -shift[1] >= 0:
            window = Box(-shift[0], -shift[1], *canvas)
            if window.top + window.height <= full.height and window.left + window.width <= full.width:
                yield Frame(full, size, window, Box(0, 0, *canvas), canvas)


def _ways(turn: Turn, frame: Frame, planes: Array, stored: Turn) -> list[Way]:
    """A turned picture in a frame: turned before the resize, after it, or left as it is stored and then turned."""
    found = [Way(turn, STILL, frame)]
    for before in dict.fromkeys((STILL, stored)):
        after = next(t for t in TURNS if same(t, before, turn))
        canvas = planes.shape[-2:][::-1] if after.transpose else planes.shape[-2:]
        if not after.still:
            found += [Way(before, after, f) for f in turned_back(frame, after, (int(canvas[0]), int(canvas[1])))]
    return found


def _recipes(
    shop: Workshop, planes: Array, way: Way, order: Sequence[Kernel], sources: Sequence[Source]
) -> Iterator[tuple[Recipe, float]]:
    """One way to place the picture, with kernels and decoders, and the share of the range that each leaves."""
    frame, planes = way.frame, back(way.after).on(planes, -2, -1)
    target, pad = frame.target.of(planes), frame.target.around(planes)
    for which, source in enumerate(sources):
        seen: list[tuple[float, Kernel]] = []
        far: set[Kernel] = set()
        for kernel in (UNTOUCHED,) if frame.size == frame.cut.size else order:
            if kernel.floats in far:  # whole levels make no other picture of it
                continue
            shown = shop.resized(which, way.before, frame, kernel)
            if shown is None or shown.shape[:2] != frame.target.size:
                continue
            relation, left = _fit(shown, target)
            far |= {kernel} if relation.score < _FAR else set()
            seen.append((_brightness_left(shown, target, relation) if len(sources) > 1 else 0.0, kernel))
            yield Recipe(source, way.before, way.after, frame, kernel, relation, pad), left
        # Decoders differ in colour more than in brightness: only kernels that came near in that are tried with others.
        near = _nearest(seen)
        order = [kernel for kernel in order if (kernel.floats or kernel) in near]


def _nearest(seen: list[tuple[float, Kernel]]) -> list[Kernel]:
    """The kernels that leave least, without what became of the digits, and without those that leave the same."""
    found: dict[Kernel, float] = {}
    for left, kernel in sorted(seen, key=lambda item: item[0]):
        if all(abs(left - other) > _ALIKE for other in found.values()):
            found.setdefault(kernel.floats or kernel, left)
    return list(found)[:_NEAREST]


def turned_back(frame: Frame, turn: Turn, canvas: tuple[int, int]) -> list[Frame]:
    """A frame of a turned picture as it lies before the turn; also with its odd pixel on the other side."""
    swap = turn.transpose
    size, full = (s[::-1] if swap else s for s in (frame.size, (frame.cut.height, frame.cut.width)))
    cut = unturned(frame.cut, turn, None)
    found = []
    for dy, dx in ((0, 0), (-1, 0), (0, -1), (-1, -1), (1, 0), (0, 1), (1, 1)):
        window, target = unturned(frame.window, turn, size), unturned(frame.target, turn, canvas)
        window = replace(window, top=window.top + dy, left=window.left + dx) if window.size != size else window
        target = replace(target, top=target.top + dy, left=target.left + dx) if target.size != canvas else target
        inside = all(
            box.top >= 0 and box.left >= 0 and box.top + box.height <= area[0] and box.left + box.width <= area[1]
            for box, area in ((window, size), (target, canvas))
        )
        if inside and cut.size == full:
            found.append(Frame(cut, size, window, target, canvas))
    return list(dict.fromkeys(found))


def unturned(box: Box, turn: Turn, area: tuple[int, int] | None) -> Box:
    """Where a box of a turned picture lies before the turn, in an area of that size; None: it is the whole of it."""
    top, left, height, width = box.top, box.left, box.height, box.width
    if turn.transpose:
        h, w = (area[1], area[0]) if area is not None else (height, width)
    else:
        h, w = area if area is not None else (height, width)
    top = h - top - height if turn.flip_rows and area is not None else top
    left = w - left - width if turn.flip_columns and area is not None else left
    return Box(left, top, width, height) if turn.transpose else Box(top, left, height, width)


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
        if relation.left > (20 * _SAME if count < _PLACES else _SAME):
            return relation, relation.left
    made = relation.predicted(np.moveaxis(shown, 2, 0).astype(np.float64))
    span = max(float(np.ptp(target)), 1e-30)
    return relation, float(np.abs(made - target).max()) / span


def _brightness_left(shown: Array, target: Array, relation: Relation) -> float:
    """How far the brightness of what was made (h, w, C) is from any mix of a target's channels (C, h, w), in levels.

    Decoders that differ in colour agree in brightness, but where a colour is cut off at either end. Which mix of the
    target's numbers that is follows from the numbers: the factors of a relation would be those of the wrong colours.
    """
    made, wanted = shown[::3, ::3].astype(np.float64), target[:, ::3, ::3].astype(np.float64)
    if made.shape[2] != len(wanted) or len(wanted) != 3:
        return 1 - relation.score
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
    return _fit(shown, tried.frame.target.of(turned))[1] <= _SAME
