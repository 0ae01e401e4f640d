"""Which frames an input can lie in: candidates from rules and from a search, ranked by what the picture shows there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.borders import Box, content
from layerdiff.preprocessing.frames import Frame, Sampling, around, sides, simple_frames, window_frames
from layerdiff.preprocessing.orientation import STILL, TURNS, Turn, back, same
from layerdiff.preprocessing.recipes import Way
from layerdiff.preprocessing.shifts import shift_between

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.preprocessing.recipes import Recipe, Workshop

Array = np.ndarray[Any, Any]

_NEAR = 0.6  # a correlation that no other frame reaches by chance where the picture has fine detail
_NEARER = 0.9  # nor in a smooth picture
_SURE = 0.9995  # a correlation with no better neighbour
_STEPS = 4
_PLACES = 4000


@dataclass(frozen=True, slots=True)
class Likely:
    """A turned picture in a frame, how well an input correlates with it, and which sampling does best."""

    score: float
    turn: Turn
    frame: Frame
    sampling: Sampling


def as_the_other(shop: Workshop, planes: Array, first: Recipe | None) -> list[Likely]:
    """The frame of the other side, with the picture turned in every way: most settings are the same on both sides."""
    if first is None:
        return []
    height, width = planes.shape[-2:]
    canvas = (height, width)
    plain, frames = set(), []
    for turn in TURNS:
        lying = canvas[::-1] if turn.transpose else canvas
        for frame in [first.frame] if first.frame.canvas == lying else _from_the_middle(first.frame, lying):
            turned = turned_back(frame, turn, canvas)
            plain.add((turn, turned[0]))
            frames += [(turn, f) for f in turned]
    found = [item for item in _scored(shop, planes, frames, _PLACES // 3) if item.score > 0.5]
    least = found[0].score - 0.02 if found else 0.0
    # One pixel to a side shows in few places of a smooth picture: the very frame of the other side goes first.
    return sorted(found, key=lambda item: (item.score < least, (item.turn, item.frame) not in plain))[:3]


def _from_the_middle(frame: Frame, canvas: tuple[int, int]) -> list[Frame]:
    """Another canvas cut out of the middle of the same resized picture; none where that is smaller."""
    free = (frame.size[0] - canvas[0], frame.size[1] - canvas[1])
    if min(free) < 0:
        return []
    everything = Box(0, 0, *canvas)
    return [Frame(frame.cut, frame.size, Box(free[0] // 2, free[1] // 2, *canvas), everything, canvas)]


def stages(shop: Workshop, planes: Array, tried: Mapping[Way, tuple[float, Sampling]]) -> Iterator[list[Likely]]:
    """Frames with the turn of the picture, likeliest first: simple ones, then crops of any scale while none fits."""
    simple = [(turn, frame) for turn in TURNS for frame in simple_frames(planes, shop.sums(turn).size)]
    scored = _climbed(shop, planes, _scored(shop, planes, simple, _PLACES // 3))
    yield scored[:3]
    best = scored[0].turn if scored else STILL
    stored = back(shop.sources[0].upright)  # as the picture lies without its EXIF orientation
    turns = list(dict.fromkeys([best, STILL, stored]))
    flips = [turn for turn in TURNS if turn not in turns and not turn.transpose]
    for far, looked_at in ((False, turns), (True, turns), (False, flips)):
        nearest = max((score for score, _ in tried.values()), default=0.0)
        if nearest > (_NEARER if far else _NEAR) and (far or looked_at is flips):
            continue
        found = [(turn, frame) for turn in looked_at for frame in _searched(shop, planes, turn, far=far)]
        rough = _scored(shop, planes, found, _PLACES // 6)[:6]
        near = dict.fromkeys((item.turn, frame) for item in rough for frame in around(item.frame))
        yield _climbed(shop, planes, _scored(shop, planes, list(near), _PLACES // 2))[:4]


def _climbed(shop: Workshop, planes: Array, found: list[Likely]) -> list[Likely]:
    """Scored frames with the neighbours of the best, and theirs, while that makes it better."""
    seen = {(item.turn, item.frame) for item in found}
    for _ in range(_STEPS):
        best = found[0] if found else None
        if best is None or best.frame.mode != "crop" or best.score > _SURE:
            break
        near = [(best.turn, frame) for frame in around(best.frame) if (best.turn, frame) not in seen]
        seen |= set(near)
        found = sorted([*found, *_scored(shop, planes, near, _PLACES // 2)], key=lambda item: -item.score)
        if found[0] is best:
            break
    return found


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
        for frame in near if ends else islice(near, 1):  # the neighbours of the best are looked at afterwards
            yield frame
            if not turn.transpose and not turn.still:  # mirrored after it was cut out: what is odd is on the other side
                window = unturned(frame.window, turn, frame.size)
                yield replace(frame, window=window)
    if not far and full.height >= canvas[0] and full.width >= canvas[1] and min(canvas) >= 8:
        shift = shift_between(np.moveaxis(shop.sources[0].shown(turn), 2, 0), planes)
        if shift is not None and -shift[0] >= 0 and -shift[1] >= 0:
            window = Box(-shift[0], -shift[1], *canvas)
            if window.top + window.height <= full.height and window.left + window.width <= full.width:
                yield Frame(full, size, window, Box(0, 0, *canvas), canvas)


def ways(turn: Turn, frame: Frame, planes: Array, stored: Turn) -> list[Way]:
    """A turned picture in a frame: turned before the resize, after it, or left as it is stored and then turned."""
    found = [Way(turn, STILL, frame)]
    for before in dict.fromkeys((STILL, stored)):
        after = next(t for t in TURNS if same(t, before, turn))
        canvas = planes.shape[-2:][::-1] if after.transpose else planes.shape[-2:]
        if not after.still:
            found += [Way(before, after, f) for f in turned_back(frame, after, (int(canvas[0]), int(canvas[1])))]
    return found


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
