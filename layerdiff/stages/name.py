"""Which setting makes a stage differ: found in the stage itself where it shows its settings, else in its values."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError, LayerdiffError, StageError
from layerdiff.pipeline.compare import compare_detections
from layerdiff.preprocessing.compare import compare_inputs
from layerdiff.stages.gap import array, gap
from layerdiff.stages.pipeline import Step
from layerdiff.stages.result import StageMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.report import Report


@dataclass(frozen=True, slots=True)
class Shown:
    """One image at one stage: what the reference's stage was fed, what had been seen, and both values."""

    fed: Any
    before: dict[str, Any]
    expected: Any
    actual: Any
    image: Any


def name_mismatches(  # noqa: PLR0913  one stage of both sides, with all that is known of it
    reference: Step,
    candidate: Step,
    shown: Shown,
    found: Sequence[tuple[Any, Any]],
    raw: Sequence[Any],
    unstable: str,
) -> tuple[StageMismatch, ...]:
    """The settings in which one stage differs, the most certain account first."""
    if unstable:
        detail = f"the {unstable}'s stage gives another result each time: augmentation, or another random draw, is on"
        return (
            StageMismatch("augmentation", unstable != "reference", unstable != "candidate", detail, verified=False),
        )
    named = _by_settings(reference, candidate, shown)
    if named and all(mismatch.verified for mismatch in named):
        return named
    if found:
        return _by_detections(found, raw) or named
    if _model(reference.stage) is not None and _model(candidate.stage) is not None:
        return named  # the trace names the layer
    return _by_inputs(shown) or named


def settings_of(stage: Any) -> dict[str, Any]:
    """What a stage is set to, where it tells: the fields of a dataclass, the keywords of a partial."""
    if isinstance(stage, functools.partial):
        return dict(stage.keywords)
    if is_dataclass(stage) and not isinstance(stage, type):
        return {f.name: getattr(stage, f.name) for f in fields(stage) if f.metadata.get("setting", True)}
    return {}


def differing_settings(reference: Any, candidate: Any) -> dict[str, tuple[Any, Any]]:
    """The settings that both stages have and that differ, in the order of the reference."""
    expected, actual = settings_of(reference), settings_of(candidate)
    return {n: (e, actual[n]) for n, e in expected.items() if n in actual and not _equal(e, actual[n])}


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(np.array_equal(np.asarray(one), np.asarray(other)))
    except (TypeError, ValueError):
        return one is other


def _by_settings(reference: Step, candidate: Step, shown: Shown) -> tuple[StageMismatch, ...]:
    """The fewest settings whose correction makes the candidate's stage agree; all that differ where none does."""
    apart = differing_settings(reference.stage, candidate.stage)
    wanted = {name: pair[0] for name, pair in apart.items()}
    needed = [name for name in apart if _agrees_with(candidate, shown, {name: wanted[name]})][:1]
    if not needed:
        needed = list(apart)
        if not _agrees_with(candidate, shown, wanted):
            return tuple(StageMismatch(n, e, a, "", verified=False) for n, (e, a) in apart.items())
        for name in list(apart):
            rest = {n: wanted[n] for n in needed if n != name}
            if rest and _agrees_with(candidate, shown, rest):
                needed.remove(name)
    return tuple(StageMismatch(n, *apart[n], "", verified=True) for n in needed)


def _agrees_with(candidate: Step, shown: Shown, changes: dict[str, Any]) -> bool:
    """Whether the candidate's stage, with other settings, gives what the reference gives."""
    try:
        value = corrected(candidate, changes).run(copy.deepcopy(shown.fed), dict(shown.before), "candidate")
    except (StageError, TypeError, ValueError):
        return False
    return gap(shown.expected, value).agrees


def corrected(step: Step, changes: Mapping[str, Any]) -> Step:
    """A step whose single stage shows its settings, with some of them changed."""
    stage: Any = step.stage
    if isinstance(stage, functools.partial):
        changed: Any = functools.partial(stage.func, *stage.args, **{**stage.keywords, **changes})
    else:
        changed = replace(stage, **changes)
    return Step(step.name, ((step.name, changed),))


def _by_detections(found: Sequence[tuple[Any, Any]], raw: Sequence[Any]) -> tuple[StageMismatch, ...]:
    """What two sets of detections tell, with the reference's raw head where a stage returns it."""
    expected, actual = [e for e, _ in found], [a for _, a in found]
    head = [one for one in raw if one is not None]
    compared = compare_detections(expected, actual, raw=np.concatenate(head) if len(head) == len(found) else None)
    detail = "" if compared.reconciled else "these settings do not explain all boxes"
    settings = tuple(
        StageMismatch(name, e, a, detail, verified=compared.reconciled) for name, (e, a) in compared.settings.items()
    )
    if settings:
        return settings
    told = "; ".join(compared.notes) or compared.verdict
    return (StageMismatch("detections", None, None, told, verified=False),)


def _by_inputs(shown: Shown) -> tuple[StageMismatch, ...]:
    """What two images or tensors tell; nothing where they are neither."""
    return by_values(shown.expected, shown.actual, shown.image)


def by_values(expected: Any, actual: Any, source: Any) -> tuple[StageMismatch, ...]:
    """How two images or tensors differ, made from one source; nothing where they are neither."""
    expected, actual = array(expected), array(actual)
    if not (_is_picture(expected) and _is_picture(actual)):
        return ()
    if not np.ptp(expected):  # one colour tells nothing of what was done to it
        return ()
    image = source if isinstance(source, (str, Path)) or _is_picture(array(source)) else None
    try:
        compared = compare_inputs(expected, actual, image=image)
    except InputError:
        return ()
    return tuple(
        StageMismatch(
            str(mismatch.kind),
            mismatch.parameters.get("expected"),
            mismatch.parameters.get("actual"),
            mismatch.summary,
            mismatch.verified,
        )
        for mismatch in compared.mismatches
    )


def _is_picture(value: Any) -> bool:
    """Whether a value has the shape of an image or a batch of them; a head (1, boxes, numbers) has not."""
    if not isinstance(value, np.ndarray) or value.ndim not in (2, 3, 4):
        return False
    if value.ndim == 2:
        return bool(value.dtype == np.uint8)
    channels = {value.shape[-1], value.shape[-3]}
    return bool(channels & {3, 4}) or (value.dtype == np.uint8 and 1 in channels)


def traced(reference: Step, candidate: Step, shown: Shown) -> Report | None:
    """The trace of two models on what the reference's was fed; None where a stage holds no model."""
    models = [_model(step.stage) for step in (reference, candidate)]
    if models[0] is None or models[1] is None:
        return None
    import torch

    from layerdiff.tracing import trace

    try:
        return trace(models[0], models[1], torch.as_tensor(array(shown.fed)), progress=False)
    except LayerdiffError:
        return None


def _model(stage: Any) -> Any:
    """The module or the ONNX file that a stage runs."""
    from torch import nn

    held = stage if isinstance(stage, nn.Module) else getattr(stage, "model", None)
    return held if isinstance(held, (nn.Module, str, Path)) or hasattr(held, "graph") else None
