"""Two inputs side by side: the candidate's axes in the expected order, and samples of both at the same places."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.borders import Box, content, whole
from layerdiff.preprocessing.colour import Relation, related
from layerdiff.preprocessing.orientation import STILL, TURNS, Turn
from layerdiff.preprocessing.planes import Axes, planes, readings
from layerdiff.preprocessing.steps import Step, relaid, reshaped

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]

SAMPLES = 6000


@dataclass(frozen=True, slots=True)
class View:
    """The candidate's array in the expected axes: `expected` and `actual` are (N, C, H, W)."""

    axes: Axes
    layout: Step | None
    expected: Array
    actual: Array


@dataclass(frozen=True, slots=True)
class Placed:
    """A hypothesis of what lies where: the candidate turned, and the boxes of both that show the same."""

    view: View
    turn: Turn
    boxes: tuple[Box, Box]
    relation: Relation

    @property
    def turned(self) -> Array:
        """The candidate's planes (N, C, H, W), turned."""
        return self.turn.on(self.view.actual, -2, -1)

    @property
    def everything(self) -> bool:
        """Whether both boxes are the whole picture."""
        (e, a), turned = self.boxes, self.turned
        return e == whole(self.view.expected) and a == whole(turned)

    def samples(self) -> tuple[Array, Array]:
        """The channels of both at the same places, (C, S) and (D, S)."""
        return sampled(self.boxes[0].of(self.view.expected), self.boxes[1].of(self.turned))

    def with_relation(self, relation: Relation) -> Placed:
        """The same places under another relation."""
        return replace(self, relation=relation)


def views(expected: Array, actual: Array) -> Iterator[View]:
    """The ways in which the candidate's axes can be the expected ones, likeliest first; reshaped pixels at the end."""
    sizes = []
    for e_axes in readings(expected.shape)[:2]:
        for a_axes in readings(actual.shape)[:2]:
            step = relaid(e_axes, a_axes, actual.shape)
            e, a = planes(expected, e_axes), planes(actual, a_axes)
            if len(e) == len(a):
                sizes.append((a.shape, step is not None))
                yield View(e_axes, step, e, a)
    if actual.size == expected.size and actual.size > 3 and readings(expected.shape):
        axes = readings(expected.shape)[0]
        if "C" in axes.letters and planes(expected, axes).shape[1] > 1:
            yield from _reshaped(expected, actual, axes)


def _reshaped(expected: Array, actual: Array, axes: Axes) -> Iterator[View]:
    for channels_last in (True, False):
        step = reshaped(axes, expected.shape, channels_last=channels_last)
        again = step.apply(actual.reshape(expected.shape)) if actual.shape != expected.shape else step.apply(actual)
        if actual.shape == expected.shape and not np.array_equal(again, actual):
            yield View(axes, step, planes(expected, axes), planes(again, axes))


def sampled(expected: Array, actual: Array, count: int = SAMPLES) -> tuple[Array, Array]:
    """The channels of (N, C, H, W) and (N, D, H, W) at the same places, drawn from a fixed seed, in float64."""
    n, _, h, w = expected.shape
    if n * h * w <= count:
        flat = (x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1).astype(np.float64) for x in (expected, actual))
        return next(flat), next(flat)
    rng = np.random.default_rng(0)
    at = (rng.integers(0, n, count), slice(None), rng.integers(0, h, count), rng.integers(0, w, count))
    return expected[at].T.astype(np.float64), actual[at].T.astype(np.float64)


def placements(view: View) -> Iterator[Placed]:
    """The candidate turned in every way, whole against whole and content against content."""
    e_whole, e_box = whole(view.expected), content(view.expected[0])
    for turn in TURNS:
        turned = turn.on(view.actual, -2, -1)
        a_whole, a_box = whole(turned), content(turned[0])
        pairs = [(e_whole, a_whole)] if e_whole.size == a_whole.size else []
        pairs += [(e_box, a_box)] if e_box.size == a_box.size and (e_box, a_box) != (e_whole, a_whole) else []
        for boxes in pairs:
            yield placed(view, turn, boxes)


def placed(view: View, turn: Turn, boxes: tuple[Box, Box]) -> Placed:
    """A hypothesis with the relation of the channels that fits best."""
    turned = turn.on(view.actual, -2, -1)
    return Placed(view, turn, boxes, related(*sampled(boxes[0].of(view.expected), boxes[1].of(turned))))


def plain(view: View) -> Placed | None:
    """Nothing moved; None where the sizes differ."""
    e, a = whole(view.expected), whole(view.actual)
    return placed(view, STILL, (e, a)) if e.size == a.size else None
