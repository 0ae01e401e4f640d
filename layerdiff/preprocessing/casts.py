"""Numbers that went through a narrower type: truncated, rounded, wrapped around, saturated, halved in precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]

_SLACK = 1e-3  # of a level: what float32 leaves of a whole number behind a mean and a std
_NEAR = 0.01  # of a level: what an estimated factor and offset leave of a whole number
_LEVELS = 256
_EDGE = 0.002
"""The share of values that may come out a level off: those that were a rounding error away from a whole number."""


@dataclass(frozen=True, slots=True)
class Cast:
    """One way to lose digits: `made` does it to numbers in levels (C, …), `code` to an array `x`."""

    how: str
    summary: str
    made: Callable[[Array], Array]
    code: str


@dataclass(frozen=True, slots=True)
class Lattice:
    """Whole numbers behind a factor and an offset for each channel: what an 8-bit image looks like when normalised."""

    step: Array
    origin: Array
    top: Array  # the highest level that is there; a resize that overshoots is cut off

    def levels(self, values: Array) -> Array:
        """Values (C, S) as levels."""
        found: Array = (values - self.origin[:, None]) / self.step[:, None]
        return found

    def values(self, levels: Array) -> Array:
        """Levels (C, S) as values."""
        found: Array = levels * self.step[:, None] + self.origin[:, None]
        return found


def lattice(values: Array) -> Lattice | None:
    """The lattice that values (C, S) lie on; None where they take too many values, or too few to tell."""
    steps, origins, tops = [], [], []
    for channel in values:
        distinct = np.unique(channel)
        distinct = distinct[np.r_[True, np.diff(distinct) > 1e-6 * max(float(np.ptp(distinct)), 1e-30)]]
        if not 8 <= distinct.size <= _LEVELS:
            return None
        gaps = np.diff(distinct)
        # The smallest gap is a step; the mean over the whole span is a better estimate of it.
        count = np.rint((distinct[-1] - distinct[0]) / gaps.min())
        step = (distinct[-1] - distinct[0]) / count
        off = np.abs((distinct - distinct[0]) / step - np.rint((distinct - distinct[0]) / step))
        if count >= _LEVELS or off.max() > 0.02:
            return None
        steps.append(step)
        origins.append(distinct[0])
        tops.append(count)
    return Lattice(np.array(steps), np.array(origins), np.array(tops))


_TO_LEVELS = (
    Cast("truncated", "truncated to whole 8-bit levels", lambda x: np.floor(x + _SLACK), "np.floor({x} + 0.001)"),
    Cast("rounded", "rounded to whole 8-bit levels", np.rint, "np.rint({x})"),
)
_RAW = (
    Cast("truncated", "truncated to integers", np.trunc, "np.trunc({x})"),
    Cast("wrapped", "wrapped around (modulo 256)", lambda x: np.floor(x + _SLACK) % 256, "np.floor({x} + 0.001) % 256"),
    Cast(
        "wrapped-toward-zero",
        "truncated to integers and wrapped around (modulo 256)",
        lambda x: np.trunc(x) % 256,
        "np.trunc({x}) % 256",
    ),
    Cast(
        "signed",
        "taken for signed bytes (above 127 wraps to negative)",
        lambda x: (np.floor(x + _SLACK) + 128) % 256 - 128,
        "(np.floor({x} + 0.001) + 128) % 256 - 128",
    ),
    Cast("unsigned", "taken for unsigned bytes", lambda x: np.floor(x + _SLACK) % 256, "{x} % 256"),
    Cast("saturated", "cut off at 0 and 255", lambda x: np.clip(x, 0, 255), "np.clip({x}, 0, 255)"),
    Cast("saturated-unit", "cut off at 0 and 1", lambda x: np.clip(x, 0, 1), "np.clip({x}, 0, 1)"),
)


@dataclass(frozen=True, slots=True)
class Found:
    """A cast that makes one side of the other: on which lattice (None: on the numbers themselves)."""

    cast: Cast
    lattice: Lattice | None

    def on(self, values: Array) -> Array:
        """Values (C, S) after the cast."""
        if self.lattice is None:
            return self.cast.made(values)
        levels = np.clip(self.cast.made(self.lattice.levels(values)), 0, self.lattice.top[:, None])
        return self.lattice.values(levels)


def cast_between(before: Array, after: Array) -> Found | None:
    """The cast that makes the values `before` (C, S) into `after`; None where none does."""
    if np.array_equal(before, after) or np.ptp(before) == 0:  # one number tells nothing of what was done to it
        return None
    span = max(float(np.ptp(after)), 1e-30)
    brain = Cast("bfloat16", "rounded to bfloat16", _brain, "torch.from_numpy({x}).bfloat16().float().numpy()")
    for cast in (brain, *_RAW):
        found = Found(cast, None)
        if _makes(found, before, after, 1e-6 * span):
            return found
    grid = lattice(after)
    if grid is None or lattice(before) is not None:  # whole levels that became others were not cast
        return None
    for cast in _TO_LEVELS:
        found = Found(cast, grid)
        if _makes(found, before, after, 1e-4 * span):
            return found
    return None


def _makes(found: Found, before: Array, after: Array, limit: float) -> bool:
    right = reproduced(found, before, after) <= limit
    return bool(right.mean() >= 1 - _EDGE) and not bool(np.abs(found.on(before) - before).max() <= limit)


def reproduced(found: Found, before: Array, after: Array) -> Array:
    """How far the cast of each value is from what it should be.

    A number that is a rounding error away from the next level may come out on either side of it.
    """
    grid = 1.0 if found.lattice is None else found.lattice.step[:, None]
    near = [np.abs(found.on(before + move * grid) - after) for move in (-_NEAR, 0.0, _NEAR)]
    least: Array = np.minimum.reduce(near)
    return least


def _brain(values: Array) -> Array:
    """Rounded to bfloat16: the upper half of a float32, to even."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16 << 16).astype(np.uint32)
    found: Array = rounded.view(np.float32).astype(np.float64)
    return found
