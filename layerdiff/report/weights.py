"""The weights audit in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.unlike import share_of
from layerdiff.weights import Carried, WeightVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.weights import WeightResult

SHOWN = 8
_TOLD = (Carried.FOLDED, Carried.ROUNDED, Carried.QUANTISED, Carried.OMITTED)


def headline(weights: Sequence[WeightResult]) -> str:
    """How many parameters were found, in one line; nothing where there are none."""
    if not weights:
        return ""
    counts = {verdict: sum(1 for w in weights if w.verdict is verdict) for verdict in WeightVerdict}
    agreeing = [w for w in weights if w.verdict is WeightVerdict.AGREES]
    forms = [f"{n} {form}" for form in _TOLD if (n := sum(1 for w in agreeing if w.how is form))]
    text = f"weights: {len(agreeing)} of {len(weights)} parameters found unchanged"
    text += f" ({', '.join(forms)})" if forms else ""
    if counts[WeightVerdict.DIFFERS]:
        text += f", {counts[WeightVerdict.DIFFERS]} {'differs' if counts[WeightVerdict.DIFFERS] == 1 else 'differ'}"
    if counts[WeightVerdict.ABSENT]:
        text += f", {counts[WeightVerdict.ABSENT]} absent"
    return text


def weight_lines(weights: Sequence[WeightResult]) -> list[str]:
    """The headline, and a line for each of the first tensors that do not hold what they should."""
    sentences = wrong_weights(weights)
    lines = [headline(weights)] if weights else []
    lines += [f"  {text}" for text in sentences[:SHOWN]]
    return lines + ([f"  and {len(sentences) - SHOWN} more"] if len(sentences) > SHOWN else [])


def wrong_weights(weights: Sequence[WeightResult]) -> list[str]:
    """A sentence for each tensor that does not hold what it should, with all the parameters in it."""
    groups: dict[tuple[object, ...], list[WeightResult]] = {}
    for weight in weights:
        if weight.verdict is not WeightVerdict.AGREES:
            folded = weight.how is Carried.FOLDED
            key = (weight.initializer, weight.max_abs) if folded else (weight.parameter,)
            groups.setdefault(key, []).append(weight)
    return [_sentence(group) for group in groups.values()]


def _sentence(group: Sequence[WeightResult]) -> str:
    """What became of one parameter, or of several that were folded into one tensor."""
    first, names = (
        group[0],
        " with ".join([group[0].parameter, ", ".join(w.parameter for w in group[1:])][: len(group)]),
    )
    if first.verdict is WeightVerdict.ABSENT:
        return f"{names} is nowhere in the candidate"
    size = (
        ""
        if first.max_abs is None or first.rel_l2 is None
        else f": max-abs {first.max_abs:.2g}, {share_of(first.rel_l2)}"
    )
    few = ", ".join(map(str, first.channels[:SHOWN])) + (" …" if len(first.channels) > SHOWN else "")
    places = f", in channel {few} of {first.shape[0] if first.shape else 1}" if first.channels else ""
    if first.how is Carried.FOLDED:
        return f"{names}, folded, should give other numbers than {first.initializer} holds{size}{places}"
    note = f", {first.note}" if first.note else ""
    return f"{names} is not what {first.initializer} holds{size}{places}{note}"
