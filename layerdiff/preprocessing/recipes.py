"""How an input was made from a picture: found by making it again with the operations that people use."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.blocks import Integral
from layerdiff.preprocessing.borders import Box, content
from layerdiff.preprocessing.colour import Relation, related
from layerdiff.preprocessing.frames import Frame, around, sides, simple_frames, window_frames
from layerdiff.preprocessing.kernels import UNTOUCHED, Kernel, kernels, whole_levels
from layerdiff.preprocessing.orientation import STILL, TURNS, Turn
from layerdiff.preprocessing.shifts import shift_between

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerdiff.preprocessing.sources import Source

Array = np.ndarray[Any, Any]

_SAME = 1e-4
"""The share of the range within which an input made again is the input: one resize in floats against another."""
_PLACES = 4000
_RELATED = 0.07  # a correlation that chance does not reach in so many places and frames


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
        """How it was turned, before or after it was resized."""
        return self.after if self.before.still else self.before


@dataclass(slots=True)
class Workshop:
    """The pictures, and everything that was made of them so far."""

    sources: Sequence[Source]
    _turned: dict[tuple[int, Turn], Array] = field(default_factory=dict)
    _sums: dict[tuple[int, Turn], Integral] = field(default_factory=dict)
    _resized: dict[tuple[int, Turn, Box, tuple[int, int], Kernel], Array | None] = field(default_factory=dict)
    kernels: tuple[Kernel, ...] = field(default_factory=kernels)

    def picture(self, which: int, turn: Turn) -> Array:
        """A picture (H, W, C), turned."""
        if (which, turn) not in self._turned:
            self._turned[which, turn] = self.sources[which].turned(turn)
        return self._turned[which, turn]

    def sums(self, turn: Turn) -> Integral:
        """The integral image of the first picture, turned."""
        if (0, turn) not in self._sums:
            self._sums[0, turn] = Integral.of(np.moveaxis(self.picture(0, turn), 2, 0))
        return self._sums[0, turn]

    def resized(self, which: int, turn: Turn, frame: Frame, kernel: Kernel) -> Array | None:
        """What a frame shows of a picture (h, w, C), by one kernel; None where that cannot do it."""
        made = self._whole(which, turn, frame, kernel)
        return None if made is None else made[frame.window.rows, frame.window.columns]

    def _whole(self, which: int, turn: Turn, frame: Frame, kernel: Kernel) -> Array | None:
        key = (which, turn, frame.cut, frame.size, kernel)
        if key not in self._resized:
            picture = self.picture(which, turn)
            cut = picture[frame.cut.rows, frame.cut.columns]
            if kernel is UNTOUCHED:
                self._resized[key] = cut
            elif kernel.floats is None:
                self._resized[key] = kernel.on(np.ascontiguousarray(cut), frame.size)
            else:
                made = self._whole(which, turn, frame, kernel.floats)
                self._resized[key] = None if made is None else whole_levels(made, kernel.digits, picture)
        return self._resized[key]

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
    quick = [*([first.kernel] if first is not None else []), *shop.kernels[:3]]
    best: tuple[Recipe | None, float] = (None, float("inf"))
    for frames in _stages(shop, planes):
        best = min(best, _made_by(shop, planes, frames, (quick, allowed)), key=lambda item: item[1])
        if best[1] <= allowed:
            return best
    return best


def _made_by(
    shop: Workshop, planes: Array, frames: list[tuple[float, Turn, Frame]], how: tuple[Sequence[Kernel], float]
) -> tuple[Recipe | None, float]:
    """The best recipe of some frames: each with the usual kernels, the one that comes nearest then with all."""
    quick, allowed = how
    best: tuple[Recipe | None, float] = (None, float("inf"))
    tried: list[tuple[float, Turn, Frame]] = []
    for score, turn, frame in frames:
        if score < _RELATED:
            continue
        nearest = float("inf")
        for recipe, left in _recipes(shop, planes, turn, frame, quick):
            nearest = min(nearest, 1 - recipe.relation.score)
            best = min(best, (recipe, left), key=lambda item: item[1])
            if left <= allowed:
                return best
        tried.append((nearest, turn, frame))
    for nearest, turn, frame in sorted(tried, key=lambda item: item[0])[:1]:
        if nearest > 1 - _RELATED:
            break
        for recipe, left in _recipes(shop, planes, turn, frame, shop.kernels):
            best = min(best, (recipe, left), key=lambda item: item[1])
            if left <= allowed:
                return best
    return best


def _stages(shop: Workshop, planes: Array) -> Iterator[list[tuple[float, Turn, Frame]]]:
    """Frames with the turn of the picture, likeliest first: simple ones, then crops of other scales."""
    simple = [(turn, frame) for turn in TURNS for frame in simple_frames(planes, shop.sums(turn).size)]
    scored = _scored(shop, planes, simple, _PLACES)
    yield scored[:3]
    turns = list(dict.fromkeys([*([scored[0][1]] if scored else []), STILL]))
    for far in (False, True):
        found = [(t, f) for t in turns for f in _searched(shop, planes, t, far=far)]
        rough = _scored(shop, planes, found, _PLACES // 6)[:6]
        near = [(turn, frame) for _, turn, rough_frame in rough for frame in around(rough_frame)]
        yield _scored(shop, planes, list(dict.fromkeys(near)), 4 * _PLACES)[:4]


def _scored(
    shop: Workshop, planes: Array, frames: list[tuple[Turn, Frame]], places: int
) -> list[tuple[float, Turn, Frame]]:
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
            found.append((share * frame.score(shop.sums(turn), y, x, v), turn, frame))
    return sorted(found, key=lambda item: -item[0])


def _searched(shop: Workshop, planes: Array, turn: Turn, *, far: bool) -> Iterator[Frame]:
    """Crops: every length of the short side, and windows of the picture in its own size."""
    size, canvas = shop.sums(turn).size, planes.shape[-2:]
    full = Box(0, 0, *size)
    for side in sides(full, canvas, far=far):
        yield from window_frames(full, canvas, side, corners=side in (min(canvas), min(size)))
    if not far and full.height >= canvas[0] and full.width >= canvas[1] and min(canvas) >= 8:
        shift = shift_between(np.moveaxis(shop.picture(0, turn), 2, 0), planes)
        if shift is not None and -shift[0] >= 0 and -shift[1] >= 0:
            window = Box(-shift[0], -shift[1], *canvas)
            if window.top + window.height <= full.height and window.left + window.width <= full.width:
                yield Frame(full, size, window, Box(0, 0, *canvas), canvas)


def _recipes(
    shop: Workshop, planes: Array, turn: Turn, frame: Frame, order: Sequence[Kernel]
) -> Iterator[tuple[Recipe, float]]:
    """A frame with every kernel and every decoder, the picture turned before the resize or after it."""
    ways = [(turn, STILL, planes, frame)]
    if not turn.still:
        back = _back(turn).on(planes, -2, -1)
        ways += [(STILL, turn, back, f) for f in _turned_back(frame, turn, back.shape[-2:])]
    for which, source in enumerate(shop.sources):
        seen: list[tuple[float, Kernel]] = []
        for kernel in order:
            for before, after, target, placed in ways:
                chosen = UNTOUCHED if placed.size == placed.cut.size else kernel
                shown = shop.resized(which, before, placed, chosen)
                if shown is None or shown.shape[:2] != placed.target.size:
                    continue
                relation, left = _fit(shown, placed.target.of(target))
                seen.append((1 - relation.score, kernel))
                yield Recipe(source, before, after, placed, chosen, relation, placed.target.around(target)), left
            if all(placed.size == placed.cut.size for _, _, _, placed in ways):
                break
        # Another decoder changes little: only the kernels that came near are tried with the next one.
        order = list(dict.fromkeys(kernel for _, kernel in sorted(seen, key=lambda item: item[0])))[:9]


def _back(turn: Turn) -> Turn:
    """What undoes a turn."""
    if not turn.transpose:
        return turn
    return Turn(transpose=True, flip_rows=turn.flip_columns, flip_columns=turn.flip_rows)


def _turned_back(frame: Frame, turn: Turn, canvas: tuple[int, int]) -> list[Frame]:
    """A frame of a turned picture as it lies before the turn; also with its odd pixel on the other side."""
    swap = turn.transpose
    size, full = (s[::-1] if swap else s for s in (frame.size, (frame.cut.height, frame.cut.width)))
    cut = _mirrored(frame.cut, turn, None)
    found = []
    for dy, dx in ((0, 0), (-1, 0), (0, -1), (-1, -1), (1, 0), (0, 1), (1, 1)):
        window, target = _mirrored(frame.window, turn, size), _mirrored(frame.target, turn, canvas)
        window = replace(window, top=window.top + dy, left=window.left + dx) if window.size != size else window
        target = replace(target, top=target.top + dy, left=target.left + dx) if target.size != canvas else target
        inside = all(
            box.top >= 0 and box.left >= 0 and box.top + box.height <= area[0] and box.left + box.width <= area[1]
            for box, area in ((window, size), (target, canvas))
        )
        if inside and cut.size == full:
            found.append(Frame(cut, size, window, target, canvas))
    return list(dict.fromkeys(found))


def _mirrored(box: Box, turn: Turn, area: tuple[int, int] | None) -> Box:
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
    rng = np.random.default_rng(0)
    height, width = target.shape[-2:]
    count = min(_PLACES, height * width)
    y, x = rng.integers(0, height, count), rng.integers(0, width, count)
    if height * width <= _PLACES:
        y, x = (v.ravel() for v in np.mgrid[:height, :width])
    relation = related(target[:, y, x].astype(np.float64), shown[y, x].T.astype(np.float64))
    if relation.left > _SAME:
        return relation, relation.left
    made = relation.predicted(np.moveaxis(shown, 2, 0).astype(np.float64))
    span = max(float(np.ptp(target)), 1e-30)
    return relation, float(np.abs(made - target).max()) / span


def with_kernel_of(shop: Workshop, recipe: Recipe, other: Recipe, planes: Array) -> bool:
    """Whether the kernel of another recipe makes the same planes: then the two cannot be told apart here."""
    tried = replace(recipe, kernel=other.kernel) if recipe.kernel is not UNTOUCHED else recipe
    shown = shop.resized(shop.sources.index(recipe.source), tried.before, tried.frame, tried.kernel)
    if shown is None:
        return False
    turned = _back(recipe.after).on(planes, -2, -1)
    return _fit(shown, tried.frame.target.of(turned))[1] <= _SAME
