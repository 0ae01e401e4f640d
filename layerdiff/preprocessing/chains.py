"""From a hypothesis about two inputs to the chain of steps that it stands for, applied."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.borders import whole
from layerdiff.preprocessing.scaling import parts_of
from layerdiff.preprocessing.steps import Step, cropped, lost, padded, reordered, rescaled, turned

if TYPE_CHECKING:
    from layerdiff.preprocessing.colour import Relation
    from layerdiff.preprocessing.scaling import Part
    from layerdiff.preprocessing.views import Placed, View

Array = np.ndarray[Any, Any]


_BLOCK = 1 << 20  # numbers that are compared at a time
_SAME_PAD = 2e-3
"""A share of the range, half an 8-bit level, within which two borders hold the same."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Steps with what they leave of the difference, and what the mistakes leave the other way round, if tried."""

    steps: tuple[Step, ...]
    residual: float
    reproduced: float | None = None


def chain_of(hypothesis: Placed, expected: Array, actual: Array, limit: float) -> Chain | None:
    """The chain of a hypothesis whose relation is exact; None where it leaves more than rounding on the whole."""
    numeric = numeric_steps(hypothesis.view, hypothesis.relation, hypothesis.samples())
    around = geometric_steps(hypothesis)
    if around is None:
        return _of_a_part(hypothesis, numeric, expected, actual, limit)
    chain = applied((*around[0], *numeric, *around[1]), expected, actual)
    return chain if chain.residual <= limit else None


def applied(steps: tuple[Step, ...], expected: Array, actual: Array) -> Chain:
    """A chain and what it leaves; where the numbers have another type, that is its last step."""
    x = actual.astype(np.float64)
    for step in steps:
        x = step.apply(x)
    if expected.dtype.kind in "iu":
        x = np.rint(x)
    return Chain((*steps, *typed(expected, actual)), gap(expected, x))


def gap(expected: Array, actual: Array) -> float:
    """The largest absolute difference; infinity for another shape, or where one side only is not finite."""
    if expected.shape != actual.shape:
        return float("inf")
    worst = 0.0
    # One block after another: pictures of 48 megapixels need not be doubled as a whole.
    flat = np.asarray(expected).reshape(-1), np.asarray(actual).reshape(-1)
    for start in range(0, flat[0].size, _BLOCK):
        e, a = (side[start : start + _BLOCK] for side in flat)
        finite = np.isfinite(e)
        if not np.array_equal(finite, np.isfinite(a)):
            return float("inf")
        difference = np.abs(np.subtract(e, a, dtype=np.float64, where=finite, out=np.zeros(e.shape)))
        worst = max(worst, float(difference.max(initial=0.0)))
    return worst


def layout_steps(hypothesis: Placed) -> tuple[Step, ...]:
    """The steps that bring the axes in order and the picture the right way up."""
    view = hypothesis.view
    turn = () if hypothesis.turn.still else (turned(hypothesis.turn, view.axes),)
    return (*((view.layout,) if view.layout is not None else ()), *turn)


def geometric_steps(hypothesis: Placed) -> tuple[tuple[Step, ...], tuple[Step, ...]] | None:
    """The steps before and after the numbers; None where what was cut off cannot be brought back."""
    view, (e_box, a_box) = hypothesis.view, hypothesis.boxes
    before, shown = layout_steps(hypothesis), hypothesis.turned
    if hypothesis.everything:
        return before, ()
    if e_box == whole(view.expected):
        return (*before, cropped(a_box, view.axes, shown.shape[-2:])), ()
    pad, size = e_box.around(view.expected[0]), view.expected.shape[-2:]
    if pad is None:
        return None
    pad_range = hypothesis.samples()[0]
    theirs = a_box.around(shown[0])
    if theirs is not None:
        theirs = hypothesis.relation.predicted(theirs[:, None])[:, 0]
        if e_box == a_box and shown.shape[-2:] == size and np.abs(theirs - pad).max() <= _SAME_PAD * np.ptp(pad_range):
            return before, ()
    sizes = dict(zip("NCHW", view.expected.shape, strict=True))
    shape = tuple(sizes[letter] for letter in view.axes.letters)
    return before, (padded((e_box, a_box), (pad, theirs), view.axes, shape),)


def numeric_steps(view: View, relation: Relation, samples: tuple[Array, Array]) -> tuple[Step, ...]:
    """The steps that change the order of the channels and the numbers; `samples` are channels of both."""
    axes = view.axes
    parts = parts_of(relation, *samples)
    order = reordered(relation.order, axes, view.actual.shape[1])
    if not parts and order is not None and not _is_identity(relation, samples[1]):
        # One norm for both sides by position: the order alone is the mismatch, undone with the norm taken along.
        gain, bias = axes.spread(relation.gain), axes.spread(relation.bias)
        scaled = f"x = x * {axes.spread_code(relation.gain)} + {axes.spread_code(relation.bias)}"
        code = f"{order.code}\n{scaled}  # the mean and std that both sides use, by position"
        return (replace(order, code=code, apply=lambda x: order.apply(x) * gain + bias),)
    steps = tuple(rescaled(part, axes) for part in _composed(parts, relation))
    return steps if order is None else (order, *steps)


def _is_identity(relation: Relation, actual: Array) -> bool:
    """Whether factors and offsets do nothing beyond rounding."""
    size = float(np.abs(actual).max())
    return bool(np.all(np.abs(relation.gain - 1) * size + np.abs(relation.bias) <= 1e-4 * size))


def _composed(parts: list[Part], relation: Relation) -> list[Part]:
    """The parts, the last of them corrected where names have fewer digits than the numbers."""
    gain, bias = np.ones(len(relation.gain)), np.zeros(len(relation.gain))
    for part in parts:
        gain, bias = gain * part.gain, bias * part.gain + part.bias
    if not parts or np.all(np.abs(gain / relation.gain - 1) < 1e-6):
        return parts
    last, rest = parts[-1], relation.gain / gain
    exact = replace(last, gain=last.gain * rest, bias=relation.bias - (bias - last.bias) * rest)
    return [*parts[:-1], exact]


def typed(expected: Array, actual: Array) -> tuple[Step, ...]:
    """The step to the expected number type; nothing where it is that."""
    if expected.dtype == actual.dtype:
        return ()
    wanted, got = str(expected.dtype), str(actual.dtype)
    code = f"x = np.rint(x).astype(np.{wanted})" if expected.dtype.kind in "iu" else f"x = x.astype(np.{wanted})"
    parameters = {"expected": wanted, "actual": got, "how": "type"}
    return (Step("dtype", parameters, f"the input is {got}, wanted {wanted}", code, lambda x: x),)


def _of_a_part(
    hypothesis: Placed, numeric: tuple[Step, ...], expected: Array, actual: Array, limit: float
) -> Chain | None:
    """The candidate shows a part of the expected picture: verified on that part, which is all that can be."""
    (e_box, a_box), shown, size = hypothesis.boxes, hypothesis.turned, hypothesis.view.expected.shape[-2:]
    planes = zip(e_box.of(hypothesis.view.expected), a_box.of(shown), strict=True)
    left = max(gap(e, hypothesis.relation.predicted(a.astype(np.float64))) for e, a in planes)
    if left > limit:
        return None
    parts = [{"top": b.top, "left": b.left, "height": b.height, "width": b.width} for b in (e_box, a_box)]
    parameters = {
        "expected": {"size": list(size), **parts[0]},
        "actual": {"size": list(shown.shape[-2:]), **parts[1]},
    }
    if a_box == whole(shown):
        text = (
            f"only rows {e_box.top}:{e_box.top + e_box.height} and columns {e_box.left}:{e_box.left + e_box.width} of "
            "the expected picture are there (a crop), and the rest cannot be brought back"
        )
    else:
        move = (e_box.top - a_box.top, e_box.left - a_box.left)
        text = f"the picture is cropped at another place, {move[0]} rows and {move[1]} columns away"
    steps = (*layout_steps(hypothesis), lost("crop", parameters, text), *numeric, *typed(expected, actual))
    return Chain(steps, float("inf"), left)
