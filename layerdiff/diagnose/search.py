"""The hypotheses on one origin, each run: single changes, then as few of them together as it takes, then more."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

from layerdiff.diagnose import absent, exchanged, misread, neighbours, quantization, rewired, shapes
from layerdiff.diagnose.core import narrowed
from layerdiff.diagnose.cycles import closes_a_circle
from layerdiff.diagnose.hypothesis import Diagnoser, Hypothesis
from layerdiff.exporting import Exporter
from layerdiff.model import Kind
from layerdiff.patch import SetAttribute, SetConstant

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.patch import Change, Patch

log = logging.getLogger("layerdiff")

# Wires and nodes out of place, in the order in which they are tried.
SMALLER: tuple[Diagnoser, ...] = (
    misread.past,
    exchanged.operands,
    neighbours.hypotheses,
    misread.hypotheses,
    absent.hypotheses,
)

# What a diagnoser may raise on a graph that it did not expect; the others go on.
_FAILURES = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError)


@dataclass(frozen=True, slots=True)
class Tried:
    """A hypothesis, whether its change makes the wrong tensor right, and the error that is left."""

    hypothesis: Hypothesis
    cures: bool
    gap: float

    @property
    def verified(self) -> bool:
        """Whether the run shows the cause, and not only that the place is right."""
        return self.cures and self.hypothesis.decided


@dataclass
class Search:
    """What was tried on one origin so far; `failed` are the diagnosers that raised."""

    stretch: Stretch
    diagnosers: Sequence[Diagnoser]
    tried: list[Tried] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    _whole: list[tuple[Stretch, Hypothesis]] = field(default_factory=list)

    def run(self, *, thorough: bool) -> None:
        """Try until something cures. Stretches are put in place whole only after everything smaller."""
        self._quantisers()
        if self._is_cured():
            return
        if self.stretch.turned:  # the layout of the file's own may be two wires that are exchanged
            self._cross()
        for exporter in tuple(Exporter) if thorough else (Exporter.TORCHSCRIPT,):
            if self._is_cured():
                return
            self._lower(exporter)
        if not self._is_cured():
            self._whole.sort(key=lambda pair: len(pair[0].comparison.differences) if pair[0].comparison else 0)
            self.tried += [_try(lowered, hypothesis) for lowered, hypothesis in self._whole]

    def simplest(self) -> Tried | None:
        """What shows the cause with the fewest changes, else what cures with the fewest, else what came closest."""
        cured = [t for t in self.tried if t.cures]
        if not cured:
            return min(self.tried, key=lambda t: t.gap, default=None)
        return min(cured, key=lambda t: (not t.hypothesis.decided, t.hypothesis.size, len(t.hypothesis.patch or ())))

    def _is_cured(self) -> bool:
        return any(t.cures for t in self.tried)

    def _quantisers(self) -> None:
        """What keeps numbers in integers, each judged by the error that goes with it."""
        try:
            found = quantization.found(self.stretch)
        except _FAILURES as error:
            self._note_failure("quantization", error)
            return
        if found is not None:
            self.tried.append(Tried(found.hypothesis, cures=True, gap=found.gap))

    def _note_failure(self, name: str, error: Exception) -> None:
        log.warning("the diagnoser %s failed on %s", name, self.stretch.divergence.layer, exc_info=error)
        self.failed.append(f"{name}: {type(error).__name__}: {error}")

    def _lower(self, exporter: Exporter) -> None:
        """All that differs from what this exporter makes of the stretch; closer and closer where nothing cures."""
        stretch = self.stretch
        lowered = (stretch.widened() if stretch.misread else stretch).by(exporter)
        proposed = self._proposed(lowered) or self._proposed(stretch.by(exporter))
        self._change(lowered, [*self._said(shapes.hypotheses, lowered), *proposed, *rewired.hypotheses(stretch)])
        if not self._is_cured() and stretch.divergence.kind is Kind.DROPPED:
            around = stretch.widened().by(exporter)  # what seems to be absent may be there and do nothing
            self._change(around, self._proposed(around), smaller=(exchanged.operands,))
        inner = None if self._is_cured() else narrowed(lowered)
        if inner is not None:
            lowered, proposed = inner, self._proposed(inner)
            self._change(inner, proposed)
        if not self._is_cured() and exporter is Exporter.TORCHSCRIPT:
            self._cross()
        self._whole += [(lowered, h) for h in proposed if h.whole]

    def _cross(self) -> None:
        """Two wires that lead to the stretch in each other's place."""
        before = self.stretch.upstream()
        self.tried += [_try(before, hypothesis) for hypothesis in exchanged.hypotheses(before)]

    def _change(
        self, stretch: Stretch, proposed: Sequence[Hypothesis], *, smaller: Sequence[Diagnoser] = SMALLER
    ) -> None:
        """Each change on its own; else as few as it takes together, and what else changes no more nodes than those."""
        single = [h for h in proposed if not h.whole]
        self.tried += [_try(stretch, hypothesis) for hypothesis in single]
        rounded = any(node.op == "QuantizeLinear" for node in stretch.nodes)  # all that reads past it cures
        if rounded or self._is_cured():
            return
        together = _together(stretch, single)
        if not any(t.cures and t.hypothesis.size == 1 for t in together):
            self._smaller(stretch, smaller)
        self.tried += together

    def _smaller(self, stretch: Stretch, diagnosers: Sequence[Diagnoser]) -> None:
        """Wires and nodes that are out of place, before anything is put in place whole."""
        for diagnoser in diagnosers:
            if any(tried.verified for tried in self.tried):  # what cures without showing the cause is no reason to stop
                return
            self.tried += [_try(stretch, hypothesis) for hypothesis in self._said(diagnoser, stretch)]

    def _proposed(self, stretch: Stretch) -> list[Hypothesis]:
        """All that the diagnosers say; one that raises is reported by its name, and the others go on."""
        return [hypothesis for diagnoser in self.diagnosers for hypothesis in self._said(diagnoser, stretch)]

    def _said(self, diagnoser: Diagnoser, stretch: Stretch) -> list[Hypothesis]:
        try:
            return list(diagnoser(stretch))
        except _FAILURES as error:
            self._note_failure(diagnoser.__module__.rpartition(".")[2], error)
            return []


def _try(stretch: Stretch, hypothesis: Hypothesis) -> Tried:
    if not hypothesis.patch:
        return Tried(hypothesis, cures=False, gap=float("inf"))
    graph, outcome = stretch.alignment.candidate.graph, stretch.outcome(hypothesis.patch)
    cures = stretch.is_right(outcome) and not closes_a_circle(graph, hypothesis.patch)
    return Tried(hypothesis, cures, stretch.off_by(outcome))


def _together(stretch: Stretch, single: Sequence[Hypothesis]) -> list[Tried]:
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
        first, site = needed[0], needed[0].site if len(sites) == 1 else None
        # Numbers are what they are; several wires can stand for one cause.
        alike = group is not changing or len({h.cause for h in needed}) == 1
        decided = alike and all(h.decided for h in needed)
        mended = Hypothesis(first.cause, text, evidence, _changes(needed), first.remedy, site, decided=decided)
        return [_try(stretch, mended)]
    return []


def _changes(hypotheses: Iterable[Hypothesis]) -> Patch:
    found: list[Change] = []
    for change in chain.from_iterable(h.patch or () for h in hypotheses):
        if change not in found:
            found.append(change)
    return tuple(found)
