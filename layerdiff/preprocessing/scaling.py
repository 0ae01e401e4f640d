"""From a factor and an offset for each channel to named mismatches: another range, another mean and std."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.factors import before_a_known_norm, behind_an_order
from layerdiff.preprocessing.normalisation import NONE, RANGES, SAME, Norm, Scaling, known, recognised, scalings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.preprocessing.colour import Relation

Array = np.ndarray[Any, Any]

# What an interpolation that overshoots makes of pixels of 0 to 255.
_PIXELS = (-80.0, 335.0)


@dataclass(frozen=True, slots=True)
class Part:
    """One mismatch of the numbers: what to do to the candidate's, channel by channel in the expected order."""

    kind: str
    parameters: Mapping[str, Any]
    summary: str
    gain: Array
    bias: Array


def parts_of(relation: Relation, expected: Array, actual: Array) -> list[Part]:
    """The mismatches that make up a relation of two inputs of which no image is known: (C, S) and (D, S)."""
    gain, bias = relation.gain, relation.bias
    picked = actual[list(relation.order)]
    size = float(np.abs(gain * np.abs(picked).max(axis=1) + np.abs(bias)).max())
    if _nothing(gain - 1, bias, picked, size) or _returns(relation, size):
        return []
    sure = _recognised_pair(relation, expected, picked)
    if sure is not None and len(sure) < 2:
        return sure
    before = before_a_known_norm(relation, size)
    if before is not None:
        return [_behind(before, relation)]
    if sure is not None:
        return sure
    pair = _known_pair(relation, picked)
    if pair is not None:
        return between(*pair, relation.order)
    return _unknown(relation, picked, size)


def between(expected: Scaling, actual: Scaling, order: Sequence[int]) -> list[Part]:
    """The mismatches of two settings; a norm may be applied by position, or by colour before the channels moved."""
    channels = len(order)
    same_norm = expected.norm.close(actual.norm) or _by_colour(expected.norm, actual.norm, order)
    same_range = (
        abs(expected.factor - actual.factor) <= SAME * abs(expected.factor) and expected.offset == actual.offset
    )
    (e_gain, e_bias), (a_gain, a_bias) = expected.affine(channels), actual.affine(max(channels, max(order) + 1))
    a_gain, a_bias = a_gain[list(order)], a_bias[list(order)]
    gain, bias = e_gain / a_gain, e_bias - e_gain / a_gain * a_bias
    if same_range and same_norm:
        return []
    if same_norm:
        return [_scale(expected, actual, gain, bias)]
    if same_range:
        return [_mean_std(expected, actual, gain, bias)]
    # First out of the candidate's norm and into the range, then the norm.
    ranged = expected.factor / actual.factor
    n_gain, n_bias = actual.norm.affine(len(a_gain))
    n_gain, n_bias = n_gain[:channels], n_bias[:channels]
    inner_gain = ranged / n_gain
    inner_bias = expected.offset - ranged * (actual.offset + n_bias / n_gain)
    outer_gain, outer_bias = expected.norm.affine(channels)
    return [_scale(expected, actual, inner_gain, inner_bias), _mean_std(expected, actual, outer_gain, outer_bias)]


def closest(expected: tuple[Array, Array], actual: tuple[Array, Array], order: Sequence[int]) -> list[Part]:
    """The fewest mismatches of two known maps from pixels of 0 to 255, each a factor and an offset by position."""
    shared = _one_norm(expected, actual, order)
    if shared is not None:
        return shared
    pairs = [(e, a) for e in scalings(*expected) for a in scalings(*actual)]
    if expected[0].shape != actual[0].shape:
        return between(pairs[0][0], pairs[0][1], order)
    ours, theirs = _least(pairs, order)
    return between(ours, theirs, order)


def _least(pairs: Sequence[tuple[Scaling, Scaling]], order: Sequence[int]) -> tuple[Scaling, Scaling]:
    """The pair of settings that differs in least; of those that differ in as much, one with a norm on both or neither.

    Values of -1 to 1 have two names: of their own, and as values of 0 to 1 with a mean and a std of 0.5.
    """
    return min(
        pairs,
        key=lambda pair: (len(between(pair[0], pair[1], order)), (pair[0].norm is NONE) != (pair[1].norm is NONE)),
    )


def _one_norm(expected: tuple[Array, Array], actual: tuple[Array, Array], order: Sequence[int]) -> list[Part] | None:
    """What sets two maps apart that share mean and std, by position or by colour: a factor before it, or nothing."""
    if max(order) >= len(actual[0]) or len(expected[0]) > len(actual[0]):
        return None
    picked = (actual[0][list(order)], actual[1][list(order)])
    size = 255 * float(np.abs(expected[0]).max()) + float(np.abs(expected[1]).max())
    for gain, bias in (picked, actual) if len(actual[0]) == len(expected[0]) else (picked,):
        factor = expected[0] / gain
        same = np.all(np.abs(factor - factor[0]) <= SAME * np.abs(factor[0]))
        if same and np.all(np.abs(expected[1] - bias) <= 2 * SAME * size):
            if abs(factor[0] - 1) <= SAME:
                return []
            if np.all(np.abs(bias) <= SAME * size):
                return None  # no norm at all: another rule names the ranges
            to_expected = expected[0] / picked[0]
            return [_before_a_norm(expected, factor[0], to_expected, expected[1] - to_expected * picked[1])]
    return None


def _before_a_norm(expected: tuple[Array, Array], factor: float, gain: Array, bias: Array) -> Part:
    """A factor before one and the same mean and std."""
    ours = scalings(*expected)[0]
    names = {name: value for name, (value, offset) in RANGES.items() if offset == 0.0}
    spans = [
        next((n for n, v in names.items() if abs(v - f) <= SAME * f), "") for f in (ours.factor, ours.factor / factor)
    ]
    return _scale(
        Scaling(spans[0], ours.factor, 0.0, NONE), Scaling(spans[1], ours.factor / factor, 0.0, NONE), gain, bias
    )


def _nothing(gain_off: Array, bias: Array, picked: Array, size: float) -> bool:
    return bool(np.all(np.abs(gain_off) * np.abs(picked).max(axis=1) + np.abs(bias) <= SAME * size))


def _returns(relation: Relation, size: float) -> bool:
    """Whether the map is only an order of channels, put behind a norm that both sides share by position.

    Such a map applied as often as the order takes to come back is the identity.
    """
    order = relation.order
    if len(set(order)) < len(order) or max(order) >= len(order):
        return False
    gain, bias, place = np.ones(len(order)), np.zeros(len(order)), np.arange(len(order))
    for _ in range(len(order) * 2):
        bias = relation.gain * bias[list(order)] + relation.bias
        gain = relation.gain * gain[list(order)]
        place = place[list(order)]
        if np.array_equal(place, np.arange(len(order))):
            break
    moved = list(order) != list(range(len(order)))
    return moved and bool(np.all(np.abs(gain - 1) <= 1e-4) and np.all(np.abs(bias) <= 1e-4 * size))


def _recognised_pair(relation: Relation, expected: Array, picked: Array) -> list[Part] | None:
    """The mismatches, where one side holds whole numbers of 0 to 255 behind a known setting; None where none does."""
    order = list(relation.order)
    if sorted(order) != list(range(len(order))):  # one channel stands for several, or one is left out
        return None
    back = [order.index(k) for k in range(len(order))]
    options = []
    for ours in recognised(expected):
        gain, bias = ours.affine(len(order))
        theirs = (gain / relation.gain, (bias - relation.bias) / relation.gain)
        options.append(closest((gain, bias), (theirs[0][back], theirs[1][back]), order))
    for theirs_set in recognised(picked[back]) if not options else ():
        gain, bias = theirs_set.affine(len(order))
        ours_map = (relation.gain * gain[order], relation.gain * bias[order] + relation.bias)
        options.append(closest(ours_map, (gain, bias), order))
    return min(options, key=len, default=None)


@lru_cache
def _table(channels: int) -> tuple[Array, Array]:
    maps = [s.affine(channels) for s in known(channels)]
    return np.array([m[0] for m in maps]), np.array([m[1] for m in maps])


def _known_pair(relation: Relation, picked: Array) -> tuple[Scaling, Scaling] | None:
    """The two known settings that differ least, of those whose difference is this relation and whose pixels fit."""
    order, width = list(relation.order), len(relation.order)
    if max(order) >= width:
        return None
    settings = known(width)
    gains, biases = _table(width)
    a_gain, a_bias = gains[:, order], biases[:, order]
    gain = gains[:, None] / a_gain[None]
    bias = biases[:, None] - gain * a_bias[None]
    reach = np.abs(picked).max(axis=1)
    limit = SAME * 4 * float((np.abs(relation.gain) * reach + np.abs(relation.bias)).max())
    off = np.abs(gain - relation.gain) * reach + np.abs(bias - relation.bias)
    low = ((picked.min(axis=1) - a_bias) / a_gain).min(axis=1)
    high = ((picked.max(axis=1) - a_bias) / a_gain).max(axis=1)
    plausible = (low >= _PIXELS[0]) & (high <= _PIXELS[1]) & (high > 3)
    fits = np.argwhere((off <= limit).all(axis=-1) & plausible[None])
    pairs: list[tuple[Scaling, Scaling]] = [(settings[e], settings[a]) for e, a in fits]
    return _least(pairs, relation.order) if pairs else None


def _unknown(relation: Relation, picked: Array, size: float) -> list[Part]:
    """Numbers that no known setting explains: which side was normalised follows from which side looks plain."""
    gain, bias = relation.gain, relation.bias
    if not np.all(gain):  # one side is of one colour: any factor would do
        return []
    uniform = np.all(np.abs(gain - gain[0]) <= SAME * np.abs(gain).max())
    plain = np.all(np.abs(bias) <= SAME * size)
    result = picked * gain[:, None] + bias[:, None]
    e_span, a_span = _plain(result), _plain(picked)
    if uniform and plain:
        factor = float(f"{gain.mean():.7g}")
        return [_scale(Scaling("", factor, 0.0, NONE), Scaling("", 1.0, 0.0, NONE), gain, bias)]
    ends = {255.0: ("0..255", "0..1"), 1 / 255: ("0..1", "0..255")}
    named = next((names for f, names in ends.items() if uniform and abs(gain.mean() - f) <= SAME * f), None)
    # One factor with several offsets is a factor before a norm: a norm has several factors, too.
    if named is not None or (uniform and (np.ptp(bias) > SAME * size or not (e_span or a_span))):
        return [_shared(gain, bias, named)]
    behind = behind_an_order(relation)
    if behind is not None:
        return [_behind(behind, relation)]
    if a_span and not e_span:
        return _named(a_span, gain, bias, expected=True)
    if e_span and not a_span:
        return _named(e_span, 1 / gain, -bias / gain, expected=False)
    return [_relative(gain, bias)]


def _behind(factor: float, relation: Relation) -> Part:
    part = _shared(relation.gain, relation.bias, None)
    text = f"the values are {1 / factor:.6g} times what they should be, before one and the same mean and std"
    return replace(part, parameters={**part.parameters, "factor": factor}, summary=text)


def _plain(values: Array) -> str:
    """The range in which values look untouched by a mean and a std; "" for none."""
    low, high = float(values.min()), float(values.max())
    if low >= -0.35 and 0.2 < high <= 1.35:
        return "0..1"
    return "0..255" if low >= _PIXELS[0] and 20 < high <= _PIXELS[1] and low > -high / 3 else ""


def _named(span: str, gain: Array, bias: Array, *, expected: bool) -> list[Part]:
    """One side is plain, the other has a mean and a std of its own: ``other = gain * plain + bias``."""
    plain = Scaling(span, 1.0 if span == "0..255" else 1 / 255, 0.0, NONE)
    found = scalings(gain * plain.factor, bias)
    pairs = [(s, plain) if expected else (plain, s) for s in found]
    return min((between(*pair, range(len(gain))) for pair in pairs), key=len)


def _shared(gain: Array, bias: Array, names: tuple[str, str] | None) -> Part:
    """Another factor before one and the same mean and std, of which nothing is known."""
    ours, theirs = names or (None, None)
    parameters = {"expected": ours, "actual": theirs, "factor": float(gain.mean()), "offset": _list(bias)}
    text = f"the values are {1 / gain.mean():.6g} times what they should be, before one and the same mean and std"
    if names is not None:
        text = f"the values are scaled {_of(names[1])}, wanted {_of(names[0])}, before one and the same mean and std"
    return Part("scale", parameters, text, gain, bias)


def _relative(gain: Array, bias: Array) -> Part:
    parameters = {"expected": None, "actual": None, "factor": _list(gain), "offset": _list(bias)}
    numbers = f"factor {_short(gain)}, offset {_short(bias)}"
    return Part(
        "mean-std", parameters, f"the channels are normalised with another mean and std ({numbers})", gain, bias
    )


def _scale(expected: Scaling, actual: Scaling, gain: Array, bias: Array) -> Part:
    factor = expected.factor / actual.factor
    parameters = {
        "expected": expected.span or float(expected.factor),
        "actual": actual.span or float(actual.factor),
        "factor": float(factor),
        "offset": float(expected.offset - factor * actual.offset),
    }
    if expected.span and actual.span:
        text = f"the values are scaled {_of(actual.span)}, wanted {_of(expected.span)}"
    else:
        text = f"the values are {1 / factor:.6g} times what they should be"
    return Part("scale", parameters, text, gain, bias)


def _mean_std(expected: Scaling, actual: Scaling, gain: Array, bias: Array) -> Part:
    parameters = {"expected": expected.norm.told(), "actual": actual.norm.told()}
    text = f"{actual.norm} applied, wanted {expected.norm}"
    return Part("mean-std", parameters, text, gain, bias)


def _by_colour(expected: Norm, actual: Norm, order: Sequence[int]) -> bool:
    """Whether both norms are one, applied before the channels were exchanged."""
    if len(actual.mean) == 1 and len(actual.std) == 1:
        return expected.close(actual)
    count = max(len(actual.mean), len(actual.std))
    if max(order) >= count:
        return False
    mean, std = (v * count if len(v) == 1 else v for v in (actual.mean, actual.std))
    moved = Norm(actual.name, tuple(mean[i] for i in order), tuple(std[i] for i in order))
    wanted_mean, wanted_std = (v * count if len(v) == 1 else v for v in (expected.mean, expected.std))
    return moved.close(Norm("", wanted_mean, wanted_std))


def _of(span: str) -> str:
    low, _, high = span.partition("..")
    return f"from {low} to {high}"


def _list(values: Array) -> list[float]:
    return [float(f"{v:.7g}") for v in values]


def _short(values: Array) -> str:
    return ", ".join(f"{v:.5g}" for v in values)


def nearest_known(relation: Relation, actual: Array) -> list[Relation]:
    """The relation as known settings have it, where it was blurred by a loss of digits; the nearest first."""
    picked = actual[list(relation.order)]
    if max(relation.order) >= len(relation.order):
        return []
    gains, biases = _table(len(relation.order))
    a_gain, a_bias = gains[:, list(relation.order)], biases[:, list(relation.order)]
    gain = gains[:, None] / a_gain[None]
    bias = biases[:, None] - gain * a_bias[None]
    size = np.maximum(np.abs(relation.gain) * np.ptp(picked, axis=1), 1e-30)
    middle = picked.mean(axis=1)
    off = np.abs(gain * middle + bias - relation.gain * middle - relation.bias) / size
    off = off + np.abs(gain / relation.gain - 1)
    worst = off.max(axis=-1)
    order = np.argsort(worst, axis=None)[:4]
    at = [np.unravel_index(i, worst.shape) for i in order]
    return [replace(relation, gain=gain[i], bias=bias[i]) for i in at if worst[i] < 0.05]
