"""Differences that are small beside their tensor's largest number, and that what reads it makes large.

A limit goes with the largest numbers of a tensor. An epsilon that was lost ahead of a logarithm, a root or a quotient
changes the smallest: each tensor is right to its limit, and the outputs are wrong. Then tensors are put right one after
the other in the order of computation, until the outputs agree: the last that it takes is where it goes wrong. From then
on that value is judged by each number's own size.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import BackendError
from layerdiff.graph import Injection
from layerdiff.limits import Limit, own_size_limit
from layerdiff.operators import base_name, only_moves

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.align import Alignment
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

MOST = 12
"""Places that are looked for; each costs a dozen runs of what lies behind it."""

# What rounds each number by itself: from right inputs the last digits are right, whatever is beside them.
_EXACT = frozenset(
    {
        "abs", "add", "clamp", "clamp_max", "clamp_min", "div", "maximum", "minimum", "mul", "neg", "relu", "rsub",
        "sqrt", "sub", "threshold", "where",
    }
)  # fmt: skip

_SHARE = 0.25
"""What is allowed of an error that was found to make the outputs wrong."""


def amplified(found: Alignment, outputs: OutputPairs) -> dict[int, Limit]:
    """Stricter limits for the values whose tensors, right to their limits, make the outputs wrong.

    Empty where the outputs agree, and where putting such tensors right does not make them agree.
    """
    if outputs.all_agree(found.candidate.tapped):
        return {}
    final = set(outputs.tensors.values())
    position = {name: place for place, name in enumerate(found.candidate.graph.computed)}
    pairs = [(n, v) for n, v in found.forced().items() if n in position and n not in final and _differs(found, n, v)]
    pairs.sort(key=lambda pair: position[pair[0]])
    try:
        needed = _needed(found, pairs, outputs)
    except BackendError:  # what takes no values from outside
        return {}
    limits: dict[int, Limit] = {}
    for tensor, value in needed:
        limit = _stricter(found, tensor, value)
        if limit is None:
            return {}
        limits |= dict.fromkeys([*_moved(found, value), *_read(found, tensor, value, limit)], limit)
    return limits


def _needed(found: Alignment, pairs: Sequence[tuple[str, int]], outputs: OutputPairs) -> list[tuple[str, int]]:
    """The few tensors that have to be put right for the outputs to agree; none where one of them may be rounding."""

    def heals(some: Sequence[tuple[str, int]]) -> bool:
        injections = [Injection(tensor, found.expected_for(tensor, value)) for tensor, value in some]
        return outputs.all_agree(found.candidate.outputs_with(injections))

    needed: list[tuple[str, int]] = []
    end = len(pairs)
    while end and len(needed) < MOST and heals([*pairs[:end], *needed]):
        low, high = 0, end  # the first `low` are too few, the first `high` are enough
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if heals([*pairs[:middle], *needed]) else (middle, high)
        if not _is_exact(found, pairs[high - 1][1]):
            return []
        needed.insert(0, pairs[high - 1])
        if heals(needed):
            return needed
        end = high - 1
    return []


def _is_exact(found: Alignment, value: int) -> bool:
    """Whether the operator that makes a value rounds each number by itself."""
    site = found.reference.producer(found.root(value))
    return site is not None and base_name(site.op) in _EXACT


def _moved(found: Alignment, value: int) -> list[int]:
    """A value, and all that only reshapes or repeats its numbers."""
    same = {value: None}
    for site in found.reference.sites:
        if only_moves(site.op) and any(index in same for index in site.inputs):
            same |= dict.fromkeys(site.outputs)
    return list(same)


def _read(found: Alignment, tensor: str, value: int, limit: Limit) -> list[int]:
    """What the operator reads that makes a value, where the tensor holds it as well, and another to a stricter limit.

    What goes into the addition of an epsilon is, to its own limit, what comes out.
    """
    site, tapped = found.reference.producer(found.root(value)), found.candidate.tapped
    return [
        index
        for index in (() if site is None else site.inputs)
        if index in found.matched and found.holds_in(tapped, index, tensor)
        if any(found.holds_in(tapped, index, name, limit) for name in found.matched[index])
    ]


def _differs(found: Alignment, tensor: str, value: int) -> bool:
    expected, actual = found.reference.values[value].array, found.candidate.tapped.get(tensor)
    if expected is None or actual is None or expected.size != actual.size or expected.dtype.kind != "f":
        return False
    return not np.array_equal(expected.reshape(-1), actual.reshape(-1))


def _stricter(found: Alignment, tensor: str, value: int) -> Limit | None:
    """The limit under which a tensor does not hold a value, and neither does what the value is made from.

    None where each of its numbers is right to its last digits.
    """
    values = found.reference.values
    expected, own = values[value].array, own_size_limit(values[value].dtype)
    assert expected is not None
    off = _excess(expected, found.isolated.get(tensor, found.candidate.tapped[tensor]), own)
    if off == 0:
        return None
    site = found.reference.producer(found.root(value))
    read = [values[index].array for index in (() if site is None else site.inputs)]
    does = [_excess(expected, a, own) for a in read if a is not None and a.size == expected.size]
    return Limit(own.rtol, _SHARE * min(off, *(gap for gap in does if gap > 0), np.inf))


def _excess(expected: Array, actual: Array, own: Limit) -> float:
    """By how much some number is off at most, beyond what its own size allows."""
    e, a = (array.reshape(-1).astype(np.float64) for array in (expected, actual))
    with np.errstate(invalid="ignore"):
        excess = np.abs(a - e) - own.rtol * np.abs(e)
    return float(np.max(excess, where=np.isfinite(excess), initial=0.0))
