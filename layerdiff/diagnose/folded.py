"""A layer that constants behind it were folded into: the fold is made anew, and how the file's differs from it told.

Optimisers fold ``a (W x + b) + c`` into one layer of weight ``a W`` and bias ``a b + c`` (see `audit.folds`). Of a
BatchNorm that is what `batchnorm.py` is about; here it is a factor in a forward, or a scale for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from layerdiff.audit.folds import EQUAL, HEAVY, bias_room, folds, output_axis
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.weights import in_what_way
from layerdiff.operators import base_name, is_batch_norm
from layerdiff.patch import SetConstant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.audit.folds import Fold
    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Node
    from layerdiff.model import Site

    Array = np.ndarray[Any, Any]

_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SCALES = frozenset({"Mul", "Div", "BatchNormalization"})
_REMEDY = "export again from the model that is meant to ship"


class _Operand(NamedTuple):
    """A constant operand of a node."""

    slot: int
    got: Array
    wanted: Array

    def is_right(self, room: Array | float) -> bool:
        """Whether it is what it should be, to what a fold rounds."""
        allowed = np.reshape(room, self.got.shape) if np.ndim(room) else room
        return bool(np.all(np.abs(self.got - self.wanted) <= allowed))

    @property
    def room(self) -> float:
        """What rounding once takes from its largest number."""
        return EQUAL * float(np.abs(self.wanted).max(initial=0.0))


@dataclass(frozen=True, slots=True)
class _Folded:
    """A node of the file, the slots of its weight and bias, what they hold and what they should."""

    node: Node
    weight: _Operand
    bias: _Operand | None

    def factor(self) -> float | None:
        """The one number by which weight and bias are multiples of the right ones."""
        got, wanted = self.weight.got, self.weight.wanted
        size = float(np.vdot(wanted, wanted))
        factor = float(np.vdot(wanted, got)) / size if size > 0 else 1.0
        operands = (operand for operand in (self.weight, self.bias) if operand is not None)
        scaled = (o._replace(wanted=factor * o.wanted) for o in operands)
        return factor if all(operand.is_right(4 * operand.room) for operand in scaled) else None


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One, where what was folded into a layer is not what the model has there."""
    heavy = next((site for site in stretch.sites if base_name(site.op) in HEAVY), None)
    if heavy is None or any(is_batch_norm(site.op) for site in stretch.sites):
        return
    if any(node.op in _SCALES for node in stretch.nodes):
        return  # not folded
    fold = _fold(stretch, heavy)
    found = None if fold is None else next(_folded(stretch, heavy, fold), None)
    if fold is None or found is None:
        return
    rooms = [(found.weight, found.weight.room)] + ([] if found.bias is None else [(found.bias, bias_room(fold))])
    wrong = [operand for operand, room in rooms if not operand.is_right(room)]
    if wrong:
        output = found.node.outputs[0]
        patch = tuple(SetConstant(output, one.slot, one.wanted.astype(one.got.dtype)) for one in wrong)
        cause, text, evidence, site = _in_what_way(stretch, heavy, fold, found)
        yield Hypothesis(cause, text, evidence, patch, _REMEDY, site)


def _fold(stretch: Stretch, heavy: Site) -> Fold | None:
    """The layer with all that follows it in the stretch, where that is affine."""
    readers: dict[int, list[Site]] = {}
    for site in stretch.sites:
        for value in site.inputs:
            readers.setdefault(value, []).append(site)
    return next(reversed(list(folds(stretch.alignment.reference, heavy, readers))), None)


def _folded(stretch: Stretch, heavy: Site, fold: Fold) -> Iterator[_Folded]:
    """The accused nodes that hold a weight of the layer's size."""
    axis, weight = output_axis(heavy), _array(stretch, fold.weight).astype(np.float64)
    shape = [1] * weight.ndim
    shape[axis] = -1
    right = weight * fold.factor.reshape(shape)
    for node in stretch.nodes:
        if node.op not in _LAYERS:
            continue
        own = [(slot, array) for other, slot, array in stretch.constants if other is node]
        weights = [(slot, array, view) for slot, array in own if (view := _in_layout(right, array)) is not None]
        biases = [(slot, array) for slot, array in own if array.ndim <= 1 and array.size == fold.shift.size]
        if weights:
            bias = None if not biases else _Operand(*biases[0], fold.shift.reshape(biases[0][1].shape))
            yield _Folded(node, _Operand(*weights[0]), bias)


def _in_layout(right: Array, array: Array) -> Array | None:
    """A weight with its axes as a constant has them; of a square matrix the nearer way."""
    if array.dtype.kind != "f" or array.size != right.size or array.ndim < 2:
        return None
    views = [right, np.swapaxes(right, 0, 1)] if right.ndim > 1 else [right]
    fitting = [view for view in views if view.shape == array.shape]
    return min(fitting, key=lambda view: float(np.linalg.norm(view - array)), default=None)


def _in_what_way(
    stretch: Stretch, heavy: Site, fold: Fold, found: _Folded
) -> tuple[str, str, dict[str, Any], int | None]:
    """Cause, sentence, numbers and site of the difference."""
    factor, one = found.factor(), float(fold.factor[0])
    scales = [site for site in stretch.sites if set(site.inputs) & set(fold.scaling) or base_name(site.op) == "mul"]
    if factor is not None and np.ptp(fold.factor) == 0 and one != 1 and scales:
        text = f"What the layer gives is multiplied by {factor * one:.6g} in the file, and by {one:.6g} in the model."
        return "constant", text, {"got": factor * one, "wanted": one, "folded": True}, scales[0].index
    names = {array.ndim: name for name, array in stretch.parameters(heavy).items()}
    if found.weight.is_right(found.weight.room) and found.bias is not None and 1 in names:
        _, got, right = found.bias
        own = stretch.alignment.reference.parameters[names[1]]
        text, evidence = in_what_way(stretch, names[1], own, _unfolded(got - right, fold.factor, own))
        return "weights", text, {"parameter": names[1], **evidence}, heavy.index
    name = next((name for ndim, name in names.items() if ndim > 1), "")
    own = stretch.alignment.reference.parameters.get(name, _array(stretch, fold.weight))
    _, got, right = found.weight
    gap = got - right
    view = gap if gap.shape == own.shape else np.swapaxes(gap, 0, 1)
    shape = [1] * own.ndim
    shape[output_axis(heavy)] = -1
    text, evidence = in_what_way(stretch, name, own, _unfolded(view, fold.factor.reshape(shape), own))
    return "weights", text, {"parameter": name, **evidence}, heavy.index


def _unfolded(gap: Array, factor: Array, own: Array) -> Array:
    """What a parameter would have to be for a fold to be off by so much."""
    safe = np.where(np.abs(factor) > 1e-30, factor, 1.0)
    return np.asarray(own + gap / safe, own.dtype)


def _array(stretch: Stretch, value: int) -> Array:
    reference = stretch.alignment.reference
    known = reference.values[value]
    found = known.array if known.parameter is None else reference.parameters[known.parameter]
    assert found is not None
    return found
