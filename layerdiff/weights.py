"""How each parameter of the reference came into the candidate: the nouns of the weights audit."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Carried(str, Enum):
    """In which form a parameter is in the candidate."""

    EXACT = "exact"
    TRANSPOSED = "transposed"
    RESHAPED = "reshaped"
    MERGED = "part of a merged one"
    SPLIT = "split"
    FOLDED = "folded"
    ROUNDED = "rounded"
    QUANTISED = "quantised"
    OMITTED = "left out"  # zeros that nothing needs
    CHANGED = "changed"
    ABSENT = "absent"

    def __str__(self) -> str:
        return self.value


class WeightVerdict(str, Enum):
    """Whether the candidate computes with the parameter that the reference has."""

    AGREES = "agrees"
    DIFFERS = "differs"
    ABSENT = "absent"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class WeightResult:
    """What was found about one parameter or buffer that the reference reads.

    `initializer` is the candidate's tensor that carries it. `max_abs` and `rel_l2` are the distance between the two (of
    the folded numbers, where it was folded); None where there is nothing to subtract. `channels` are the leading
    indices that differ, where they are few. `note` says the rest in words.
    """

    parameter: str
    initializer: str | None
    how: Carried
    verdict: WeightVerdict
    shape: tuple[int, ...]
    max_abs: float | None = None
    rel_l2: float | None = None
    channels: tuple[int, ...] = ()
    note: str = ""
