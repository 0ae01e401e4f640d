"""What was done to rows of tokens without their padding: special tokens, truncation, another vocabulary."""

from __future__ import annotations

from collections import Counter
from itertools import product
from typing import Any

import numpy as np

from layerdiff.preprocessing.comparison import InputMismatch

Array = np.ndarray[Any, Any]

_MOST_SPECIAL = 4  # special tokens that a template puts at one end


def row_changes(pairs: list[tuple[Array, Array]], name: str) -> list[InputMismatch]:
    """What sets the rows of both sides apart; nothing where they are equal."""
    if all(np.array_equal(e, a) for e, a in pairs):
        return []
    for looked_for in (_special, _replaced, _shorter, _shifted):
        found = looked_for(pairs, name)
        if found is not None:
            return [found]
    same = np.mean([_alike(e, a) for e, a in pairs])
    if same < 0.2:
        text = "the tokens are unrelated: another text, or another vocabulary"
        return [InputMismatch("unrelated", {"alike": round(float(same), 3)}, "", text, verified=False, name=name)]
    text = f"{same:.0%} of the tokens are the same: another tokeniser, normalisation or text"
    parameters = {"how": "tokeniser", "alike": round(float(same), 3)}
    return [InputMismatch("tokens", parameters, "", text, verified=False, name=name)]


def _alike(expected: Array, actual: Array) -> float:
    common = sum((Counter(expected.tolist()) & Counter(actual.tolist())).values())
    return common / max(len(expected), len(actual), 1)


def _special(pairs: list[tuple[Array, Array]], name: str) -> InputMismatch | None:
    """Tokens that every row has at its ends on one side only: those of a template such as [CLS] … [SEP]."""
    for missing in (True, False):
        first = pairs[0] if missing else pairs[0][::-1]
        for before in range(_MOST_SPECIAL + 1):
            after = len(first[0]) - len(first[1]) - before
            if not 0 <= after <= _MOST_SPECIAL or before + after == 0:
                continue
            start, end = first[0][:before], first[0][len(first[0]) - after :]
            sides = [(long, short) if missing else (short, long) for long, short in pairs]
            if all(np.array_equal(long, np.r_[start, short, end]) for long, short in sides):
                return _special_told(start.tolist(), end.tolist(), name, missing=missing)
    return None


def _special_told(start: list[int], end: list[int], name: str, *, missing: bool) -> InputMismatch:
    text = f"special tokens are {'missing' if missing else 'added'}: {start} before and {end} behind every text"
    if missing:
        code = f"rows = [np.r_[{start}, row, {end}] for row in rows]"
    else:
        code = f"rows = [row[{len(start)} : len(row) - {len(end)}] for row in rows]"
    parameters = {"how": "special-tokens", "before": start, "behind": end, "missing": missing}
    return InputMismatch("tokens", parameters, code, text, verified=True, name=name)


def _replaced(pairs: list[tuple[Array, Array]], name: str) -> InputMismatch | None:
    """Other special tokens at the ends of every row, around the same text: the template of another model."""
    if any(len(e) != len(a) for e, a in pairs):
        return None
    shortest = min(len(e) for e, _ in pairs)
    for before, after in sorted(product(range(3), repeat=2), key=sum):
        if before + after == 0 or before + after >= shortest:
            continue
        ends = [
            (e[:before].tolist(), e[len(e) - after :].tolist(), a[:before].tolist(), a[len(a) - after :].tolist())
            for e, a in pairs
        ]
        same = all(np.array_equal(e[before : len(e) - after], a[before : len(a) - after]) for e, a in pairs)
        if same and all(end == ends[0] for end in ends):
            start, end, start_there, end_there = ends[0]
            text = f"other special tokens: {start_there} before, {end_there} behind every text; wanted {start}, {end}"
            code = f"rows = [np.r_[{start}, row[{before} : len(row) - {after}], {end}].astype(int) for row in rows]"
            parameters = {"how": "special-tokens", "before": start, "behind": end, "before_there": start_there}
            parameters |= {"behind_there": end_there, "missing": False}
            return InputMismatch("tokens", parameters, code, text, verified=True, name=name)
    return None


def _cut_in_front(pairs: list[tuple[Array, Array]], name: str) -> InputMismatch | None:
    """Rows of which the candidate, or the expected side, keeps only the end."""
    for cut in (True, False):
        sides = [(e, a) if cut else (a, e) for e, a in pairs]
        longest = max(len(short) for _, short in sides)
        kept = [(long[len(long) - longest :] if len(long) > longest else long, short) for long, short in sides]
        if all(np.array_equal(long, short) for long, short in kept):
            parameters = {"how": "truncation", "length": longest, "truncated": "actual" if cut else "expected"}
            parameters["kept"] = "end"
            code = "" if cut else f"rows = [row[-{longest} :] for row in rows]"
            text = f"{'the text' if cut else 'the expected text'} is cut off in front, to its last {longest} tokens"
            return InputMismatch("tokens", parameters, code, text, verified=True, name=name)
    return None


def _shorter(pairs: list[tuple[Array, Array]], name: str) -> InputMismatch | None:
    """Rows that were cut off at a length on the candidate's side, or on the expected one."""
    for cut in (True, False):
        sides = [(e, a) if cut else (a, e) for e, a in pairs]
        longest = max(len(short) for _, short in sides)
        for kept in (0, 1):  # the last special token may be kept
            fits = all(
                np.array_equal(long, short)
                or (
                    len(short) == longest < len(long)
                    and np.array_equal(short, np.r_[long[: longest - kept], long[len(long) - kept :]])
                )
                for long, short in sides
            )
            if fits:
                whose = "the text" if cut else "the expected text"
                parameters = {"how": "truncation", "length": longest, "truncated": "actual" if cut else "expected"}
                end = f"row[len(row) - {kept} :]"
                short = f"np.r_[row[: {longest - kept}], {end}] if len(row) > {longest} else row"
                code = "" if cut else f"rows = [{short} for row in rows]"
                text = f"{whose} is cut off at {longest} tokens"
                return InputMismatch("tokens", parameters, code, text, verified=True, name=name)
    return _cut_in_front(pairs, name)


def _shifted(pairs: list[tuple[Array, Array]], name: str) -> InputMismatch | None:
    """Every number off by the same: a vocabulary that begins elsewhere."""
    if any(len(e) != len(a) for e, a in pairs) or not sum(len(e) for e, _ in pairs):
        return None
    gaps = np.unique(np.concatenate([e.astype(np.int64) - a for e, a in pairs]))
    if gaps.size != 1:
        return None
    by = int(gaps[0])
    parameters = {"how": "offset", "offset": by}
    text = f"every token number is off by {-by}"
    return InputMismatch("tokens", parameters, f"rows = [row + {by} for row in rows]", text, verified=True, name=name)
