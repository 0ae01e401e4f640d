"""Permutations of axes: channels first, channels last, and how one becomes the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

Axes = tuple[int, ...]


def inverse(axes: Sequence[int]) -> Axes:
    """The axes that undo a permutation."""
    found = [0] * len(axes)
    for place, axis in enumerate(axes):
        found[axis] = place
    return tuple(found)


def after(first: Sequence[int], second: Sequence[int]) -> Axes:
    """One permutation for two: ``x.transpose(first).transpose(second)``."""
    return tuple(first[axis] for axis in second)


def is_trivial(axes: Sequence[int]) -> bool:
    """Whether a permutation leaves every axis where it is."""
    return tuple(axes) == tuple(range(len(axes)))


def one_axis_moved(rank: int) -> list[Axes]:
    """The permutations that move one axis and keep the order of the others, last-to-second and back first."""
    found: dict[Axes, None] = {}
    for source in range(rank):
        for target in range(rank):
            rest = [axis for axis in range(rank) if axis != source]
            axes = (*rest[:target], source, *rest[target:])
            if not is_trivial(axes):
                found[axes] = None
    usual = [(0, rank - 1, *range(1, rank - 1)), (0, *range(2, rank), 1)]
    return [axes for axes in usual if axes in found] + [axes for axes in found if axes not in usual]


def moved(shape: Sequence[int], wanted: Sequence[int | None]) -> Axes | None:
    """The channel move that gives an array of one shape another; None where there is none or it is not needed."""
    if len(shape) != len(wanted) or len(shape) < 3 or _fits(shape, wanted):
        return None
    usual = one_axis_moved(len(shape))[:2]
    fitting = {axes for axes in usual if _fits([shape[axis] for axis in axes], wanted)}
    return fitting.pop() if len(fitting) == 1 else None


def _fits(shape: Sequence[int], wanted: Sequence[int | None]) -> bool:
    return all(want is None or want == size for size, want in zip(shape, wanted, strict=True))


def named(axes: Sequence[int]) -> str:
    """How a tensor that is compared after `axes` lies in the file."""
    rank = len(axes)
    if rank >= 3 and tuple(axes) == (0, rank - 1, *range(1, rank - 1)):
        return "channels last (NHWC)" if rank == 4 else "channels last"
    if rank >= 3 and tuple(axes) == (0, *range(2, rank), 1):
        return "channels first (NCHW)" if rank == 4 else "channels first"
    return "with its axes permuted"
