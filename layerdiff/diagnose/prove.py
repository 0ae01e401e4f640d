"""Let hypotheses compete: each is run, what makes the wrong tensor right is verified, the simplest of those wins."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from layerdiff.diagnose import exchanged, rewired
from layerdiff.diagnose.core import narrowed
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.lowering import Exporter
from layerdiff.model import Diagnosis, Kind
from layerdiff.patch import SetAttribute, SetConstant, Splice

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerdiff.diagnose.hypothesis import Diagnoser
    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.patch import Change, Patch

REPAIR = 'report.repair("fixed.onnx") writes the file with this change made'

log = logging.getLogger("layerdiff")


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


@dataclass(frozen=True, slots=True)
class _Tried:
    hypothesis: Hypothesis
    cures: bool
    gap: float

    @property
    def verified(self) -> bool:
        """Whether the run shows the cause, and not only that the place is right."""
        return self.cures and self.hypothesis.decided


def explain(stretch: Stretch, diagnosers: Sequence[Diagnoser], *, thorough: bool = True) -> Explained:
    """The cause of one origin: the verified hypothesis that changes least, else the most likely one, else unknown.

    Single changes are tried first, then as few of them together as it takes, then whole stretches put in place. The
    stretch is lowered by the quick exporter first, and by the slow one (if `thorough`) where that proved nothing.
    """
    if stretch.holds(()):  # a cure of what is not ill proves nothing
        return _explained(stretch, None, (), [])
    if stretch.turned and (tried := _crossed(stretch)):
        return _explained(stretch, _simplest(tried), tried, [])
    return _searched(stretch, diagnosers, thorough=thorough)


def _searched(stretch: Stretch, diagnosers: Sequence[Diagnoser], *, thorough: bool) -> Explained:
    tried: list[_Tried] = []
    whole: list[tuple[Stretch, Hypothesis]] = []
    failed: list[str] = []
    for exporter in tuple(Exporter) if thorough else (Exporter.TORCHSCRIPT,):
        lowered = (stretch.widened() if stretch.misread else stretch).by(exporter)
        proposed, errors = _proposed(lowered, diagnosers)
        if not proposed:
            proposed, errors = _proposed(stretch.by(exporter), diagnosers)
        proposed += rewired.hypotheses(stretch)
        failed += errors
        tried += _changed(lowered, [h for h in proposed if not _splices(h)])
        if stretch.divergence.kind is Kind.DROPPED and not any(t.cures for t in tried):
            around = stretch.widened().by(exporter)  # what seems to be absent may be there and do nothing
            again, errors = _proposed(around, diagnosers)
            tried += _changed(around, [h for h in again if not _splices(h)])
            failed += errors
        inner = None if any(t.cures for t in tried) else narrowed(lowered)
        if inner is not None:
            lowered = inner
            again, errors = _proposed(inner, diagnosers)
            failed += errors
            tried += _changed(inner, [h for h in again if not _splices(h)])
            proposed = [h for h in proposed if not _splices(h)] + [h for h in again if _splices(h)]
        whole += [(lowered, h) for h in proposed if _splices(h)]
        tried += [] if any(t.cures for t in tried) or exporter is not Exporter.TORCHSCRIPT else _crossed(stretch)
        if any(t.cures for t in tried):
            break
    else:
        whole.sort(key=lambda pair: len(pair[0].comparison.differences) if pair[0].comparison else 0)
        tried += [_try(lowered, hypothesis) for lowered, hypothesis in whole]
    return _explained(stretch, _simplest(tried), tried, failed)


def _simplest(tried: Sequence[_Tried]) -> _Tried | None:
    """What cures with the fewest changes, and shows the cause; else what came closest."""
    cured = [t for t in tried if t.cures]
    if not cured:
        return min(tried, key=lambda t: t.gap, default=None)
    return min(cured, key=lambda t: (not t.hypothesis.decided, len(t.hypothesis.patch or ())))


def _crossed(stretch: Stretch) -> list[_Tried]:
    """What cures by exchanging two wires that lead to the stretch."""
    before = stretch.upstream()
    tried = [_try(before, hypothesis) for hypothesis in exchanged.hypotheses(before)]
    return [t for t in tried if t.cures]


def _changed(stretch: Stretch, single: Sequence[Hypothesis]) -> list[_Tried]:
    """Each change on its own; as few as it takes together, where none of them is enough."""
    tried = [_try(stretch, hypothesis) for hypothesis in single]
    return tried if any(t.cures for t in tried) else tried + _together(stretch, single)


def _explained(stretch: Stretch, winner: _Tried | None, tried: Sequence[_Tried], failed: list[str]) -> Explained:
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


def _proposed(stretch: Stretch, diagnosers: Sequence[Diagnoser]) -> tuple[list[Hypothesis], list[str]]:
    """All that the diagnosers say; one that raises is reported by its name, and the others go on."""
    found: list[Hypothesis] = []
    failed = []
    for diagnoser in diagnosers:
        try:
            found += diagnoser(stretch)
        except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError) as error:  # noqa: PERF203
            name = diagnoser.__module__.rpartition(".")[2]
            log.warning("the diagnoser %s failed on %s", name, stretch.divergence.layer, exc_info=True)
            failed.append(f"{name}: {type(error).__name__}: {error}")
    return found, failed


def _try(stretch: Stretch, hypothesis: Hypothesis) -> _Tried:
    if not hypothesis.patch:
        return _Tried(hypothesis, cures=False, gap=float("inf"))
    return _Tried(hypothesis, stretch.holds(hypothesis.patch), stretch.gap(hypothesis.patch))


def _together(stretch: Stretch, single: Sequence[Hypothesis]) -> list[_Tried]:
    """As few of the changes as cure together: one fault can touch several attributes, and a layer can have two.

    Numbers alone are tried first, then attributes, then both: where an optimiser moved transposes about, differences in
    wiring are no faults.
    """
    changing = [h for h in single if h.patch]
    numbers = [h for h in changing if all(isinstance(change, SetConstant) for change in h.patch or ())]
    settings = [h for h in changing if all(isinstance(change, SetAttribute) for change in h.patch or ())]
    for group in (numbers, settings, [*settings, *numbers], changing):
        if len(group) < 2 or not stretch.holds(_changes(group)):
            continue
        needed = group
        for hypothesis in reversed(group):
            fewer = [h for h in needed if h is not hypothesis]
            if fewer and stretch.holds(_changes(fewer)):
                needed = fewer
        text = " ".join(dict.fromkeys(h.summary for h in needed))
        evidence = dict(needed[0].evidence) | {"together_with": [dict(h.evidence) for h in needed[1:]]}
        sites = {h.site for h in needed}
        site, decided = needed[0].site if len(sites) == 1 else None, all(h.decided for h in needed)
        first = needed[0]
        mended = Hypothesis(first.cause, text, evidence, _changes(needed), first.remedy, site, decided=decided)
        return [_try(stretch, mended)]
    return []


def _changes(hypotheses: Iterable[Hypothesis]) -> Patch:
    found: list[Change] = []
    for change in chain.from_iterable(h.patch or () for h in hypotheses):
        if change not in found:
            found.append(change)
    return tuple(found)


def _splices(hypothesis: Hypothesis) -> bool:
    return any(isinstance(change, Splice) for change in hypothesis.patch or ())


def _ruled_out(tried: _Tried) -> str:
    why = "also cures it" if tried.cures else f"leaves an error of {tried.gap:.3g}"
    return f"{tried.hypothesis.cause}: {tried.hypothesis.summary} ({why})"
