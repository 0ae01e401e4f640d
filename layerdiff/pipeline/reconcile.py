"""Which settings of post-processing give exactly the boxes of each side, differing in as few as possible.

Greedy suppression runs from the most confident candidate down, so a lower one never changes the fate of a higher one:
what comes out at one confidence threshold, or under one limit, is a beginning of what comes out without. Only `iou`,
`agnostic` and `multi_label` need runs of their own; `conf` and `max_det` are read off each run.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import clipped_like, overlaps
from layerdiff.pipeline.nms import Neighbours, NmsSettings, best_first

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from layerdiff.pipeline.found import Detections

    Floats = NDArray[np.float64]

# What people write: settings among these are preferred where the boxes leave a choice.
USUAL_CONF = (
    *(
        0.25,
        0.001,
        0.5,
        0.3,
        0.4,
        0.45,
        0.2,
        0.1,
        0.6,
        0.01,
        0.05,
        0.35,
        0.7,
        0.15,
        0.55,
        0.65,
        0.75,
        0.8,
        0.85,
        0.9,
        0.95,
    ),
    *(0.005, 0.02, 0.03),
)
USUAL_IOU = (0.45, 0.6, 0.7, 0.5, 0.65, 0.4, 0.55, 0.3, 0.35, 0.25, 0.2, 0.1, 0.15, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0)
USUAL_LIMITS = (1, 5, 10, 20, 25, 30, 50, 100, 150, 200, 250, 256, 300, 400, 500, 512, 600, 750, 1000, 1024, 2000, 3000)
# A box is a candidate when they are of one class and of nearly one score, and share so much.
SAME_IOU, SAME_SCORE = 0.9, 5e-3
# Of many images the search uses those with most boxes; the result is then checked on all.
SEARCHED_IMAGES = 12
MOST_CANDIDATES = 6000


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Candidates of one image, most confident first, and which of them came out; `lost` boxes are no candidate."""

    found: Detections
    wanted: NDArray[np.bool_]
    lost: int
    near: Neighbours


def pool_of(found: Detections, target: Detections) -> Pool:
    """A pool of candidates, in which the boxes that came out are marked."""
    found = best_first(found.picked(found.finite))
    if len(found) > MOST_CANDIDATES:
        found = found.picked(np.arange(MOST_CANDIDATES))
    wanted = np.zeros(len(found), bool)
    clipped = clipped_like(found.boxes, target.boxes)
    lost = 0
    for box, score, kind in zip(target.boxes, target.scores, target.classes, strict=True):
        usable = np.nonzero((np.abs(found.scores - score) <= SAME_SCORE) & (found.classes == kind) & ~wanted)[0]
        iou = overlaps(clipped[usable], box[None])[:, 0]
        worth = iou - 10 * np.abs(found.scores[usable] - score)
        if len(usable) and iou[worth.argmax()] >= SAME_IOU:
            wanted[usable[worth.argmax()]] = True
        else:
            lost += 1
    return Pool(found, wanted, lost, Neighbours.of(found))


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The settings of both sides, and how many boxes they get wrong on each."""

    expected: NmsSettings
    actual: NmsSettings
    wrong: tuple[int, int]

    @property
    def differing(self) -> dict[str, tuple[Any, Any]]:
        """The settings that must differ, by name."""
        pairs = {f.name: (getattr(self.expected, f.name), getattr(self.actual, f.name)) for f in fields(NmsSettings)}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


@dataclass(frozen=True, slots=True, eq=False)
class _Fit:
    """One run of suppression: how many boxes are wrong for each limit (rows) and confidence threshold (columns)."""

    iou: float
    agnostic: bool
    multi_label: bool
    wrong: NDArray[np.int64]

    @property
    def least(self) -> int:
        return int(self.wrong.min())


def reconcile(expected: Mapping[bool, Sequence[Pool]], actual: Mapping[bool, Sequence[Pool]]) -> Reconciled:
    """The settings under which both sides come out, with as few differences as possible.

    Each side is given as its pools without, and where a raw head allows it also with, `multi_label`.
    """
    sides = [_Side.of(_searched(pools)) for pools in (expected, actual)]
    confs = np.unique([*USUAL_CONF, *(c for side in sides for c in side.breaks)])
    limits: list[int | None] = [None, *sorted({side.most for side in sides if side.most})]
    fits = [list(side.fits(confs, limits)) for side in sides]
    settings = _best(fits, confs, limits, sides)
    wrong = [_wrong(pools, s) for pools, s in zip((expected, actual), settings, strict=True)]
    return Reconciled(settings[0], settings[1], (wrong[0], wrong[1]))


def _searched(pools: Mapping[bool, Sequence[Pool]]) -> dict[bool, list[Pool]]:
    found = {}
    for key, every in pools.items():
        order = sorted(range(len(every)), key=lambda n: -int(every[n].wanted.sum()))[:SEARCHED_IMAGES]
        found[key] = [every[n] for n in sorted(order)]
    return found


def _wrong(pools: Mapping[bool, Sequence[Pool]], settings: NmsSettings) -> int:
    """How many boxes come out and should not, or should and do not."""
    total = 0
    for pool in pools[settings.multi_label if settings.multi_label in pools else False]:
        by = pool.near.suppressed_by(settings.iou, agnostic=settings.agnostic)
        out = np.nonzero((by < 0) & (pool.found.scores > settings.conf))[0][: settings.max_det]
        right = int(pool.wanted[out].sum())
        total += len(out) - right + int(pool.wanted.sum()) - right + pool.lost
    return total


@dataclass(frozen=True, slots=True, eq=False)
class _Side:
    pools: Mapping[bool, Sequence[Pool]]
    breaks: tuple[float, ...]
    most: int
    hits: int

    @classmethod
    def of(cls, pools: Mapping[bool, Sequence[Pool]]) -> _Side:
        counts = [int(pool.wanted.sum()) for pool in pools[False]]
        scores = [s for pool in pools[False] for s in pool.found.scores[pool.wanted]]
        least = min(scores, default=0.25)
        most = max(counts, default=0)
        return cls(pools, (least * (1 - 1e-9), _rounded_down(least)), most, counts.count(most))

    def fits(self, confs: Floats, limits: Sequence[int | None]) -> Iterator[_Fit]:
        """Every run of suppression over the grid."""
        for multi_label, agnostic, iou in product(self.pools, (False, True), sorted(USUAL_IOU)):
            wrong = np.zeros((len(limits), len(confs)), np.int64)
            for pool in self.pools[multi_label]:
                wrong += _table(pool, iou, confs, limits, agnostic=agnostic)
            yield _Fit(iou, agnostic, multi_label, wrong)


def _rounded_down(score: float) -> float:
    """A threshold with two digits, just below a score."""
    if not score > 0:
        return 0.0
    digit = 10.0 ** (np.floor(np.log10(score)) - 1)
    return float(np.floor(score / digit * (1 - 1e-9)) * digit)


def _table(pool: Pool, iou: float, confs: Floats, limits: Sequence[int | None], *, agnostic: bool) -> NDArray[np.int64]:
    kept = np.nonzero(pool.near.suppressed_by(iou, agnostic=agnostic) < 0)[0]
    right = np.concatenate([[0], np.cumsum(pool.wanted[kept])])
    above = np.searchsorted(-pool.found.scores[kept], -confs, side="left")  # how many are more confident
    total = int(pool.wanted.sum()) + pool.lost
    rows = [np.minimum(above, len(kept) if limit is None else limit) for limit in limits]
    return np.stack([out - 2 * right[out] + total for out in rows])


def _best(
    fits: Sequence[Sequence[_Fit]], confs: Floats, limits: Sequence[int | None], sides: Sequence[_Side]
) -> tuple[NmsSettings, NmsSettings]:
    """The pair of fits with the least cost: wrong boxes, then settings that differ, then unusual settings."""
    least = min(f.least for f in fits[0]) + min(f.least for f in fits[1])
    # A difference must pay for itself: by anything where all boxes come out right, by more where some never do.
    price = 0.5 if least == 0 else 1.5 + 0.1 * least
    rank = {conf: 1e-4 * n for n, conf in enumerate(USUAL_CONF)}
    odd = np.array([rank.get(round(float(conf), 6), 5e-3) for conf in confs])
    best: tuple[float, Any] = (np.inf, None)
    for one in sorted(fits[0], key=lambda f: f.least):
        for other in sorted(fits[1], key=lambda f: f.least):
            if one.least + other.least > best[0]:
                break
            apart = (one.iou != other.iou) + (one.agnostic != other.agnostic) + (one.multi_label != other.multi_label)
            base = price * apart + 1e-3 * (USUAL_IOU.index(one.iou) + USUAL_IOU.index(other.iou))
            base += 1e-2 * (one.agnostic + other.agnostic + one.multi_label + other.multi_label)
            cost, choice = _thresholds(one.wrong, other.wrong, odd, limits, (price, confs, sides))
            if base + cost < best[0]:
                best = base + cost, (one, other, choice)
    one, other, ((row, column), (row_other, column_other)) = best[1]
    return (
        NmsSettings(float(confs[column]), one.iou, limits[row], one.agnostic, one.multi_label),
        NmsSettings(float(confs[column_other]), other.iou, limits[row_other], other.agnostic, other.multi_label),
    )


def _thresholds(
    one: NDArray[np.int64],
    other: NDArray[np.int64],
    odd: Floats,
    limits: Sequence[int | None],
    terms: tuple[float, Floats, Sequence[_Side]],
) -> tuple[float, Any]:
    """The cheapest limits and confidence thresholds of two runs."""
    price, confs, sides = terms
    best: tuple[float, Any] = (np.inf, None)
    for row, row_other in product(range(len(limits)), repeat=2):
        limited = price * (row != row_other) + sum(
            _unlikely(limits[at], side, price) for at, side in zip((row, row_other), sides, strict=True)
        )
        same = one[row] + other[row_other] + odd
        at = int(same.argmin())
        if same[at] + limited < best[0]:
            best = float(same[at] + limited), ((row, at), (row_other, at))
        first, second = one[row] + odd, other[row_other] + odd
        at, to = int(first.argmin()), int(second.argmin())
        cost = float(first[at] + second[to]) + price + limited
        if at != to and cost < best[0]:
            slack = min(_width(one[row], at, confs), _width(other[row_other], to, confs))
            if cost + min(0.4, 2 * slack) < best[0]:
                best = cost + min(0.4, 2 * slack), ((row, at), (row_other, to))
    return best


def _width(wrong: NDArray[np.int64], at: int, confs: Floats) -> float:
    """How far the threshold could be moved: a narrow gap that holds a usual threshold is no chance."""
    low = high = at
    while low > 0 and wrong[low - 1] == wrong[at]:
        low -= 1
    while high < len(wrong) - 1 and wrong[high + 1] == wrong[at]:
        high += 1
    return float(confs[min(high + 1, len(confs) - 1)] - confs[max(low - 1, 0)])


def _unlikely(limit: int | None, side: _Side, price: float) -> float:
    """How much speaks against a limit: a usual number that several images reach is no chance, another one may be."""
    if limit is None:
        return 0.0
    if side.most < limit:
        return 1e-3  # never reached
    if limit in USUAL_LIMITS:
        return 0.03 / side.hits
    return 0.45 / side.hits if price < 1 else 10 * price
