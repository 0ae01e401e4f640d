"""Let hypotheses compete: each is run, what makes the wrong tensor right is verified, the simplest of those wins."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from layerdiff.diagnose.search import Search, Tried
from layerdiff.model import Diagnosis

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.diagnose.hypothesis import Diagnoser
    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.patch import Patch

REPAIR = 'report.repair("fixed.onnx") writes the file with this change made'


@dataclass(frozen=True, slots=True)
class Explained:
    """The diagnosis of one origin, and the change that cured it (None when nothing did).

    `site` is the reference operator that a verified cause is in, where it is in one alone.
    """

    diagnosis: Diagnosis
    patch: Patch | None
    site: int | None = None

    def of(self, layer: str) -> Explained:
        """The same, said of another layer: of several that could be meant, the one that it settles on."""
        return replace(self, diagnosis=replace(self.diagnosis, layer=layer))


def explain(stretch: Stretch, diagnosers: Sequence[Diagnoser], *, thorough: bool = True) -> Explained:
    """The cause of one origin: the verified hypothesis that changes least, else the most likely one, else unknown.

    Single changes are tried first, then as few of them together as it takes, then whole stretches put in place. The
    stretch is lowered by the quick exporter first, and by the slow one (if `thorough`) where that proved nothing.
    """
    if stretch.holds(()):  # a cure of what is not ill proves nothing
        return _explained(stretch, None, (), [])
    search = Search(stretch, diagnosers)
    search.run(thorough=thorough)
    return _explained(stretch, search.simplest(), search.tried, search.failed)


def _explained(stretch: Stretch, winner: Tried | None, tried: Sequence[Tried], failed: list[str]) -> Explained:
    ruled_out = [_ruled_out(t) for t in tried if winner is None or t.hypothesis is not winner.hypothesis]
    evidence: dict[str, Any] = {"ruled_out": ruled_out} if ruled_out else {}
    if failed:
        evidence["failed"] = failed
    if winner is None:
        healed = stretch.divergence.healed
        proven = healed is not None and healed.agrees
        text = (
            "Located and proven by putting PyTorch's value in, not explained." if proven else "Located, not explained."
        )
        return Explained(Diagnosis("unknown", stretch.divergence.layer, text, evidence, "", verified=False), None)
    cause = winner.hypothesis
    after = {"error_after": winner.gap} if cause.patch else {}
    guessed = {"cured_by": "replacing more than the cause"} if winner.cures and not cause.decided else {}
    evidence = {**cause.evidence, **after, **guessed, **evidence}
    remedy = cause.remedy or (REPAIR if winner.cures else "")
    diagnosis = Diagnosis(
        cause.cause, stretch.divergence.layer, cause.summary, evidence, remedy, verified=winner.verified
    )
    site = cause.site if winner.verified else None
    return Explained(diagnosis, cause.patch if winner.cures else None, site)


def _ruled_out(tried: Tried) -> str:
    why = "also cures it" if tried.cures else f"leaves an error of {tried.gap:.3g}"
    return f"{tried.hypothesis.cause}: {tried.hypothesis.summary} ({why})"
