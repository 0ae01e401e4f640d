"""The float64 twin: how far the reference is from itself when it is computed without rounding.

A second forward pass runs every operator twice, once as it is and once on float64 shadows of its operands. The shadows
follow views and in-place updates, control flow stays with the original, and no second model is built. The distance
between a value and its shadow is the noise floor of that value.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.utils._pytree import tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from layerdiff.alone import ALONE
from layerdiff.capture import Recorder, record
from layerdiff.fp32 import plain_kernels
from layerdiff.gpu import plainly
from layerdiff.limits import mask_bound
from layerdiff.model import Noise, Operand
from layerdiff.tensors import as_array, tensors_in, to_array
from layerdiff.tiles import convolution

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

# How far the noisiest row must be above eight times the quarter quantile of all rows to be judged apart.
OUTLYING = 8.0
# Elements whose distances are held in double precision at a time.
ROWS_AT_ONCE = 1 << 20
_WIDE = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def noise_floor(
    model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], reference: Reference
) -> dict[int, Noise]:
    """The noise floor of every value of a reference, by value index.

    The twin runs without oneDNN: its plain kernels add up in another order, a second and independent look at rounding.
    A value is left out where the twin did not compute the same graph (a model whose control flow is random, say).
    """
    with ALONE, plain_kernels():
        return record(lambda: _Twin(model, reference), args, kwargs).floor


class _Again(Enum):
    """In which other way some operators are run once more."""

    IN_DOUBLE = "in double precision"
    PLAIN = "with plain kernels"
    REWEIGHED = "in double precision, with weights that were scaled and rounded anew, as folding does"


def floor_of_step(reference: Reference, sites: Sequence[int], value: int) -> Noise | None:
    """The noise floor that a few operators add on their own, from the values that they read to the one they make.

    None where they cannot be run again: a recurrent layer, an update through a view, random numbers.
    """
    expected = reference.values[value].array
    with ALONE, torch.no_grad(), plain_kernels():
        others = [_computed(reference, sites, value, how) for how in _Again]
    if expected is None or any(other is None or other.shape != expected.shape for other in others):
        return None
    return floor_from(expected, [other for other in others if other is not None])


def _computed(reference: Reference, sites: Sequence[int], value: int, how: _Again) -> Array | None:
    """A value computed once more from what its operators read."""
    known: dict[int, torch.Tensor] = {}

    def operand(leaf: Any) -> Any:
        if isinstance(leaf, Operand):
            return known[leaf.value].clone() if leaf.value in known else _operand(reference, leaf.value, how)
        if isinstance(leaf, torch.device):  # what was recorded elsewhere runs again on the CPU
            return torch.device("cpu")
        return _WIDE[leaf] if how is not _Again.PLAIN and leaf in _WIDE else leaf

    for index in sites:
        replay = reference.sites[index].replay
        if replay is None or isinstance(replay.function, nn.Module):
            return None
        args, kwargs = tree_map(operand, (replay.args, dict(replay.kwargs)))
        if draws(replay.function, args, kwargs):
            return None
        try:
            made = tensors_in(_run(replay.function, args, kwargs))
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None
        known |= dict(zip(reference.sites[index].outputs, made, strict=False))
    return to_array(known[value]) if value in known else None


def _operand(reference: Reference, value: int, how: _Again) -> torch.Tensor:
    """What an operator reads: a copy, since it may write to it."""
    one = reference.values[value]
    tensor = torch.tensor(one.array if one.parameter is None else reference.parameters[one.parameter])
    if how is _Again.PLAIN or tensor.dtype not in _WIDE:
        return tensor
    wide = tensor.to(_WIDE[tensor.dtype])
    if how is _Again.IN_DOUBLE or one.parameter is None or not wide.dtype.is_floating_point:
        return wide
    drawn = torch.rand(wide.shape, generator=torch.Generator().manual_seed(value), dtype=wide.dtype)
    return wide * (1 + torch.finfo(tensor.dtype).eps * (2 * drawn - 1))


class _Twin(Recorder):
    """Numbers values exactly as the recorder of the reference did, and keeps distances instead of arrays."""

    def __init__(self, model: nn.Module, reference: Reference) -> None:
        super().__init__(model)
        self.floor: dict[int, Noise] = {}
        self._reference_values = reference.values
        self._shadows: WeakTensorKeyDictionary = WeakTensorKeyDictionary()

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        wide_args, wide_kwargs = tree_map(self._shadow_of, (args, kwargs))
        if (narrow := wide_kwargs.get("dtype")) in _WIDE:
            wide_kwargs["dtype"] = _WIDE[narrow]
        # The shadow goes first: an in-place operator changes what a later shadow would be made from.
        wide = self._execute_wide(func, wide_args, wide_kwargs)
        del wide_args, wide_kwargs
        result = _run(func, args, kwargs)
        narrow_tensors = tensors_in(result)
        wide_tensors: list[torch.Tensor | None] = [*tensors_in(wide)]  # of some operators only the first results
        wide_tensors += [None] * (len(narrow_tensors) - len(wide_tensors))
        for tensor, shadow in zip(narrow_tensors, wide_tensors, strict=True):
            same = shadow is not None and shadow.shape == tensor.shape
            self._shadows[tensor] = shadow if same else _widened(tensor)
        return result

    def _execute_wide(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operator on shadows; None where it has no float64 kernel or draws random numbers."""
        if draws(func, args, kwargs):
            return None
        try:
            return _run(func, args, kwargs)
        except (RuntimeError, TypeError, ValueError, NotImplementedError):
            return None

    def _shadow_of(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        if isinstance(leaf, torch.nn.Parameter):  # kept, those of all layers would be twice the model
            return _widened(leaf)
        if leaf not in self._shadows:
            self._shadows[leaf] = _widened(leaf)
        return self._shadows[leaf]

    def keep(self, index: int, tensor: torch.Tensor) -> None:
        if index >= len(self._reference_values):
            return
        expected = self._reference_values[index].array
        wide, plain = as_array(self._shadow_of(tensor)), as_array(tensor)
        if expected is None or wide is None or plain is None or wide.shape != expected.shape:
            return
        self.floor[index] = floor_from(expected, (wide, plain))


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    for computed in (convolution(func, args), plainly(func, args, kwargs)):
        if computed is not None:
            return computed
    return func(*args, **kwargs)


def draws_in(site: Site) -> bool:
    """Whether a recorded operator draws random numbers."""
    replay = site.replay
    return (
        replay is not None and hasattr(replay.function, "tags") and draws(replay.function, replay.args, replay.kwargs)
    )


def draws(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator draws random numbers; attention is marked so for a dropout that is mostly off."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    return "dropout_p" not in names or given.get("dropout_p", 0.0) != 0


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(_WIDE[tensor.dtype]) if tensor.dtype in _WIDE else tensor.clone()


def gap_of(expected: Array, other: Array) -> Array:
    """The distance of every element; 0 where it is not finite on both sides, or a mask constant."""
    return _gap(expected, other, mask_bound(expected) if expected.dtype.kind in "fc" else np.inf)


def _gap(expected: Array, other: Array, bound: float) -> Array:
    """The same, where magnitudes above a bound are mask constants."""
    wide = np.complex128 if np.iscomplexobj(expected) else np.float64
    if bound == np.inf and expected.dtype.kind == other.dtype.kind == "f":
        with np.errstate(invalid="ignore", over="ignore"):
            gap = np.subtract(other, expected, dtype=np.float64)
        np.abs(gap, out=gap)
        if np.isfinite(gap.max(initial=0.0)):  # then everything is, on both sides
            return gap
    counted = np.isfinite(expected) & np.isfinite(other)
    with np.errstate(invalid="ignore", over="ignore"):
        if bound < np.inf:
            counted &= ~(np.abs(expected).astype(np.float64) > bound)
        return np.where(counted, np.abs(expected.astype(wide) - other.astype(wide)), 0.0)


def floor_from(expected: Array, others: Sequence[Array], more: float = 0.0) -> Noise:
    """The floor of a value from its distances to others, the largest for each element, and so much more for each.

    Some rows (slices along the last axis) at a time: in double precision all would take several times the value.
    """
    width = expected.shape[-1] if expected.ndim > 1 else 1
    flat, *rest = (array.reshape(-1, width) if array.size else array.reshape(0, 1) for array in (expected, *others))
    bound = mask_bound(expected) if expected.dtype.kind in "fc" else np.inf
    rows = np.zeros((len(flat), 1))
    worst = squares = 0.0
    step = max(1, ROWS_AT_ONCE // max(1, width))
    for begin in range(0, len(flat), step):
        part = slice(begin, begin + step)
        gap = _gap(flat[part], rest[0][part], bound)
        for other in rest[1:]:
            np.maximum(gap, _gap(flat[part], other[part], bound), out=gap)
        gap += more
        rows[part, 0] = gap.max(axis=1)
        before, worst = worst, max(worst, float(rows[part].max()))
        if worst > 0:  # the squares of small numbers are zero
            gap /= worst
            squares = squares * (before / worst) ** 2 + float(np.vdot(gap, gap))
    if worst == 0:
        return Noise(0.0, 0.0)
    return _floor(expected, rows, worst, worst * float(np.sqrt(squares / expected.size)))


def floor_of(expected: Array, gap: Array) -> Noise:
    """The floor of a value from the distances of its elements."""
    worst = float(gap.max()) if gap.size else 0.0
    if worst == 0:
        return Noise(0.0, 0.0)
    rms = worst * float(np.sqrt(np.mean((gap / worst) ** 2)))
    rows = gap.max(axis=-1).reshape(-1, 1) if gap.ndim > 1 else gap.reshape(-1, 1)
    return _floor(expected, rows, worst, rms)


def _floor(expected: Array, rows: Array, worst: float, rms: float) -> Noise:
    """The floor, given the worst distance in each row.

    A row whose scores are all masked may be nothing but rounding in float32. Such a row must not set the floor of the
    others: where the worst row is far above the usual ones, every row has a floor of its own.
    """
    usual = 8 * float(np.quantile(rows[rows > 0], 0.25, method="lower"))
    if expected.ndim < 2 or expected.dtype.kind not in "fc" or worst <= OUTLYING * usual:
        return Noise(worst, rms)
    return Noise(worst, rms, np.minimum(np.maximum(rows, usual), worst).reshape(*expected.shape[:-1], 1))
