"""A pipeline: named stages in order, and what runs through them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerdiff.errors import InputError, StageError

if TYPE_CHECKING:
    from collections.abc import Callable

    Stage = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Step:
    """What one side does up to a stage that both have: one or several of its own stages, the last one named alike."""

    name: str
    stages: tuple[tuple[str, Stage], ...]

    @property
    def stage(self) -> Stage | None:
        """The stage itself, where it is a single one."""
        return self.stages[0][1] if len(self.stages) == 1 else None

    def run(self, value: Any, seen: dict[str, Any], side: str) -> Any:
        """The value after this step; every stage's own result is kept in `seen`.

        Raises
        ------
        StageError
            A stage raised.

        """
        for name, stage in self.stages:
            try:
                value = stage(value, seen) if _wants_seen(stage) else stage(value)
            except Exception as error:
                raise StageError(
                    f"{side}, stage {name!r}: {type(error).__name__}: {error}; it was fed {described(value)}"
                ) from error
            seen[name] = value
        return value


def read_stages(source: Any, side: str) -> dict[str, Stage]:
    """Named stages in order, from a mapping, a list of pairs, or an object with `stages`.

    Raises
    ------
    InputError
        No stages, or something that cannot be called.

    """
    listed = getattr(source, "stages", source)
    listed = listed() if callable(listed) and not isinstance(listed, Mapping) else listed
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        if all(isinstance(name, str) for name in listed):  # names of methods
            listed = {name: getattr(source, name, None) for name in listed}
        elif all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in listed):
            listed = dict(listed)
    if not isinstance(listed, Mapping) or not listed:
        raise InputError(
            f"{side}: wanted named stages: a dict of callables, a list of (name, callable), or an object whose "
            f"`stages` is one of these or lists its methods; got {type(source).__name__}"
        )
    wrong = [name for name, stage in listed.items() if not callable(stage)]
    if wrong:
        raise InputError(f"{side}: stage {wrong[0]!r} cannot be called: it is a {type(listed[wrong[0]]).__name__}")
    return {str(name): stage for name, stage in listed.items()}


def aligned(reference: Mapping[str, Stage], candidate: Mapping[str, Stage]) -> list[tuple[Step, Step]]:
    """Steps of both sides that end at the same stage; what only one side has is part of the step that follows.

    Raises
    ------
    InputError
        The sides share no stage, or have them in another order, or end with different ones.

    """
    shared = [name for name in reference if name in candidate]
    if shared != [name for name in candidate if name in reference]:
        raise InputError(f"the stages are in another order: {list(reference)} and {list(candidate)}")
    if not shared or list(reference)[-1] != shared[-1] or list(candidate)[-1] != shared[-1]:
        raise InputError(
            f"both sides must end with the same stage: the reference has {list(reference)}, the candidate "
            f"{list(candidate)}; give stages of one purpose the same name"
        )
    pairs = [_steps(side, shared) for side in (reference, candidate)]
    return list(zip(*pairs, strict=True))


def _steps(stages: Mapping[str, Stage], shared: Sequence[str]) -> list[Step]:
    steps: list[Step] = []
    waiting: list[tuple[str, Stage]] = []
    for name, stage in stages.items():
        waiting.append((name, stage))
        if name in shared:
            steps.append(Step(name, tuple(waiting)))
            waiting = []
    return steps


def _wants_seen(stage: Stage) -> bool:
    """Whether a stage takes what came before as a second argument."""
    try:
        parameters = inspect.signature(stage).parameters.values()
    except (TypeError, ValueError):
        return False
    required = [
        p for p in parameters if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(required) >= 2


def described(value: Any) -> str:
    """A value's type and size, for an error text."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None:
        return f"{type(value).__name__} {tuple(shape)} of {dtype}"
    if isinstance(value, Mapping):
        return f"a dict of {', '.join(map(str, value))}"
    return f"a {type(value).__name__}"
