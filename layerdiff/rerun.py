"""The reference run once more: how far each of its values then is from what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import largest_gap
from layerdiff.capture import Recorder, record
from layerdiff.tensors import as_array

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import torch
    from torch import nn

    from layerdiff.fp32 import Setting
    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]


def moved(
    model: nn.Module,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    reference: Reference,
    as_set: tuple[Setting, ...] = (),
) -> dict[int, float]:
    """The values that another run gives otherwise, each with its largest distance; infinite where that is no number.

    `as_set` are the settings that let the run compute float32 in a narrower format. All values that depend on the
    inputs are among them where the run takes another way.
    """
    again = record(lambda: _Rerun(model, reference, as_set), args, kwargs)
    if again.count != len(reference.values):
        return {v.index: np.inf for v in reference.values if v.site is not None and not v.constant}
    return again.moved


def begins(reference: Reference, moved: Collection[int]) -> list[Site]:
    """The sites that make values which move of values which do not."""
    return [s for s in reference.sites if not moved_in(s.inputs, moved) and moved_in(s.outputs, moved)]


def is_loose(site: Site, device: str) -> bool:
    """Whether a kernel ran that need not be deterministic: not on the CPU, or not torch's own."""
    return device != "cpu" or not site.op.startswith(("aten.", "nn."))


def moved_in(values: Collection[int], moved: Collection[int]) -> bool:
    """Whether one of some values is among those that move."""
    return any(value in moved for value in values)


class _Rerun(Recorder):
    """Numbers values exactly as the recorder of the reference did, and keeps distances instead of arrays."""

    def __init__(self, model: nn.Module, reference: Reference, as_set: tuple[Setting, ...]) -> None:
        super().__init__(model)
        self.as_set = as_set
        self.moved: dict[int, float] = {}
        self._before = reference.values

    @property
    def count(self) -> int:
        """How many values the run has."""
        return len(self._values)

    def keep(self, index: int, tensor: torch.Tensor) -> None:
        """Nothing; only how far it is from what it was."""
        expected = self._before[index].array if index < len(self._before) else None
        actual = as_array(tensor)
        if expected is None or actual is None:
            return
        gap = distance(expected, actual)
        if gap > 0:
            self.moved[index] = gap


def distance(expected: Array, actual: Array) -> float:
    """The largest distance of two runs of a value; infinite where it is no number, or the shapes differ."""
    if np.array_equal(expected, actual, equal_nan=expected.dtype.kind in "fc"):
        return 0.0
    gap = largest_gap(expected, actual) if expected.shape == actual.shape else np.inf
    return gap if 0 < gap < np.inf else np.inf
