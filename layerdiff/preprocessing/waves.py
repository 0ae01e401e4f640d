"""Inputs of audio models: waveforms, compared by gain, place, and sample rate."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from typing import Any

import numpy as np

from layerdiff.preprocessing.casts import cast_between
from layerdiff.preprocessing.chains import Chain, applied, gap
from layerdiff.preprocessing.processed import alike, clipped, filtered, resampled_and_padded
from layerdiff.preprocessing.steps import Step, lost

Array = np.ndarray[Any, Any]

_SHORTEST = 400
_CHANNELS = 8
_EDGE = 0.002  # the share of samples that may come out a level off


def is_wave(array: Array) -> bool:
    """Whether an array is a sound: one row of many numbers, or a few rows of it."""
    flat = array.reshape(-1, array.shape[-1]) if array.ndim else array.reshape(1, 1)
    return (
        array.ndim <= 3
        and flat.shape[0] <= _CHANNELS
        and flat.shape[1] >= _SHORTEST
        and flat.shape[1] > 16 * flat.shape[0]
    )


def compare_waves(expected: Array, actual: Array, limit: float) -> Chain | None:
    """The chain between two sounds; None where none was found."""
    rows = _laid_out(expected, actual)
    if rows is None:
        return None
    layout, x = rows
    for exact in (_gained, _moved, _cast):
        steps = exact(expected, x)
        chain = _checked((*layout, *steps), expected, actual, limit) if steps is not None else None
        if chain is not None:
            return chain
    for lossy in (_quantised, clipped, filtered, _part, _resampled, resampled_and_padded, alike):
        found = lossy(layout, expected, x, actual)
        if found is not None:
            return found
    return None


def _checked(steps: tuple[Step, ...], expected: Array, actual: Array, limit: float) -> Chain | None:
    chain = applied(steps, expected, actual)
    return chain if chain.residual <= limit else None


def _laid_out(expected: Array, actual: Array) -> tuple[tuple[Step, ...], Array] | None:
    """The candidate's axes in the expected number: added, dropped, or exchanged."""
    if expected.ndim == actual.ndim and expected.shape[:-1] == actual.shape[:-1]:
        return (), actual
    wanted, rows = expected.shape[:-1], int(np.prod(expected.shape[:-1], initial=1))
    if int(np.prod(actual.shape[:-1], initial=1)) == rows:
        shape = (*wanted, actual.shape[-1])
        parameters: dict[str, Any] = {"expected": list(expected.shape), "actual": list(actual.shape)}
        text = f"the shape is {actual.shape}, wanted {expected.shape}"
        return (Step("layout", parameters, text, f"x = x.reshape{shape}", lambda x: x.reshape(shape)),), actual.reshape(
            shape
        )
    if actual.ndim == 2 and actual.shape[0] > 16 * actual.shape[1]:
        parameters = {"expected": "CT", "actual": "TC", "how": "transpose"}
        step = Step("layout", parameters, "channels are last, wanted first", "x = x.T", lambda x: x.T)
        inner = _laid_out(expected, actual.T)
        return None if inner is None else ((step, *inner[0]), inner[1])
    if actual.ndim >= 2 and rows == 1 and actual.shape[-2] <= _CHANNELS:
        return _mono(expected, actual)
    return None


def _mono(expected: Array, actual: Array) -> tuple[tuple[Step, ...], Array]:
    """One channel of several: their mean, or the one that is like the expected sound."""
    shape, count = (*expected.shape[:-1], actual.shape[-1]), actual.shape[-2]
    e = expected.ravel().astype(np.float64)
    channels = [np.take(actual, n, axis=-2).ravel().astype(np.float64) for n in range(count)]
    scores = [_correlation(e, sound) for sound in (sum(channels) / count, *channels)]
    best = int(np.argmax(np.abs(scores)))
    parameters: dict[str, Any] = {"expected": "mono", "actual": "stereo" if count == 2 else count, "how": "channels"}
    if best == 0 or scores[best] < scores[0] + 1e-9:
        text, taken = f"{count} channels, where their mean is wanted", "mean(axis=-2)"
    else:
        parameters |= {"channel": best - 1}
        text, taken = f"{count} channels, where channel {best - 1} is wanted", f"take({best - 1}, axis=-2)"

    def apply(x: Array) -> Array:
        one: Array = x.mean(axis=-2) if "channel" not in parameters else x.take(best - 1, axis=-2)
        return one.reshape(shape)

    step = Step("audio", parameters, text, f"x = x.{taken}.reshape{shape}", apply)
    return (step,), apply(actual.astype(np.float64))


def _correlation(one: Array, other: Array) -> float:
    """The correlation of two sounds as far as both go."""
    n = min(one.size, other.size)
    a, b = one[:n] - one[:n].mean(), other[:n] - other[:n].mean()
    bottom = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / bottom if bottom > 0 else 0.0


def _gained(expected: Array, x: Array) -> tuple[Step, ...] | None:
    """One factor and perhaps an offset: integers for floats, another loudness, zero mean and unit variance."""
    if expected.shape != x.shape:
        return None
    a, e = x.ravel().astype(np.float64), expected.ravel().astype(np.float64)
    if a.std() == 0:
        return None
    middle, other = float(a.mean()), float(e.mean())
    a, e = a - middle, e - other
    gain = float(a @ e) / float(a @ a)
    offset, e = other - gain * middle, e + other
    size = float(np.abs(e).max(initial=0.0))
    nice = next(
        (f for f in (1 / 32768, 32768.0, 1 / 32767, 32767.0, 1.0, -1.0) if abs(gain / f - 1) < 1e-6), float(gain)
    )
    if abs(offset) <= 2e-6 * size:
        if nice == 1.0:
            return ()
        return (_times(nice),)
    parameters = {"factor": float(gain), "offset": float(offset), "how": "normalised"}
    text = "the samples are normalised with another mean and standard deviation"
    code = f"x = x * {float(gain)!r} + {float(offset)!r}"
    return (Step("mean-std", parameters, text, code, lambda x: x * gain + offset),)


def _moved(expected: Array, x: Array) -> tuple[Step, ...] | None:
    """Cut off or padded at its ends: the expected sound is a part of the candidate's, or that with silence around."""
    e, a = (np.atleast_2d(v.reshape(-1, v.shape[-1])).astype(np.float64) for v in (expected, x))
    n = 1 << int(np.ceil(np.log2(e.shape[1] + a.shape[1])))
    product = np.fft.rfft(e[0] - e[0].mean(), n) * np.conj(np.fft.rfft(a[0] - a[0].mean(), n))
    peaks = np.fft.irfft(product / (np.abs(product) + 1e-9 * np.abs(product).max() + 1e-300), n)
    at = int(np.argmax(peaks))
    shift = at if at <= e.shape[1] else at - n
    low, high = max(0, shift), min(e.shape[1], a.shape[1] + shift)
    if high - low < max(16, min(e.shape[1], a.shape[1]) // 2) or (shift == 0 and e.shape[1] == a.shape[1]):
        return None
    length = e.shape[1]
    step = _placed_in(shift, low, high, length, a.shape[1])
    both = expected[..., low:high], step.apply(x.astype(np.float64))[..., low:high]
    return (step, *(_gained(*both) or ()))


def _placed_in(shift: int, low: int, high: int, length: int, have: int) -> Step:
    def apply(x: Array) -> Array:
        made = np.zeros((*x.shape[:-1], length))
        made[..., low:high] = x[..., low - shift : high - shift]
        return made

    lines = [
        f"made = np.zeros((*x.shape[:-1], {length}))",
        f"made[..., {low}:{high}] = x[..., {low - shift}:{high - shift}]",
        "x = made",
    ]
    parameters = {"how": "window", "shift": shift, "expected": length, "actual": have, "from": low, "to": high}
    text = (
        f"the sound has {have} samples, wanted {length}"
        if have != length
        else f"the sound starts {-shift} samples late"
    )
    return Step("audio", parameters, text, "\n".join(lines), apply)


def _cast(expected: Array, x: Array) -> tuple[Step, ...] | None:
    """16-bit levels on the expected side only."""
    if expected.shape != x.shape or expected.dtype.kind != "f":
        return None
    e = expected.reshape(1, -1).astype(np.float64) * 32768
    a = x.reshape(1, -1).astype(np.float64) * 32768
    found = cast_between(a, e)
    if found is None or found.lattice is not None:
        return None
    text = f"the expected samples were {found.cast.summary} (16 bits)"
    code = f"x = {found.cast.code.format(x='(x * 32768)')} / 32768"
    return (Step("dtype", {"how": found.cast.how}, text, code, lambda x: found.cast.made(x * 32768) / 32768),)


def _quantised(layout: tuple[Step, ...], expected: Array, x: Array, actual: Array) -> Chain | None:
    """16-bit samples of what the reference has as floats: verified from that side."""
    if expected.shape != x.shape or expected.dtype.kind != "f":
        return None
    numbers = expected.astype(np.float64)
    units = [
        (factor, unit) for factor in (32768.0, 32767.0) for unit in (1.0, 1 / factor)
    ]  # integers, or divided again
    for factor, unit in units:
        for how, made in (("rounded", np.rint(numbers * factor)), ("truncated", np.trunc(numbers * factor))):
            off = np.abs(np.clip(made, -32768, 32767) * unit - x)
            # A product in float32 may come out on the other side of a whole number.
            if np.mean(off > 1e-6 * unit) <= _EDGE and off.max() <= 1.001 * unit:
                step = lost("dtype", {"how": how, "bits": 16}, f"the samples were {how} to 16 bits")
                steps = (*layout, step, *(() if unit != 1.0 else (_times(1 / factor),)))
                return replace(applied(steps, expected, actual), reproduced=float(off.max()))
    return None


def _times(factor: float) -> Step:
    text = f"the samples are {1 / factor:.6g} times what they should be"
    return Step("scale", {"factor": factor, "offset": 0.0}, text, f"x = x * {factor!r}", lambda x: x * factor)


def _part(layout: tuple[Step, ...], expected: Array, x: Array, actual: Array) -> Chain | None:
    """A part of the expected sound, perhaps at another place: verified where both have it."""
    moved = _moved(expected, x)
    if moved is None:
        return None
    low, high = moved[0].parameters["from"], moved[0].parameters["to"]
    made = x.astype(np.float64)
    for step in moved:
        made = step.apply(made)
    left = gap(expected[..., low:high], made[..., low:high])
    if left > 1e-5 * float(np.abs(expected).max(initial=0.0)):
        return None
    chain = applied((*layout, *moved), expected, actual)
    return Chain(chain.steps, chain.residual, left)


def _resampled(layout: tuple[Step, ...], expected: Array, x: Array, actual: Array) -> Chain | None:
    """Another sample rate: the one is the other resampled, by whichever routine makes it."""
    long = max(expected.shape[-1], x.shape[-1])
    ratio = Fraction(expected.shape[-1], x.shape[-1]).limit_denominator(1000)
    if ratio == 1 or expected.shape[:-1] != x.shape[:-1] or long < _SHORTEST:
        return None
    parameters = {"how": "sample-rate", "ratio": [ratio.numerator, ratio.denominator]}
    text = f"the sample rate is {float(1 / ratio):.6g} times what it should be"
    best: tuple[float, Chain] | None = None
    for name, code, run in _resamplers(ratio.numerator, ratio.denominator, expected.shape[-1]):
        step = Step("audio", parameters | {"by": name}, f"{text} ({name})", code, run)
        made = run(x.astype(np.float64))
        left = gap(expected, made) if made.shape == expected.shape else float("inf")
        if best is None or left < best[0]:
            best = (left, applied((*layout, step), expected, actual))
    back = [run for _, _, run in _resamplers(ratio.denominator, ratio.numerator, x.shape[-1])]
    undone = [gap(x, made) for run in back if (made := run(expected.astype(np.float64))).shape == x.shape]
    size = float(np.abs(x).max(initial=0.0))
    if min(undone, default=float("inf")) <= 1e-5 * size:
        return Chain((*layout, lost("audio", parameters, text)), float("inf") if best is None else best[0], min(undone))
    if best is None:
        return None
    made = _linear(x.astype(np.float64), expected.shape[-1])
    return best[1] if _correlation(made.ravel(), expected.ravel().astype(np.float64)) > 0.7 else None


def _resamplers(up: int, down: int, length: int) -> list[tuple[str, str, Any]]:
    found: list[tuple[str, str, Any]] = [
        (
            "linear interpolation",
            (
                f"x = np.stack([np.interp(np.arange({length}) * {down / up!r}, np.arange(x.shape[-1]), row) "
                f"for row in x.reshape(-1, x.shape[-1])]).reshape(*x.shape[:-1], {length})"
            ),
            lambda x: _linear_at(x, np.arange(length) * (down / up)),
        )
    ]
    if find_spec("scipy") is not None:
        from scipy import signal

        found.append(
            (
                "scipy.signal.resample_poly",
                f"x = scipy.signal.resample_poly(x, {up}, {down}, axis=-1)",
                lambda x: np.asarray(signal.resample_poly(x, up, down, axis=-1)),
            )
        )
        found.append(
            (
                "scipy.signal.resample",
                f"x = scipy.signal.resample(x, {length}, axis=-1)",
                lambda x: np.asarray(signal.resample(x, length, axis=-1)),
            )
        )
    if up == 1:
        found.append(("every n-th sample", f"x = x[..., ::{down}]", lambda x: x[..., ::down]))
    return found


def _linear(x: Array, length: int) -> Array:
    return _linear_at(x, np.arange(length) * (x.shape[-1] / length))


def _linear_at(x: Array, at: Array) -> Array:
    rows = [np.interp(at, np.arange(x.shape[-1]), row) for row in x.reshape(-1, x.shape[-1])]
    return np.stack(rows).reshape(*x.shape[:-1], len(at))
