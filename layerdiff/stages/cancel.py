"""Differences of two stages that cancel each other beside a real fault: BGR when read, swapped when normalised."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from layerdiff.stages.name import by_values, corrected, settings_of
from layerdiff.stages.result import StageStatus

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerdiff.stages.result import StageMismatch, StageResult
    from layerdiff.stages.runs import Runs

    Named = tuple[int, StageMismatch]

REASON = "another convention: another stage of the candidate undoes it"


def without_conventions(runs: Runs, results: Sequence[StageResult]) -> tuple[StageResult, ...]:
    """The results without pairs of mismatches in two stages that are right together.

    Where stages show their settings the candidate is run with all of them corrected but the pair. Where they do not,
    the values tell: a kind of mismatch that two stages introduce and the whole candidate does not show is undone.
    """
    dropped = [*_by_runs(runs, results), *_by_kinds(runs, results)]
    told = []
    for at, result in enumerate(results):
        left = tuple(m for m in result.mismatches if not any(at == where and m is other for where, other in dropped))
        if len(left) == len(result.mismatches):
            told.append(result)
        elif left:
            told.append(replace(result, mismatches=left))
        else:
            told.append(replace(result, mismatches=(), status=StageStatus.CONVENTION, reason=REASON))
    return tuple(told)


def _named(results: Sequence[StageResult]) -> list[Named]:
    return [(at, m) for at, r in enumerate(results) if r.status is StageStatus.DIVERGES for m in r.mismatches]


def _by_runs(runs: Runs, results: Sequence[StageResult]) -> list[Named]:
    """Pairs of settings without whose correction the candidate is as right as with it."""
    known = [(at, m) for at, m in _named(results) if m.setting in settings_of(runs.steps[at][1].stage)]
    if len({at for at, _ in known}) < 2 or not _right_with(runs, known):
        return []
    dropped: list[Named] = []
    for pair in combinations(known, 2):
        left = [one for one in known if one not in (*pair, *dropped)]
        apart = pair[0][0] != pair[1][0] and not any(one in dropped for one in pair)
        if apart and _right_with(runs, left):
            dropped += pair
    return dropped


def _right_with(runs: Runs, corrections: Iterable[Named]) -> bool:
    """Whether the candidate with some settings corrected gives the reference's results."""
    changes: dict[int, dict[str, object]] = {}
    for at, mismatch in corrections:
        changes.setdefault(at, {})[mismatch.setting] = mismatch.expected
    steps = [corrected(step, changes[at]) if at in changes else step for at, (_, step) in enumerate(runs.steps)]
    return runs.finals_agree(steps) is True


def _by_kinds(runs: Runs, results: Sequence[StageResult]) -> list[Named]:
    """Mismatches of one kind in two stages, of which the candidate's own value after the second shows none."""
    known = [(at, m) for at, m in _named(results) if m.setting not in settings_of(runs.steps[at][1].stage)]
    dropped: list[Named] = []
    for first, second in combinations(known, 2):
        whole = runs.seen[second[0]].whole
        if first[0] == second[0] or first[1].setting != second[1].setting or whole is None:
            continue
        if first in dropped or second in dropped:
            continue
        kinds = {m.setting for m in by_values(*whole, runs.kept[0][0])}
        if kinds and first[1].setting not in kinds:
            dropped += [first, second]
    return dropped
