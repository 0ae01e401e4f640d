"""What a diagnoser proposes: a cause, its evidence, and the change to the graph that would cure it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerdiff.diagnose.stretch import Stretch
from layerdiff.patch import Splice

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
    well it cures, and does not count as verified. `whole` says that it puts nodes in the place of all that are accused:
    that is only tried when nothing smaller cures.
    """

    cause: str
    summary: str
    evidence: Mapping[str, Any] = field(default_factory=dict)
    patch: Patch | None = None
    remedy: str = ""
    site: int | None = None
    decided: bool = field(default=True, kw_only=True)
    whole: bool = field(default=False, kw_only=True)

    @property
    def size(self) -> int:
        """How many nodes the patch changes, puts in or goes past."""
        changes = self.patch or ()
        inside = sum(len(change.model.graph.node) for change in changes if isinstance(change, Splice))
        return inside + len({change.node for change in changes if not isinstance(change, Splice)})


Diagnoser = Callable[[Stretch], Iterable[Hypothesis]]
