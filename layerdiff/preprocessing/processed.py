"""Sounds that went through something: clipped, filtered, limited in band, at another rate and padded again."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import partial
from importlib.util import find_spec
from itertools import permutations
from typing import Any

import numpy as np

from layerdiff.preprocessing.chains import Chain, applied, gap
from layerdiff.preprocessing.steps import Step, lost

Array = np.ndarray[Any, Any]

_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_TAPS = 8
_FITTED = 100_000  # samples to which a filter is fitted
_BANDS = 64
_SLOPE = 8  # bands over which the filter of a resampler may fall off


def clipped(layout: tuple[Step, ...], expected: Array, x: Array, actual: Array) -> Chain | None:
    """The expected sound cut off at two levels: verified from that side."""
    if expected.shape != x.shape:
        return None
    low, high = float(x.min()), float(x.max())
    inside = float(expected.min()) >= low and float(expected.max()) <= high
    if inside or low == high or gap(np.clip(expected, low, high), x) > 1e-6 * max(abs(low), abs(high), 1e-30):
        return None
    step = lost("dtype", {"how": "saturated", "low": low, "high": high}, f"samples are cut off at {low:g} and {high:g}")
    return replace(applied((*layout, step), expected, actual), reproduced=0.0)


def filtered(layout: tuple[Step, ...], expected: Array, x: Array, actual: Array) -> Chain | None:
    """A short filter over the samples, such as pre-emphasis: on the candidate's side, or on the expected one."""
    if expected.shape != x.shape or expected.shape[-1] < 4 * _TAPS:
        return None
    for taps, ours in ((_filter(x, expected), True), (_filter(expected, x), False)):
        if taps is None:
            continue
        told = [float(f"{v:.6g}") for v in taps]
        emphasis = len(taps) == 2 and abs(taps[0] - 1) < 1e-3
        name = (
            f"pre-emphasis of {-told[1]:g}"
            if emphasis
            else f"a filter with the taps {', '.join(f'{v:g}' for v in told)}"
        )
        parameters: dict[str, Any] = {"how": "filter", "taps": told, "side": "expected" if ours else "actual"}
        if ours:
            rows = f"np.convolve(row, {told})[: row.size] for row in x.reshape(-1, x.shape[-1])"
            code = f"x = np.stack([{rows}]).reshape(x.shape)"
            step = Step("audio", parameters, f"{name} is missing", code, partial(_through, taps=np.array(told)))
            return replace(applied((*layout, step), expected, actual), reproduced=gap(expected, _through(x, taps)))
        step = lost("audio", parameters, f"{name} was applied")
        return replace(applied((*layout, step), expected, actual), reproduced=gap(x, _through(expected, taps)))
    return None


def _through(x: Array, taps: Array) -> Array:
    rows = [np.convolve(row, taps)[: row.size] for row in x.reshape(-1, x.shape[-1]).astype(np.float64)]
    return np.stack(rows).reshape(x.shape)


def _filter(source: Array, target: Array) -> Array | None:
    """The fewest taps that make one sound of another, to 1e-4 of it; None where a few do not."""
    s, t = (v.reshape(-1, v.shape[-1])[0, :_FITTED].astype(np.float64) for v in (source, target))
    size = float(np.abs(target).max(initial=0.0))
    if not size or not np.any(s):
        return None
    for count in range(2, _TAPS + 1):
        columns = np.stack([np.r_[np.zeros(k), s[: s.size - k]] for k in range(count)], axis=1)
        taps = np.linalg.lstsq(columns, t, rcond=None)[0]
        if np.abs(columns @ taps - t).max() <= 1e-4 * size:
            return taps if gap(target, _through(source, taps)) <= 1e-4 * size else None
    return None


def resampled_and_padded(layout: tuple[Step, ...], expected: Array, x: Array, _: Array) -> Chain | None:
    """Another sample rate, and then cut off or padded with silence to a length of its own."""
    if expected.shape[:-1] != x.shape[:-1] or find_spec("scipy") is None:
        return None
    e, a = (v.reshape(-1, v.shape[-1])[0].astype(np.float64) for v in (expected, x))
    heard = int(np.flatnonzero(np.abs(a) > 1e-4 * np.abs(a).max(initial=0.0))[-1:].sum()) + 1
    best: tuple[float, Fraction] | None = None
    for ratio in sorted({Fraction(one, other) for one, other in permutations(_RATES, 2)}):
        at = np.arange(e.size) * float(1 / ratio)
        use = at < heard - 1
        if use.sum() < max(256, 0.25 * min(e.size, heard * float(ratio))):
            continue
        made = np.interp(at[use], np.arange(a.size), a)
        if made.std() > 0 and e[use].std() > 0:
            alike = float(np.corrcoef(made, e[use])[0, 1])
            best = max(best or (0.0, ratio), (alike, ratio))
    if best is None or best[0] < 0.8:
        return None
    ratio = best[1]
    text = f"the sample rate is {float(1 / ratio):.6g} times what it should be"
    parameters = {"how": "sample-rate", "ratio": [ratio.numerator, ratio.denominator], "correlation": round(best[0], 4)}
    window = {"how": "window", "expected": e.size, "actual": a.size}
    ends = f"the sound is padded or cut off to {a.size} samples, wanted {e.size}"
    return Chain((*layout, lost("audio", parameters, text), lost("audio", window, ends)), float("inf"))


def alike(layout: tuple[Step, ...], expected: Array, x: Array, actual: Array) -> Chain | None:
    """The same sound with something unknown done to it; None where it is another."""
    if expected.shape != x.shape:
        return None
    e, a = (v.ravel().astype(np.float64) for v in (expected, x))
    if not e.std() or not a.std():
        return None
    score = float(np.corrcoef(e, a)[0, 1])
    if score < 0.5:
        return None
    share = _band(e, a)
    if share is not None:
        text = f"the sound has nothing in the upper {1 - share:.0%} of its band: it went through a lower sample rate"
        step = lost("audio", {"how": "band", "share": round(share, 3), "correlation": round(score, 4)}, text)
    else:
        off = e - a * float(a @ e) / float(a @ a)
        level = 10 * np.log10(float(e @ e) / max(float(off @ off), 1e-300))
        text = f"the same sound with another {level:.0f} dB below it: noise, compression, or another effect"
        step = lost("audio", {"how": "effect", "snr_db": round(float(level), 1), "correlation": round(score, 4)}, text)
    return applied((*layout, step), expected, actual)


def _band(expected: Array, actual: Array) -> float | None:
    """The share of its band that a sound kept, from the lowest up; None where it lost no upper end."""
    powers = []
    for sound in (expected, actual):
        spectrum = np.abs(np.fft.rfft(sound)) ** 2
        powers.append(np.add.reduceat(spectrum, np.linspace(0, spectrum.size, _BANDS, endpoint=False).astype(int)))
    kept = powers[1] / np.maximum(powers[0], 1e-30 * powers[0].max())
    edge = int(np.flatnonzero(kept > 0.5)[-1:].sum()) + 1
    whole = bool(np.all(kept[: max(edge - 2, 1)] > 0.5)) and bool(np.all(kept[edge + _SLOPE :] < 0.05))
    return edge / _BANDS if whole and edge < 0.95 * _BANDS else None
