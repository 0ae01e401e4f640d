"""Half precision in an input: whether its numbers went through float16, and what that leaves of them."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_ROUNDING = 2.0**-11
"""Half a unit in the last place of a float16, relative to the number (IEEE 754, binary16)."""
_LOOKED_AT = 20_000


def is_half(array: Array) -> bool:
    """Whether all numbers are float16 numbers, and some of them finer than one grid for all would make them.

    Whole numbers, and 8-bit levels over 256, are float16 numbers by chance: their steps are all of one size.
    """
    if array.dtype.kind != "f":
        return False
    sample = array.ravel()[:: max(1, array.size // _LOOKED_AT)]
    if array.dtype == np.float16:
        return True
    with np.errstate(over="ignore"):
        same = sample.astype(np.float16).astype(sample.dtype) == sample
    if not np.all(same | ~np.isfinite(sample)):
        return False
    finite = sample[np.isfinite(sample)].astype(np.float64)
    # The grid of the largest numbers: eleven bits, the highest of which is theirs.
    exponent = np.floor(np.log2(max(float(np.abs(finite).max(initial=0.0)), 1e-300)))
    on_grid = finite * 2.0 ** (10 - exponent)
    return bool(np.any(on_grid != np.rint(on_grid)))


def slack(expected: Array, actual: Array) -> float:
    """How far float16 on one side only can put two inputs apart, as a share of the largest number; 0 for none."""
    return 4 * _ROUNDING if is_half(actual) != is_half(expected) else 0.0
