"""The shortest chain from the candidate's input to the expected one, from the two tensors alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.borders import Box, content
from layerdiff.preprocessing.chains import Chain, chain_of
from layerdiff.preprocessing.orientation import TURNS, Turn
from layerdiff.preprocessing.pointwise import halved, pointwise
from layerdiff.preprocessing.shifts import overlap, shift_between
from layerdiff.preprocessing.views import Placed, View, placed, placements, views

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = np.ndarray[Any, Any]

_SMALLEST = 8  # pixels a side below which nothing is looked for elsewhere in a picture


@dataclass(frozen=True, slots=True)
class Searched:
    """The chain that was found, if any, and the hypothesis that came nearest."""

    chain: Chain | None
    nearest: Placed | None


def search(expected: Array, actual: Array, limit: float) -> Searched:
    """The first chain that leaves no more than `limit`: nothing moved before flips, flips before other windows."""
    nearest: Placed | None = None
    tightest: Placed | None = None
    for hypothesis in _hypotheses(expected, actual):
        if nearest is None or hypothesis.relation.score > nearest.relation.score + 1e-3:
            nearest = hypothesis
        if tightest is None or hypothesis.relation.left < tightest.relation.left:
            tightest = hypothesis
        if hypothesis.relation.exact:
            chain = chain_of(hypothesis, expected, actual, limit)
            if chain is not None:
                return Searched(chain, hypothesis)
    if nearest is None or tightest is None:
        return Searched(None, None)
    chain = halved(tightest, expected, actual) or pointwise(nearest, expected, actual, limit)
    return Searched(chain, nearest)


def _hypotheses(expected: Array, actual: Array) -> Iterator[Placed]:
    seen = list(views(expected, actual))
    for view in seen:
        yield from placements(view)
    for view in [view for view in seen if view.layout is None or "how" not in view.layout.parameters][:1]:
        yield from _moved(view)


def _moved(view: View) -> Iterator[Placed]:
    """The candidate's picture somewhere else: windows, shifts, other canvases; upright first, then turned."""
    size = view.expected.shape[-2:]
    for turn in TURNS:
        turned = turn.on(view.actual, -2, -1)
        if min(*turned.shape[-2:], *size) < _SMALLEST:
            return
        shift = shift_between(view.expected[0], turned[0])
        boxes = None if shift is None else overlap(size, turned.shape[-2:], shift)
        if boxes is not None and (shift != (0, 0) or turned.shape[-2:] != size):
            yield placed(view, turn, boxes)
            yield from _inside(view, turn, boxes)


def _inside(view: View, turn: Turn, boxes: tuple[Box, Box]) -> Iterator[Placed]:
    """The part of an overlap that is content on the expected side, where its canvas overlaps something else."""
    inner, (e, a) = content(view.expected[0]), boxes
    top, left = max(e.top, inner.top), max(e.left, inner.left)
    bottom, right = min(e.top + e.height, inner.top + inner.height), min(e.left + e.width, inner.left + inner.width)
    cut = Box(top, left, bottom - top, right - left)
    if cut != e and min(cut.size) >= _SMALLEST:
        yield placed(view, turn, (cut, Box(a.top + top - e.top, a.left + left - e.left, cut.height, cut.width)))
