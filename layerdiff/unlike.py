"""In what way a weight differs from the right one: by how much, by a factor, in few channels, in its order.

Weights are large, and those that are wrong are looked at from many sides: all is done some rows at a time.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import AT_ONCE, in_double

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    Array = NDArray[Any]

# Numbers in another order have the same sums, to the rounding of these.
_SAME_SUM = 1e-9
# Of the largest number: what a product with a factor rounds to.
_MULTIPLE = 1e-5


class Unlike:
    """What two arrays of one shape differ by; places that hold the same, NaN as well, differ by nothing.

    max_abs is in the units of the values (infinite where only one is a number), and rel_l2 is ``|got - wanted| /
    |wanted|`` (infinite where all that is wanted is zero). `along` holds the largest difference at each index of the
    first axis, and of the second where there is one; `sizes` the largest magnitude that is wanted at each index of the
    first that has a difference. A factor, or a shift, is one to a share of the largest number.
    """

    def __init__(self, wanted: Array, got: Array, share: float = _MULTIPLE) -> None:
        self._share = share
        count = len(wanted) if wanted.ndim else 1
        self._wanted, self._got = (array.reshape(count, wanted.size // max(1, count)) for array in (wanted, got))
        rows, self.sizes = np.zeros(count), np.zeros(count)
        columns = np.zeros(wanted.shape[1] if wanted.ndim > 1 else 0)
        single = np.promote_types(wanted.dtype, np.float32)
        off, own = 0.0, sum(float(np.linalg.norm(w.astype(single))) ** 2 for w in self._parts(self._wanted))
        with np.errstate(all="ignore"):
            for part, w, g in self._differing():
                gap = _apart(w, g)
                rows[part], self.sizes[part] = gap.max(axis=1), np.abs(w).max(axis=1)
                off += float(np.vdot(gap, gap))
                if columns.size:
                    of_each = gap.reshape(len(gap), columns.size, -1).max(axis=(0, 2))
                    np.maximum(columns, of_each, out=columns)
        self.max_abs = float(rows.max(initial=0.0))
        self.rel_l2 = float(np.sqrt(off) / np.sqrt(own)) if own > 0 else (np.inf if off > 0 else 0.0)
        self.along: tuple[Array, ...] = (rows, columns) if columns.size else (rows,)

    def _parts(self, rows: Array) -> Iterator[Array]:
        step = max(1, AT_ONCE // max(1, self._wanted.shape[1]))
        return (rows[begin : begin + step] for begin in range(0, len(rows), step))

    @cached_property
    def _rows(self) -> Array:
        """The indices of the first axis at which something differs: the others tell nothing."""
        parts = zip(self._parts(self._wanted), self._parts(self._got), strict=True)
        return np.flatnonzero(np.concatenate([np.zeros(0, bool), *((w != g).any(axis=1) for w, g in parts)]))

    def _differing(self) -> Iterator[tuple[Array, Array, Array]]:
        """The rows that differ, some at a time in double precision: their indices, and both sides."""
        for rows in self._parts(self._rows):
            # A run of rows is read as one: to pick them one by one out of a matrix on its side takes ten times as long.
            run = slice(int(rows[0]), int(rows[-1]) + 1) if rows[-1] - rows[0] == len(rows) - 1 else rows
            yield rows, in_double(self._wanted[run]), in_double(self._got[run])

    @cached_property
    def is_zero(self) -> bool:
        """Whether `got` is nothing but zeros."""
        return not any(bool(g.any()) for _, _, g in self._differing()) and not self._got.any()

    @cached_property
    def factor(self) -> float | None:
        """The one number that `got` is `wanted` times, to a share of the largest; None where there is none."""
        if self._wanted[np.setdiff1d(np.arange(len(self._wanted)), self._rows)].any():
            return None
        factor = None
        with np.errstate(all="ignore"):
            for _, w, g in self._differing():
                own = float(np.vdot(w, w))
                factor = float(np.vdot(w, g)) / own if factor is None and own > 0 else factor
                if not np.abs(g - (factor or 0.0) * w).max() <= self._share * np.abs(g).max():
                    return None
        return factor

    @cached_property
    def shift(self) -> float | None:
        """The one number that was added everywhere, to a share of the largest number; None where none was."""
        if self._wanted.size < 2 or len(self._rows) < len(self._wanted):
            return None
        low, high, size = np.inf, -np.inf, 0.0
        with np.errstate(all="ignore"):
            for _, w, g in self._differing():
                gap = g - w
                low, high = min(low, float(gap.min())), max(high, float(gap.max()))
                size = max(size, float(np.abs(g).max()), float(np.abs(w).max()))
                if not high - low <= self._share * size:
                    return None
        middle = (low + high) / 2
        return middle if abs(middle) > high - low else None

    @cached_property
    def is_permuted(self) -> bool:
        """Whether `got` holds the numbers of `wanted` in another order."""
        sums = np.zeros(3)
        for _, w, g in self._differing():
            sums += w.sum(), g.sum(), np.abs(w).sum()
        if not abs(sums[0] - sums[1]) <= _SAME_SUM * sums[2]:
            return False
        one, other = (np.sort(array[self._rows], axis=None) for array in (self._wanted, self._got))
        return bool(np.array_equal(one, other))


def share_of(rel_l2: float) -> str:
    """How far off a weight is, as a share of its own size, in words."""
    if np.isinf(rel_l2):
        return "where the model has zeros"
    return f"{rel_l2:.2g} of its size" if rel_l2 < 2 else f"{rel_l2:.2g} times its size"


def _apart(w: Array, g: Array) -> Array:
    gap: Array = np.abs(g - w)
    if np.isfinite(gap).all():
        return gap
    return np.asarray(np.where((g == w) | (np.isnan(g) & np.isnan(w)), 0.0, np.where(np.isnan(gap), np.inf, gap)))
