"""The report in words."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from layerdiff.keys import ROOT
from layerdiff.model import Kind, Status
from layerdiff.report.samples import lead, sample_lines, which
from layerdiff.report.weights import weight_lines

if TYPE_CHECKING:
    from layerdiff.model import Diagnosis, Diffuse, Divergence, Healed, LayerResult, Metrics
    from layerdiff.report.record import Report

MARKS = {
    Status.AGREES: "green",
    Status.FOLDED: "dim",
    Status.UNMATCHED: "dim",
    Status.CONFINED: "magenta",
    Status.DRIFTS: "yellow",
    Status.PROPAGATES: "yellow",
    Status.DIVERGES: "bold red",
}

_KINDS = {"reference": "PyTorch", "candidate": "ONNX"}
_STANDS_OUT = 5.0  # times what the next layer rounds by
_HEADINGS = ("layer", "status", "introduced", "accumulated", "noise", "ONNX tensor")


def layer_name(layer: str) -> str:
    """A layer as it is shown: the root module has no path of its own."""
    return layer or ROOT


def verdict(report: Report) -> str:
    """What happened, in sentences a person can paste in a chat: first of what both sides are fed, if that was given."""
    if report.inputs is None:
        return _network(report)
    alone = replace(report, inputs=None, diagnoses=tuple(d for d in report.diagnoses if d.cause != "preprocessing"))
    if report.inputs.agrees:
        return f"{report.inputs.verdict} {_network(alone)}"
    fed = report.inputs.verdict.replace("The inputs differ: ", "", 1)
    if report.network_agrees:
        return f"The network agrees on the same input; what is fed differs: {fed} {_network(alone)}"
    return f"What is fed differs: {fed} So does the network, on the same input: {_network(alone)}"


def input_lines(report: Report) -> list[str]:
    """The code that corrects the candidate's input, and what else is to be known of it."""
    if report.inputs is None:
        return []
    code = report.inputs.code.strip().split("\n") if report.inputs.code else []
    return [f"note: {note}" for note in report.inputs.notes] + [f"  {line}".rstrip() for line in code]


def _network(report: Report) -> str:
    """What happened to the network, run with the same input on both sides."""
    where = which(report)
    if report.agrees:
        sentence = f"{both_sides(report)} agree{where}: {_worst_output(report)}; {_coverage(report)}."
        # As the reference is set, it may not give what it was judged by: that is no fault of the file.
        narrowed = [d.summary for d in report.diagnoses if d.cause == "precision" and d.verified]
        return " ".join([sentence, *_confined(report), *narrowed])
    opening = lead(report.samples)
    first = report.first_divergence
    if first is None:
        return " ".join([*opening, *_without_origin(report, where), *_cause(report, opening), *_remedy(report)])
    named = bool(report.diagnoses) and (
        report.diagnoses[0].cause != "unknown" or report.diagnoses[0].summary == first.summary
    )
    summary_of_first = "" if named else f": {first.summary}"
    sentences = [*opening, f"{_accusation(first)}{summary_of_first}{where}.", *_also_possible(first)]
    sentences += _cause(report, opening)
    proofs = [d.healed for d in report.divergences if d.healed is not None]
    if proofs:
        sentences.append(_proof(report, proofs))
    others = report.divergences[1:]
    if others:
        places = list(dict.fromkeys(layer_name(d.layer) for d in others if d.layer != first.layer))
        names = ", ".join(places[:5]) + (f" and {len(places) - 5} more" if len(places) > 5 else "")
        again = sum(1 for d in others if d.layer == first.layer)
        parts = ([names] if places else []) + ([f"{again} more in the same layer"] if again else [])
        sentences.append(f"Further origins: {'; '.join(parts)}.")
    sentences += _confined(report)
    if report.diffuse is not None:
        formats = " and ".join(report.diffuse.formats)
        sentences.append(f"Besides, {len(report.diffuse.layers)} layers only round to {formats}.")
    sentences.append(f"{_consequences(report)}.")
    return " ".join([*sentences, *_remedy(report)])


def repair_lines(report: Report) -> list[str]:
    """What was corrected in the file that the report is about, what was not, and on what that was checked."""
    done = report.repaired
    if done is None:
        return []
    corrected = ", ".join(f"{layer_name(d.layer)} ({d.cause})" for d in done.corrected)
    lines = [f"repaired: {corrected}; checked with {', '.join(done.checked)}"]
    lines += [f"left as it was: {layer_name(u.layer)}: {u.reason}. Instead: {u.remedy}" for u in done.left]
    return lines + [f"note: {note}" for note in done.notes]


def _without_origin(report: Report, where: str) -> list[str]:
    """What is known of a difference that has no origin; of a sample that was refused, the runtime's own words."""
    if all(output.agrees or output.actual_shape is None for output in report.outputs):
        return list(dict.fromkeys(f"{sample.refused}." for sample in report.samples if sample.refused))
    return [_diffuse(report.diffuse, report, where) if report.diffuse else _unlocated(report, where)]


def _cause(report: Report, told: tuple[str, ...]) -> list[str]:
    """The most certain cause, and how certain it is; behind it the pass of a simplifier that did it."""
    found = []
    for cause in report.diagnoses[:1]:
        place = f"The runtime gave up in {cause.layer}." if cause.layer and not report.divergences else ""
        summary = cause.summary
        for sentence in told:
            summary = summary.removeprefix(sentence).strip()
        found += [text for text in (summary, place, how_certain(cause)) if text]
    return found + [d.summary for d in report.diagnoses[1:] if d.cause == "simplifier"]


def _remedy(report: Report) -> list[str]:
    """What to change: a pass of a simplifier that was found guilty first of all."""
    blamed = [d for d in report.diagnoses if d.cause == "simplifier" and d.verified]
    return [f"Remedy: {_closed(d.remedy)}" for d in [*blamed, *report.diagnoses][:1] if d.remedy]


def how_certain(cause: Diagnosis) -> str:
    """What a run has shown about a cause, in a sentence; nothing where there is none."""
    if cause.cause == "unknown":
        return ""
    after = cause.evidence.get("error_after")
    if "cured_by" in cause.evidence and isinstance(after, float):
        return f"Computed as the model does, the layer is right to {after:.2g}; that this is the cause is only likely."
    if not cause.verified:
        return "This is the likeliest cause; no corrected graph has proven it."
    whole = cause.evidence.keys() & {"error_before"}  # the proof is about the outputs, and told there
    return "" if whole or not isinstance(after, float) else f"With that corrected, the layer is right to {after:.2g}."


def _closed(text: str) -> str:
    """A sentence with its stop; code has none."""
    return text if text.endswith((".", ")")) or "#" in text else f"{text}."


def _confined(report: Report) -> list[str]:
    """What differs without any consequence for what counts."""
    outside = [o.everywhere for o in report.outputs if o.everywhere is not None and not o.everywhere.agrees]
    if not outside and not report.confined:
        return []
    first = report.confined[0] if report.confined else None
    name = None if first is None else _name(first)
    if outside and report.agrees:
        error = max(outside, key=lambda metrics: (metrics.nonfinite_mismatches, metrics.max_abs))
        place = "" if first is None or name is None else f", first at {name}: {first.summary}"
        return [f"They differ only at positions that `valid` excludes ({_size(error)}){place}."]
    if first is None or name is None:
        return []
    more = len(report.confined) - 1
    others = f" ({more} more {'place' if more == 1 else 'places'} like that)" if more else ""
    return [f"{name} differs, but no output that counts shows it{others}: {first.summary}."]


def _size(metrics: Metrics) -> str:
    """The largest error, or how many elements are not finite on one side only."""
    count = metrics.nonfinite_mismatches
    if count:
        return f"NaN or infinity on one side at {count} element{'' if count == 1 else 's'}"
    return f"max-abs {metrics.max_abs:.3g}"


def _accusation(first: Divergence) -> str:
    error = ""
    if first.metrics is not None:
        times = first.metrics.times_limit
        scaled = f", {times:,.0f} × what rounding explains" if times < 1e12 else ""
        error = f" ({_size(first.metrics)}{scaled})"
    verb = {
        Kind.COMPUTED: "is the first layer that diverges",
        Kind.DROPPED: "is the first layer that diverges",
        Kind.EXCHANGED: "is the first layer that diverges",
        Kind.REWIRED: "is the first layer that diverges",
        Kind.DIED: "is where the runtime died",
        Kind.INSERTED: "is the layer behind which the graph first diverges",
    }[first.kind]
    return f"{_name(first)} {verb}{error}"


def _also_possible(first: Divergence) -> list[str]:
    """The layers that could be meant as well; told so that nobody searches one layer in vain."""
    names = [layer_name(name) for name in first.also_possible]
    if not names:
        return []
    listed = " or ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    return [f"It may as well be {listed}: nothing in the file tells {'them' if len(names) > 1 else 'the two'} apart."]


def _name(first: Divergence) -> str:
    call = f" (call {first.call})" if first.call else ""
    operator = f", operator {first.op}" if first.op else ""
    return f"{layer_name(first.layer)}{call} [{first.type}{operator}]"


def both_sides(report: Report) -> str:
    """What is compared, by what sets the two apart: their kinds, or their parts in the comparison."""
    kinds = [report.environment.get(f"{side}_kind", kind) for side, kind in _KINDS.items()]
    return " and ".join(kinds if len(set(kinds)) == 2 else _KINDS)


def _proof(report: Report, proofs: list[Healed]) -> str:
    """What putting the expected values in has shown; never more than that."""
    before, after = proofs[0].before, proofs[-1].after
    change = f"max-abs {before:.3g} → {after:.2g}"
    origins = len(report.divergences)
    if report.divergences[0].kind is Kind.EXCHANGED:
        return f"Proven: with them exchanged the final outputs agree ({change})."
    there = "there" if origins == 1 else f"at the {origins} origins"
    first = both_sides(report).partition(" ")[0]
    whose = f"{first}'s" if first in _KINDS.values() else "the reference's"
    if report.diffuse is not None and not proofs[-1].agrees and not proofs[-1].after < before / 2:
        return f"With {whose} value put in {there} the outputs still differ ({change}): so much is rounding."
    if proofs[-1].agrees:
        return f"Proven: with {whose} value put in {there} the final outputs agree ({change})."
    if after < before / 2:
        return f"With {whose} value put in {there} the final error shrinks but stays ({change})."
    return f"Not proven: with {whose} value put in {there} the final outputs still differ ({change})."


def _consequences(report: Report) -> str:
    counts = {status: sum(1 for r in report.layers if r.status is status) for status in Status}
    parts = []
    if counts[Status.PROPAGATES]:
        one = counts[Status.PROPAGATES] == 1
        parts.append("1 later layer only passes" if one else f"{counts[Status.PROPAGATES]} later layers only pass")
        parts[-1] += " the error on"
    parts.append("1 layer agrees" if counts[Status.AGREES] == 1 else f"{counts[Status.AGREES]} layers agree")
    if counts[Status.FOLDED]:
        parts.append(f"{counts[Status.FOLDED]} {'is' if counts[Status.FOLDED] == 1 else 'are'} folded into others")
    return ", ".join(parts)


def _diffuse(diffuse: Diffuse, report: Report, where: str) -> str:
    """Rounding everywhere: who introduces most, and whose healing helps most."""
    leading = ", ".join(f"{layer_name(r.layer)} ({r.rel_l2:.1e} of its size)" for r in diffuse.layers[:3])
    formats = " and ".join(diffuse.formats)
    sentences = [
        f"The outputs differ{where} ({_worst_output(report)}), and no single layer is to blame.",
        f"{len(diffuse.layers)} layers compute in {formats}, each within what that format explains.",
        f"Most is introduced by {leading}.",
    ]
    first, *rest = [r.rel_l2 for r in diffuse.layers]
    if rest and first > _STANDS_OUT * rest[0] > 0:
        name = layer_name(diffuse.layers[0].layer)
        sentences.append(f"{name} introduces {first / rest[0]:.0f} × as much as the next: it is worth a look.")
    tried = [r for r in diffuse.layers if r.healed is not None]
    best = min(tried, key=lambda r: r.healed.after if r.healed else 0.0, default=None)
    if best is not None and best.healed is not None and best.healed.after < best.healed.before:
        change = f"{best.healed.before:.3g} → {best.healed.after:.3g}"
        sentences.append(f"Keeping {layer_name(best.layer)} exact would help the outputs most (max-abs {change}).")
    return " ".join(sentences)


def _unlocated(report: Report, where: str) -> str:
    worst = _worst_output(report)
    if all(o.tapped is not None and o.tapped.agrees for o in report.outputs):
        return (
            f"The outputs differ as the model ships{where} ({worst}), but agree when the runtime's graph "
            "optimisations are off: the graph is right and an optimisation of the runtime is not."
        )
    return f"The outputs differ{where} ({worst}), but no layer could be accused."


def _worst_output(report: Report) -> str:
    measured = [o for o in report.outputs if o.shipped is not None]
    if not measured:
        shapes = ", ".join(f"{o.name}: {o.expected_shape} vs {o.actual_shape}" for o in report.outputs)
        return f"shapes {shapes}"
    worst = max(measured, key=lambda o: o.shipped.times_limit if o.shipped else 0.0)
    assert worst.shipped is not None
    return f"output {worst.name} within max-abs {worst.shipped.max_abs:.2g}"


def _coverage(report: Report) -> str:
    covered = report.coverage
    left = f", {len(covered.unmatched)} not compared" if covered.unmatched else ""
    return f"{covered.compared} module calls compared, {covered.folded} folded{left}"


def summary(report: Report) -> str:
    """The verdict, the warnings and a table of the layers that matter, as plain text."""
    out = StringIO()
    print_report(report, Console(file=out, width=120, no_color=True, highlight=False, force_jupyter=False))
    return out.getvalue()


def print_report(report: Report, console: Console, rows: int = 12) -> None:
    """Print the verdict and the table around the first divergence."""
    console.print(
        verdict(report), style="bold green" if report.agrees else "bold", markup=False, emoji=False, soft_wrap=True
    )
    for line in input_lines(report):
        console.print(line, markup=False, emoji=False, soft_wrap=True, highlight=False)
    for line in sample_lines(report.samples):
        console.print(line, markup=False, emoji=False, soft_wrap=True)
    for line in weight_lines(report.weights):
        console.print(line, markup=False, emoji=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, emoji=False, soft_wrap=True)
    for line in repair_lines(report):
        console.print(line, markup=False, emoji=False, soft_wrap=True)
    shown = _window(report, rows)
    if not shown:
        return
    rows_of_cells = [_cells(result) for result in shown]
    table = Table(box=None, pad_edge=False, header_style="dim")
    widths = [max(len(row[i]) for row in (_HEADINGS, *rows_of_cells)) for i in range(len(_HEADINGS) - 1)]
    for heading, width in zip(_HEADINGS, widths, strict=False):
        left = heading in ("layer", "status")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True, min_width=width)
    room = console.width - sum(widths) - len(widths) - 1
    table.add_column(_HEADINGS[-1], no_wrap=True, overflow="ellipsis", max_width=max(8, room))
    for result, cells in zip(shown, rows_of_cells, strict=True):
        table.add_row(*map(Text, cells), style=MARKS[result.status])
    console.print(table)


def _window(report: Report, rows: int) -> list[LayerResult]:
    """The layers around the first divergence; nothing when all agree."""
    at = next((i for i, r in enumerate(report.layers) if r.status is Status.DIVERGES), None)
    if at is None:
        at = next((i for i, r in enumerate(report.layers) if r.status is Status.CONFINED), None)
    if at is None and report.diffuse is not None:
        return sorted(
            (r for r in report.layers if r.introduced), key=lambda r: -r.introduced.rel_l2 if r.introduced else 0.0
        )[:rows]
    if at is None:
        return [] if report.network_agrees else list(report.layers[-rows:])
    start = max(0, at - rows // 2)
    return list(report.layers[start : start + rows])


def _cells(result: LayerResult) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1e}"

    return (
        layer_name(result.layer) + (f" #{result.call}" if result.call else "") + (f" {result.op}" if result.op else ""),
        str(result.status),
        number(result.introduced.max_abs if result.introduced else None),
        number(result.accumulated.max_abs if result.accumulated else None),
        ("≲" if result.noise and result.noise.assumed else "") + number(result.noise.max_abs if result.noise else None),
        result.onnx_tensor or result.reason,
    )
