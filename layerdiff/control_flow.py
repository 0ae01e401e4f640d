"""Torch's control flow operators, run in Python step by step, so that what happens inside is seen.

Torch runs them with all modes off. The functions here take what those operators take (torch._higher_order_ops) and give
what they give.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def _cond(condition: Any, if_true: Any, if_false: Any, operands: Sequence[Any] = ()) -> Any:
    taken = if_true if bool(condition) else if_false
    return taken(*operands)


def _while_loop(going: Any, body: Any, carried: Sequence[Any], more: Sequence[Any] = ()) -> tuple[Any, ...]:
    carried = tuple(carried)
    started = False
    while bool(going(*carried, *more)):
        carried, started = tuple(body(*carried, *more)), True
    if started:
        return carried
    return tuple(value.clone() if isinstance(value, torch.Tensor) else value for value in carried)


def _scan(combine: Any, init: Sequence[Any], swept: Sequence[Any], more: Sequence[Any] = ()) -> tuple[Any, ...]:
    """The last states, then what every step gave, along a new first axis."""
    carried, rows = list(init), []
    for place in range(swept[0].shape[0]):
        given = list(combine(*carried, *(tensor.select(0, place) for tensor in swept), *more))
        carried = given[: len(init)]
        rows.append(given[len(init) :])
    return (*carried, *(torch.stack(column) for column in zip(*rows, strict=True)))


STEP_BY_STEP: dict[str, Callable[..., Any]] = {"cond": _cond, "while_loop": _while_loop, "scan": _scan}
"""By the operator's name."""
