"""What no single change explains: the stretch lowered afresh in place of the accused nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.diagnose.difference import RESHAPING, What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.semantics import cause_by_site, cause_of
from layerdiff.diagnose.weights import wrong_parameter
from layerdiff.model import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.difference import Difference
    from layerdiff.diagnose.stretch import Stretch


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One: the accused nodes compute something else as a whole, or are not there at all."""
    comparison = stretch.comparison
    if comparison is None:
        return
    change = stretch.splice(comparison.fresh)
    if change is None:
        return
    cause, text = _named(stretch, [d for d in comparison.differences if d.op not in RESHAPING])
    evidence = {"differences": len(comparison.differences), "lowered_by": comparison.fresh.exporter.value}
    yield Hypothesis(cause, text, evidence, (change,))


def _named(stretch: Stretch, differences: list[Difference]) -> tuple[str, str]:
    ops = " → ".join(site.op.removeprefix("aten.") for site in stretch.sites[-4:])
    if stretch.divergence.kind is Kind.DROPPED or not stretch.origin.nodes:
        return "dropped-op", f"{ops} is missing from the file."
    kinds = {d.what for d in differences}
    if kinds == {What.MISSING}:
        return "dropped-op", f"{', '.join(dict.fromkeys(d.op for d in differences))} is missing from the file."
    if kinds == {What.EXTRA}:
        return "extra-op", f"{', '.join(dict.fromkeys(d.op for d in differences))} is in the file and not in the model."
    if len(differences) == 1 and (cause := cause_of(differences[0])) is not None:
        return cause, f"{ops} became something else in the file."
    wrong = wrong_parameter(stretch)
    if wrong is not None:
        return "weights", f"{wrong} is not the model's in the file."
    nodes = ", ".join(dict.fromkeys(node.op for node in stretch.nodes))
    return cause_by_site(stretch), f"{ops} became {nodes}, which computes something else."
