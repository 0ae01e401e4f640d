"""Where a broken copy first computes something else than its original, both in torch: the truth, measured."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.faults.survey import reached, tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

VISIBLE = 1e-5
"""Difference of a layer's output, relative to its largest value, below which the layer is taken to agree."""

ONE_CALL = "one_call"
"""The name under which a module holds the copy that runs instead of it in one of its calls."""


class Place(NamedTuple):
    """One call of a module, counted from 0 for this path."""

    path: str
    call: int


class Passage(NamedTuple):
    """What went into one call of a module and what came out."""

    place: Place
    inputs: list[Tensor]
    output: Any


def first_difference(healthy: nn.Module, broken: nn.Module, inputs: tuple[Tensor, ...]) -> Place | None:
    """The first call to finish that gives something else though its inputs are the same, or None."""
    expected = {passage.place: passage for passage in _Run(healthy, inputs).passages}
    for actual in _Run(broken, inputs).passages:
        reference = expected.get(actual.place)
        if reference is None:
            continue
        outputs = list(tensors(reference.output)), list(tensors(actual.output))
        if _same(reference.inputs, actual.inputs, 0.0) and not _same(*outputs, VISIBLE):
            return actual.place
    return None


def healed(healthy: nn.Module, broken: nn.Module, inputs: tuple[Tensor, ...], place: Place) -> Tensor:
    """What the broken copy gives when in this one call it is handed what the healthy model gives there."""
    outputs = {passage.place: passage.output for passage in _Run(healthy, inputs).passages}
    return _Run(broken, inputs, {place: outputs[place]}).result


def _same(expected: list[Tensor], actual: list[Tensor], limit: float) -> bool:
    return len(expected) == len(actual) and all(
        x.shape == y.shape and bool((x.double() - y.double()).abs().max() <= limit * x.double().abs().max())
        for x, y in zip(expected, actual, strict=True)
    )


class _Run:
    """The calls in the order in which they finished, and what came out at the end."""

    def __init__(self, model: nn.Module, inputs: tuple[Tensor, ...], given: dict[Place, Any] | None = None) -> None:
        self.passages: list[Passage] = []
        self._given = given or {}
        self._stack: list[tuple[nn.Module, str, list[Tensor]]] = []
        self._counts: dict[str, int] = {}
        with self._hooked(model), torch.no_grad():
            self.result: Tensor = model(*(x.clone() for x in inputs))

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        path = reached(*self._stack[-1][:2], module).replace(f".{ONE_CALL}.", ".") if self._stack else ""
        self._stack.append((module, path, [x.clone() for x in tensors((args, kwargs))]))

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        _, path, arguments = self._stack.pop()
        place = Place(path, self._counts.get(path, 0))
        self._counts[path] = place.call + 1
        output = copy.deepcopy(self._given.get(place, output))
        self.passages.append(Passage(place, arguments, output))
        return copy.deepcopy(output) if place in self._given else None

    @contextlib.contextmanager
    def _hooked(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
