"""The places and sizes that faults are sorted by: each has a share of the benchmark of its own."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import TYPE_CHECKING

from benchmarks.faults.forwards import VARIANTS
from benchmarks.faults.one_call import ONE_CALL_KINDS
from benchmarks.faults.registry import KINDS
from benchmarks.faults.small import SMALL_KINDS
from benchmarks.faults.subject import subject
from benchmarks.faults.survey import within
from tests.zoo import MODELS, functions
from tests.zoo.control_flow import CONTROL_FLOW_MODELS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from benchmarks.faults.registry import Plant
    from benchmarks.faults.subject import Subject


class Category(str, Enum):
    SINGLE = "single"
    PAIR = "pair"
    ONE_CALL = "one-call"
    IF_BODY = "if-body"
    LOOP_BODY = "loop-body"
    LOCAL_FUNCTION = "local-function"
    ROOT_FORWARD = "root-forward"
    FIRST_LAYER = "first-layer"
    LAST_LAYER = "last-layer"
    SMALL = "small"

    def __str__(self) -> str:
        return self.value


def models_of(category: Category) -> tuple[str, ...]:
    """The models that a fault of this category can be planted in."""
    if category is Category.IF_BODY:
        return ("switch",)
    if category is Category.LOOP_BODY:
        return ("loop",)
    if category is Category.LOCAL_FUNCTION:
        return tuple(functions.FUNCTION_MODELS)
    return tuple(MODELS)


def kinds_of(category: Category) -> Mapping[str, tuple[Plant, ...]]:
    """The kinds of fault of this category."""
    if category is Category.ONE_CALL:
        return ONE_CALL_KINDS
    if category is Category.SMALL:
        return SMALL_KINDS
    if category is Category.ROOT_FORWARD:  # what is wrong in a forward: an operator, or a parameter of the root's own
        parameters = ("weight-noise", "weight-stale", "weight-rounded")
        return {kind: KINDS[kind] for kind in (*VARIANTS, *parameters)}
    return KINDS


def subjects(category: Category, models: Sequence[str] | None = None) -> list[Subject]:
    """The models of this category, each looked at no further than the category reaches."""
    known = {*MODELS, *CONTROL_FLOW_MODELS}
    names = models_of(category) if models is None else [name for name in models if name in known]
    return [_narrowed(subject(name), category) for name in names]


def _narrowed(target: Subject, category: Category) -> Subject:
    survey = target.survey
    if category is Category.ROOT_FORWARD:
        return dataclasses.replace(target, survey=survey.restricted([""]))
    if category is Category.FIRST_LAYER:
        return dataclasses.replace(target, survey=survey.restricted(survey.leaves()[:1]))
    if category is Category.LAST_LAYER:
        return dataclasses.replace(target, survey=survey.restricted(survey.leaves()[-1:]))
    if category is Category.LOCAL_FUNCTION:
        wrapped = functions.FUNCTION_MODELS[target.name]
        bodies = [path for path in survey.paths() if type(target.sample.model.get_submodule(path)).__name__ in wrapped]
        inside = [path for path in survey.paths() if any(within(body, path) for body in bodies)]
        return dataclasses.replace(target, survey=survey.restricted(inside), export=functions.export)
    return target
