"""The few of many switches that decide, found by turning halves of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def smallest(names: Sequence[str], cured: Callable[[Sequence[str]], bool]) -> list[str]:
    """The names that it takes to cure; empty when all together do not.

    Delta debugging by halves, then one by one (Zeller and Hildebrandt, 2002): nothing that is left can be spared.
    """
    found = list(names)
    if not cured(found):
        return []
    while len(found) > 1:
        middle = len(found) // 2
        for half in (found[:middle], found[middle:]):
            if cured(half):
                found = half
                break
        else:
            break
    for name in list(found):
        fewer = [other for other in found if other != name]
        if fewer and cured(fewer):
            found = fewer
    return found
