"""Numbers that were changed pixel by pixel, in other ways than by a factor and an offset for each channel."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.casts import Found, cast_between, lattice, reproduced
from layerdiff.preprocessing.chains import Chain, applied, geometric_steps, numeric_steps
from layerdiff.preprocessing.halves import is_half, slack
from layerdiff.preprocessing.normalisation import known
from layerdiff.preprocessing.scaling import nearest_known
from layerdiff.preprocessing.steps import Step, lost
from layerdiff.preprocessing.tones import toned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.preprocessing.colour import Relation
    from layerdiff.preprocessing.planes import Axes
    from layerdiff.preprocessing.views import Placed

Array = np.ndarray[Any, Any]

_NO_WORSE = 1.5
_HALF_GAIN = 1e-3
"""How far float16 can put a factor off, relatively: few levels are rounded alike wherever they are."""
_FACTORS = (1.0, 255.0, 1 / 255)


def pointwise(nearest: Placed, expected: Array, actual: Array, limit: float) -> Chain | None:
    """A chain with a cast or a tone curve; None where neither explains the difference."""
    for relation in _relations(nearest):
        chain = _with_cast(nearest, relation, expected, actual, limit)
        if chain is not None:
            return chain
    return toned(nearest, expected, actual, limit)


def halved(nearest: Placed, expected: Array, actual: Array) -> Chain | None:
    """A chain in which one side went through float16; None where the rest of the difference is more than that."""
    share = slack(expected, actual)
    found, samples = nearest.relation, nearest.samples()
    size = float((np.abs(found.gain) * np.abs(samples[1][list(found.order)]).max(axis=1) + np.abs(found.bias)).max())
    around = geometric_steps(nearest)
    if not share or around is None or found.left * max(float(np.ptp(samples[0])), 1e-30) > share * size:
        return None

    def told(relation: Relation) -> Chain:
        steps = numeric_steps(nearest.view, relation, samples)
        return applied((*around[0], *steps, *half_step(expected, actual), *around[1]), expected, actual)

    # What float16 hid is hidden from the fit, too: nothing that was there may leave much more than the fit does.
    allowed = min(share * size, max(_NO_WORSE * told(found).residual, share * size / 4))
    for relation in _without_blur(found, samples):
        chain = told(relation)
        if chain.residual <= allowed:
            return replace(chain, reproduced=chain.residual)
    return None


def _without_blur(found: Relation, samples: tuple[Array, Array]) -> Iterator[Relation]:
    """What a relation can have been before float16 hid its last digits, simplest first; last the relation itself."""
    count, order = len(found.order), found.order
    yield replace(found, gain=np.ones(count), bias=np.zeros(count))
    yield from nearest_known(found, samples[1])
    middles = samples[1][list(order)].mean(axis=1)
    straight = list(range(count))
    if sorted(order) == straight and list(order) != straight and [order[k] for k in order] == straight:
        # Channels exchanged before one norm: doing it twice does nothing.
        ratios = np.sqrt(np.abs(found.gain / found.gain[list(order)]))
        yield replace(found, gain=ratios, bias=(found.bias - ratios * found.bias[list(order)]) / 2)
        # And a factor, too: doing it twice is the factor twice.
        factor = float(np.sqrt(np.abs(found.gain * found.gain[list(order)])).mean())
        gain = factor * ratios
        if np.all(np.abs(gain / found.gain - 1) <= _HALF_GAIN):
            yield replace(found, gain=gain, bias=found.bias + (found.gain - gain) * middles)
    factor = float(found.gain.mean())
    for setting in known(count):  # another factor before a known norm
        bias = setting.affine(count)[1]
        yield replace(found, gain=np.full(count, factor), bias=bias * (1 - factor))
    yield replace(found, gain=np.full(count, factor), bias=found.bias + (found.gain - factor) * middles)
    yield found


def half_step(expected: Array, actual: Array) -> tuple[Step, ...]:
    """The step that says so; nothing where the type of the array does."""
    if np.float16 in (expected.dtype, actual.dtype) or is_half(expected) == is_half(actual):
        return ()
    names = ["float16" if is_half(side) else "float32" for side in (expected, actual)]
    parameters = {"expected": names[0], "actual": names[1], "how": "float16"}
    if names[1] == "float16":
        return (lost("dtype", parameters, "the numbers were rounded to float16, which cannot be undone"),)
    code = "x = x.astype(np.float16).astype(np.float64)"
    text = "the expected numbers were rounded to float16, the candidate's were not"
    return (Step("dtype", parameters, text, code, lambda x: x.astype(np.float16).astype(np.float64)),)


def _relations(nearest: Placed) -> Iterator[Relation]:
    """The factors and offsets that may stand beside a cast, simplest first."""
    found = nearest.relation
    channels = len(found.order)
    straight = tuple(min(i, nearest.view.actual.shape[1] - 1) for i in range(channels))
    orders = dict.fromkeys((found.order, straight)) if found.score > 0.9 else dict.fromkeys((straight, found.order))
    for order in orders:
        for factor in _FACTORS:
            yield replace(found, order=order, gain=np.full(channels, factor), bias=np.zeros(channels))
    if found.score > 0.99:
        yield from nearest_known(found, nearest.samples()[1])
        between = _between_levels(nearest)
        yield from () if between is None else (between,)


def _between_levels(nearest: Placed) -> Relation | None:
    """The relation by which the candidate's levels are the expected numbers truncated.

    Between two levels lies one number of the expected side: above all that became the lower, not above any that became
    the upper. A line through these borders is the map, to a hundredth of what least squares would leave.
    """
    e, a = nearest.samples()
    order = nearest.relation.order
    grid = lattice(a[list(order)])
    if grid is None:
        return None
    levels = np.rint(grid.levels(a[list(order)])).astype(np.int64)
    gains, biases = [], []
    for channel, numbers, step, origin in zip(levels, e, grid.step, grid.origin, strict=True):
        at = np.arange(1, channel.max() + 1)
        low, high = np.full(channel.max() + 1, np.inf), np.full(channel.max() + 1, -np.inf)
        np.minimum.at(low, channel, numbers)
        np.maximum.at(high, channel, numbers)
        near = np.isfinite(low[1:]) & np.isfinite(high[:-1])
        if near.sum() < 16:
            return None
        # Levels at the ends may hold what was cut off.
        use = np.flatnonzero(near)[1:-1]
        places, borders = at[use] * step + origin, (low[1:][use] + high[:-1][use]) / 2
        width = np.maximum(low[1:][use] - high[:-1][use], 1e-12)
        gain, bias = np.polyfit(places, borders, 1, w=1 / width)
        gains.append(gain)
        biases.append(bias)
    gain, bias = np.array(gains), np.array(biases)
    if np.ptp(gain) < 2e-4 * np.abs(gain).mean():  # one factor for all channels
        middle = (grid.origin + grid.step * grid.top / 2) * (gain - gain.mean())
        gain, bias = np.full(len(gain), gain.mean()), bias + middle
    return replace(nearest.relation, gain=gain, bias=bias)


def _with_cast(nearest: Placed, relation: Relation, expected: Array, actual: Array, limit: float) -> Chain | None:
    e, a = nearest.samples()
    picked = a[list(relation.order)]
    gain, bias = relation.gain[:, None], relation.bias[:, None]
    around = geometric_steps(nearest)
    if around is None:
        return None
    before = cast_between((e - bias) / gain, picked)
    after = cast_between(picked * gain + bias, e) if before is None else None
    if before is None and after is None:
        return None
    numeric = numeric_steps(nearest.view, relation, (e, a))
    if after is not None:
        step = _undone(after, nearest.view.axes)
        chain = applied((*around[0], *numeric, step, *around[1]), expected, actual)
        return chain if chain.residual <= limit else None
    assert before is not None
    parameters = {"expected": None, "actual": before.cast.how, "how": before.cast.how}
    step = lost("dtype", parameters, f"the numbers were {before.cast.summary}, which cannot be undone")
    chain = applied((*around[0], step, *numeric, *around[1]), expected, actual)
    return replace(chain, reproduced=float(reproduced(before, (e - bias) / gain, picked).max()))


def _undone(found: Found, axes: Axes) -> Step:
    """The step that does to the candidate's numbers what was done to the expected ones."""
    parameters = {"expected": found.cast.how, "actual": None, "how": found.cast.how}
    text = f"the expected numbers were {found.cast.summary}, the candidate's were not"
    if found.lattice is None:
        return Step("dtype", parameters, text, f"x = {found.cast.code.format(x='x')}", found.cast.made)
    step, origin, top = (axes.spread(v) for v in (found.lattice.step, found.lattice.origin, found.lattice.top))
    levels = found.cast.code.format(x="((x - origin) / step)")
    lines = [
        f"step, origin = {axes.spread_code(found.lattice.step)}, {axes.spread_code(found.lattice.origin)}",
        f"x = ({levels}).clip(0, {axes.spread_code(found.lattice.top)}) * step + origin",
    ]
    return Step(
        "dtype",
        parameters,
        text,
        "\n".join(lines),
        lambda x: np.clip(found.cast.made((x - origin) / step), 0, top) * step + origin,
    )
