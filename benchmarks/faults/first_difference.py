"""Where a broken copy first computes something else than its original, both in torch: the truth, measured."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.faults.survey import reached, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

VISIBLE = 1e-5
"""Difference of a layer's output, relative to its largest value, below which the layer is taken to agree."""


class Passage(NamedTuple):
    """What went into one call of a module and what came out."""

    path: str
    inputs: list[Tensor]
    outputs: list[Tensor]


def first_difference(healthy: nn.Module, broken: nn.Module, inputs: tuple[Tensor, ...]) -> str | None:
    """The path of the first call to finish that gives something else though its inputs are the same, or None."""
    expected = dict(_passages(healthy, inputs))
    for key, actual in _passages(broken, inputs):
        reference = expected.get(key)
        if reference is None:
            continue
        if _same(reference.inputs, actual.inputs, 0.0) and not _same(reference.outputs, actual.outputs, VISIBLE):
            return actual.path
    return None


def _same(expected: list[Tensor], actual: list[Tensor], limit: float) -> bool:
    return len(expected) == len(actual) and all(
        x.shape == y.shape and bool((x.double() - y.double()).abs().max() <= limit * x.double().abs().max())
        for x, y in zip(expected, actual, strict=True)
    )


def _passages(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[tuple[str, int], Passage]]:
    """The calls in the order in which they finished, each with its path and how often the path was called before."""
    found: list[tuple[tuple[str, int], Passage]] = []
    stack: list[tuple[nn.Module, str, list[Tensor]]] = []
    counts: dict[str, int] = {}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = reached(stack[-1][0], stack[-1][1], module) if stack else ""
        stack.append((module, path, [x.clone() for x in tensors((args, kwargs))]))

    def leave(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        _, path, arguments = stack.pop()
        number = counts.get(path, 0)
        counts[path] = number + 1
        found.append(((path, number), Passage(path, arguments, [x.clone() for x in tensors(output)])))

    with _hooked(model, enter, leave), torch.no_grad():
        model(*(x.clone() for x in inputs))
    return found


@contextlib.contextmanager
def _hooked(model: nn.Module, enter: Any, leave: Any) -> Iterator[None]:
    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
