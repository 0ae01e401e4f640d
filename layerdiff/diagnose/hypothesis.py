"""What a diagnoser proposes: a cause, its evidence, and the change to the graph that would cure it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerdiff.diagnose.stretch import Stretch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.patch import Patch


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One possible cause.

    `patch` is tried on the accused nodes; the cause counts as verified when they then compute the right value. None
    where no change of the graph expresses it: such a cause stays unverified. A patch holds what is right for every
    input, never numbers fitted to this one. `remedy` is what the user should change, as code where it can be.
    `site` is the reference operator that the cause is in, where it is in one alone: the accusation follows it.
    `decided` says that the patch itself shows the cause. Where it replaces more than that, the cause is a guess however
    well it cures, and does not count as verified.
    """

    cause: str
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    patch: Patch | None = None
    remedy: str = ""
    site: int | None = None
    decided: bool = field(default=True, kw_only=True)


Diagnoser = Callable[[Stretch], Iterable[Hypothesis]]
