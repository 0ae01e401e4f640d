"""Pairs that the user has given: they take part in an alignment as if a run had confirmed them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.align.alignment import Alignment
    from layerdiff.model import Pair


def settle(found: Alignment, given: Mapping[int, Pair]) -> None:
    """Enter the given pairs, and take out what contradicts them."""
    for value, pair in given.items():
        family = set(found.families.members(value))
        for other, names in found.matched.items():
            if other not in family and pair.tensor in names:
                found.matched[other] = [name for name in names if name != pair.tensor]
        found.matched[value] = [name for name in found.matched.get(value, ()) if name == pair.tensor]
        found.proposed[value] = pair
