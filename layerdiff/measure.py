"""Metrics of one pair of arrays, and the verdict on them.

Floats are subtracted in float64, complex numbers in complex128; integers and booleans compare exactly; NaN and Inf
must coincide. Every comparison is written so that NaN fails.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import Apart, Overall, largest, overall, plain
from layerdiff.model import Metrics, Noise, Tolerance
from layerdiff.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from layerdiff.model import Reference, Value

    Array = NDArray[Any]

# How much farther than its own float64 twin a healthy export may be. Two kernels that round differently are each one
# floor away from the exact result, so at most two apart; the worst of many elements, fused multiply-adds and the
# approximate exp, tanh and erf of runtimes take the rest. Calibrated on the zoo: see docs/how-it-works.md.
NOISE_FACTOR = 12.0
# A few units in the last place of the largest value: the floor of a value that happened to round exactly is not zero.
EPSILON_FACTOR = 16.0

_EPSILON = {"float16": 2.0**-10, "bfloat16": 2.0**-7, "float64": 2.0**-52}
# Of eight-bit floats every element may be one step off: a value beside the border of two steps may fall either way.
_STEP = {"float8_e4m3fn": 2.0**-3, "float8_e4m3fnuz": 2.0**-3, "float8_e5m2": 2.0**-2, "float8_e5m2fnuz": 2.0**-2}


# Attention masks are written as -1e4, -65504, -1e9 or the smallest float, among scores of ordinary size. Their rounding
# says nothing about the scores, so elements this much larger than the small ones are judged relative to themselves.
MASK_RATIO = 1e5
MASK_SMALLEST = 1e3
MASK_TOLERANCE = 1e-3
MASK_KINDS = 4
# Norms below this are measured the careful way: the squares of small numbers are zero.
# Squares of float32 numbers in float32 vanish below about 1e-38.
_TINY = 1e-12
_CANCELLED = 1e-2
OVERALL = "overall"
"""Under which it is noted what a pass over a tensor and a value showed."""


def mask_like(array: Array) -> NDArray[np.bool_]:
    """Which elements of a float array are mask constants rather than numbers of the ordinary size of the rest."""
    bound = mask_bound(array)
    if bound == np.inf:
        return np.zeros(array.shape, bool)
    with np.errstate(over="ignore"):
        return np.asarray(np.abs(array).astype(np.float64) > bound)


def mask_bound(array: Array) -> float:
    """The magnitude above which an element is a mask constant; infinity where there are none."""
    if largest(array) <= MASK_SMALLEST:  # NaN is not: the rest is looked at more closely
        return np.inf
    with np.errstate(over="ignore"):
        if array.size < 2 or not (top := float(np.nanmax(np.abs(array), initial=0.0))) > MASK_SMALLEST:
            return np.inf
        picks = np.abs(array.reshape(-1)[:: max(1, array.size // 4096)]).astype(np.float64)
    picks = picks[np.isfinite(picks)]
    if picks.size and top <= MASK_RATIO * _at_most_a_tenth(picks):  # quickly told, unlike the quantile itself
        return np.inf
    if (
        np.unique(picks[picks > MASK_SMALLEST]).size > MASK_KINDS
    ):  # numbers of every size are no mask; zeros are not few
        picks = picks[picks > 0]
    return max(MASK_SMALLEST, MASK_RATIO * _a_tenth(picks)) if picks.size else np.inf


def _at_most_a_tenth(picks: Array) -> float:
    """A number that is not above the lower decile of some."""
    place = (picks.size - 1) // 10
    return float(np.partition(picks, place)[place])


def _a_tenth(picks: Array) -> float:
    """The lower decile of some numbers, as `numpy.quantile` has it, which takes ten times as long for a few."""
    before = int(place := (picks.size - 1) * 0.1)
    behind = min(before + 1, picks.size - 1)
    low, high = np.partition(picks, (before, behind))[[before, behind]]
    share = place - before
    return float(low + (high - low) * share if share < 0.5 else high - (high - low) * (1 - share))


@dataclass(frozen=True, slots=True)
class Limit:
    """What is allowed for a value: ``atol + rtol * |expected|``, where `atol` may differ from row to row."""

    rtol: float
    atol: float | Array


def limit_for(expected: Array, dtype: str, noise: Noise | None) -> float | Array:
    """The largest absolute error that rounding explains, in the units of the values; for each row where rows differ."""
    if expected.dtype.kind not in "fc":
        return 0.0
    scale = scale_of(expected)
    floor = 0.0 if noise is None else (noise.max_abs if noise.rows is None else noise.rows)
    return NOISE_FACTOR * floor + EPSILON_FACTOR * _EPSILON.get(dtype, 2.0**-23) * scale


def scale_of(expected: Array) -> float:
    """The largest magnitude without what is not finite and without mask constants."""
    scale = largest(expected)
    if scale <= MASK_SMALLEST:
        return scale
    finite = np.abs(expected[np.isfinite(expected) & ~mask_like(expected)])
    return float(finite.max()) if finite.size else 0.0


def rounding_limit(expected: Array, dtype: str, noise: Noise | None) -> Limit:
    """What rounding explains in every element."""
    return Limit(_STEP.get(dtype, 0.0), limit_for(expected, dtype, noise))


def own_size_limit(dtype: str) -> Limit:
    """A few units in the last place of each number, however small it is beside the others."""
    return Limit(EPSILON_FACTOR * _EPSILON.get(dtype, 2.0**-23), 0.0)


def measure(
    expected: Array,
    actual: Array,
    *,
    dtype: str = "float32",
    noise: Noise | None = None,
    tolerance: Tolerance | Limit | None,
) -> Metrics:
    """Metrics of `actual` against `expected`, two arrays of one shape.

    max_abs, mean_abs and rms are in the units of the values; rel_l2 is ``|a-e| / |e|``; sqnr_db is
    ``10 log10(|e|^2 / |a-e|^2)``; max_ulp is the worst error in units in the last place of the expected element;
    norm_ratio is ``|a| / |e|``. Without a `tolerance` an element is within when its error is at most
    `limit_for`. Elements that are not finite are left out of the sums and must coincide exactly.
    """
    e, a = np.asarray(expected), np.asarray(actual)
    if e.shape != a.shape:
        raise ValueError(f"shapes differ, {e.shape} vs {a.shape}")
    allowed_for = tolerance if tolerance is not None else rounding_limit(e, dtype, noise)
    plain = _plain_metrics(e, a, dtype, allowed_for)
    if plain is not None:
        return plain
    wide = np.complex128 if "c" in (e.dtype.kind, a.dtype.kind) else np.float64
    exact_apart = (e != a) if e.dtype.kind in "iub" and a.dtype.kind in "iub" else None
    apart = _integer_gap(e, a) if exact_apart is not None else None
    e, a = e.astype(wide), a.astype(wide)
    finite = np.isfinite(e) & np.isfinite(a)
    same_special = ~finite & ((e == a) | (np.isnan(e) & np.isnan(a)))
    with np.errstate(invalid="ignore", over="ignore"):
        gap = np.where(finite, np.abs(a - e), 0.0)
    if apart is not None:
        gap = apart
    allowed = allowances(np.where(finite, e, 0.0), allowed_for)
    good = (finite & (gap <= allowed)) | same_special
    if exact_apart is not None:
        good &= ~exact_apart
    mismatches = int(np.count_nonzero(~finite & ~same_special))
    ranked = np.where(~finite & ~same_special, np.inf, gap)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = np.where(ranked > 0, ranked / allowed, 0.0)
    worst = tuple(int(i) for i in np.unravel_index(int(ranked.argmax()), ranked.shape)) if ranked.size else ()
    return Metrics(
        **_sums(np.where(finite, e, 0.0), np.where(finite, a, 0.0), gap, dtype),
        within=float(np.mean(good)) if good.size else 1.0,
        worst_index=worst,
        nonfinite_expected=int(np.count_nonzero(~np.isfinite(e))),
        nonfinite_actual=int(np.count_nonzero(~np.isfinite(a))),
        nonfinite_mismatches=mismatches,
        limit=float(allowed[worst]) if ranked.size else 0.0,
        times_limit=float(times.max()) if times.size else 0.0,
        agrees=bool(np.all(good)),
    )


def _plain_metrics(e: Array, a: Array, dtype: str, allowed: Tolerance | Limit) -> Metrics | None:
    """The metrics in one pass over blocks that fit into the processor's cache; None for what is not so simple.

    Simple are finite float32 numbers of ordinary size with one limit for all of them, or one for each row.
    """
    if dtype != "float32" or allowed.rtol != 0 or not plain(e, a):
        return None
    seen = overall(e, a, float(np.min(allowed.atol)), MASK_SMALLEST)
    return None if seen is None else _told(e, seen, lambda worst: _against(e, a, allowed.atol, seen, worst))


def _told(e: Array, seen: Overall, judged: Callable[[tuple[int, ...]], tuple[float, float, int]]) -> Metrics | None:
    """The metrics that a pass over two arrays gives; None where squares in single precision do not tell them."""
    grown = 2 * seen.products + seen.squares_gap  # |a|^2 - |e|^2, without the cancellation
    squares_a = seen.squares_e + grown
    norm_e, norm_a, norm_gap = (float(np.sqrt(max(x, 0.0))) for x in (seen.squares_e, squares_a, seen.squares_gap))
    if not (norm_e > _TINY and norm_a > _TINY and (norm_gap > _TINY or seen.max_abs == 0)):
        return None  # squares may have vanished
    if not norm_a > _CANCELLED * norm_e:
        return None  # nothing is left of the digits
    worst = tuple(int(i) for i in np.unravel_index(seen.worst, e.shape))
    limit, times, within = judged(worst)
    return Metrics(
        max_abs=seen.max_abs,
        mean_abs=seen.sum_gap / e.size,
        rms=norm_gap / float(np.sqrt(e.size)),
        rel_l2=norm_gap / norm_e,
        cosine=min((seen.squares_e + seen.products) / (norm_e * norm_a), 1.0) if norm_gap > 0 else 1.0,
        sqnr_db=20 * float(np.log10(norm_e / norm_gap)) if norm_gap > 0 else float("inf"),
        max_ulp=seen.max_ulp,
        norm_ratio=float(np.sqrt(1 + grown / seen.squares_e)),
        within=within / e.size,
        worst_index=worst,
        nonfinite_expected=0,
        nonfinite_actual=0,
        nonfinite_mismatches=0,
        limit=limit,
        times_limit=times,
        agrees=within == e.size,
    )


def look(run: Shelf[str], tensor: str, value: int, expected: Array) -> None:
    """Note with a run what the metrics of one of its tensors, as a value, take; nothing where that is not simple."""
    actual = run[tensor].reshape(expected.shape)
    seen = overall(expected, actual, np.inf, MASK_SMALLEST) if plain(expected, actual) else None
    if seen is not None:
        run.notes[tensor, (value, OVERALL)] = seen
        run.notes[tensor, value] = Apart(float(np.float32(seen.max_abs)), whole=True)


def measured_in(run: Mapping[str, Array], tensor: str, value: Value, limit: Limit) -> Metrics:
    """Metrics of a tensor of a run as a value of its size; without another look where what was noted will do."""
    expected = value.array
    assert expected is not None
    seen = run.notes.get((tensor, (value.index, OVERALL))) if isinstance(run, Shelf) else None
    if isinstance(seen, Overall) and value.dtype == "float32" and limit.rtol == 0 and isinstance(limit.atol, float):
        allowed = limit.atol
        if seen.max_abs <= allowed:
            times = seen.max_abs / allowed if seen.max_abs > 0 else 0.0
            told = _told(expected, seen, lambda _: (allowed, times, expected.size))
            if told is not None:
                return told
    actual = np.ascontiguousarray(run[tensor]).reshape(expected.shape)
    return measure(expected, actual, dtype=value.dtype, tolerance=limit)


def _against(
    e: Array, a: Array, atol: float | Array, seen: Overall, worst: tuple[int, ...]
) -> tuple[float, float, int]:
    """The limit at the worst place, the most times that an element is beyond its own, and how many are within it."""
    with np.errstate(divide="ignore"):
        if np.ndim(atol) == 0:
            return float(atol), float(np.float64(seen.max_abs) / atol) if seen.max_abs > 0 else 0.0, seen.within
        allowed = np.broadcast_to(atol, (*e.shape[:-1], 1))
        gap = np.abs(np.subtract(a, e, dtype=np.float64))
        times = gap.max(axis=-1, keepdims=True) / allowed
        within = e.size if times.max() <= 1 else int(np.count_nonzero(gap <= allowed))
        return float(allowed[(*worst[:-1], 0)]), float(times.max()), within


def allowances(expected: Array, tolerance: Tolerance | Limit) -> Array:
    """The error that each element may have: ``atol + rtol * |expected|``, and more for mask constants."""
    allowed = np.broadcast_to(tolerance.atol + tolerance.rtol * np.abs(expected), expected.shape)
    if expected.dtype.kind not in "fc":
        return np.asarray(allowed)
    return np.where(mask_like(expected), np.maximum(allowed, MASK_TOLERANCE * np.abs(expected)), allowed)


def _sums(e: Array, a: Array, gap: Array, dtype: str) -> dict[str, float]:
    """The scalar metrics over arrays without NaN or Inf."""
    if gap.size == 0:
        zero = dict.fromkeys(("max_abs", "mean_abs", "rms", "rel_l2", "max_ulp"), 0.0)
        return zero | {"cosine": 1.0, "sqnr_db": float("inf"), "norm_ratio": 1.0}
    unit = max(float(np.abs(e).max()), float(np.abs(a).max())) or 1.0  # squares of huge doubles overflow
    norm_e, norm_a, norm_gap = (unit * float(np.sqrt(np.sum(np.abs(x / unit) ** 2))) for x in (e, a, gap))
    cosine = _cosine(e / unit, a / unit)
    return {
        "max_abs": float(gap.max()),
        "mean_abs": float(gap.mean()),
        "rms": norm_gap / float(np.sqrt(gap.size)),
        "rel_l2": _ratio(norm_gap, norm_e),
        "cosine": cosine,
        "sqnr_db": 20 * float(np.log10(norm_e / norm_gap)) if norm_gap > 0 < norm_e else float("inf"),
        "max_ulp": float((gap / _spacing(e, dtype)).max()),
        "norm_ratio": _ratio(norm_a, norm_e) if norm_e != norm_a else 1.0,
    }


def _integer_gap(e: Array, a: Array) -> Array:
    """Distances of integers, exact also where float64 cannot hold them."""
    if e.dtype.kind == "b" or a.dtype.kind == "b":
        return np.asarray(e != a, dtype=np.float64)
    high, low = np.maximum(e, a), np.minimum(e, a)
    if e.dtype == a.dtype:
        return np.asarray((high.astype(np.uint64) - low.astype(np.uint64)).astype(np.float64))
    return np.asarray(np.abs(e.astype(np.float64) - a.astype(np.float64)))


def _cosine(e: Array, a: Array) -> float:
    both = float(np.linalg.norm(e.reshape(-1))) * float(np.linalg.norm(a.reshape(-1)))
    if both == 0:
        return 1.0 if not e.any() and not a.any() else 0.0
    return float(np.real(np.sum(np.conj(e) * a))) / both


def _spacing(e: Array, dtype: str) -> Array:
    """The distance from each element's magnitude to the next larger number of its type."""
    size = np.abs(e)
    if dtype in ("float16", "float32", "float64"):
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.spacing(size.astype(dtype)).astype(np.float64)
        return np.where(np.isfinite(steps) & (steps > 0), steps, np.finfo(np.float64).max)
    return np.maximum(2.0 ** np.floor(np.log2(np.maximum(size, 2.0**-126))) * _EPSILON.get(dtype, 2.0**-23), 2.0**-149)


def _ratio(top: float, bottom: float) -> float:
    if bottom > 0:
        return top / bottom
    return 0.0 if top == 0 else float("inf")


def with_noise(limits: Mapping[int, Limit], floor: Mapping[int, Noise]) -> dict[int, Limit]:
    """The limits of values without a noise floor, with one that is the same for all rows."""
    noise = {index: NOISE_FACTOR * known.max_abs for index, known in floor.items()}
    return {index: Limit(limit.rtol, limit.atol + noise.get(index, 0.0)) for index, limit in limits.items()}


def limits_for(
    reference: Reference, floor: Mapping[int, Noise], tolerance: Tolerance | None, only: Iterable[int] | None = None
) -> dict[int, Limit]:
    """What is allowed for every value that has numbers, by value index: the fixed tolerance, or the noise floor's.

    For some values only, where these are given.
    """
    values = reference.values if only is None else [reference.values[index] for index in only]
    known = {v.index: v for v in values if v.held is not None}
    if tolerance is not None:
        return dict.fromkeys(known, Limit(tolerance.rtol, tolerance.atol))
    return {
        index: rounding_limit(value.array, value.dtype, floor.get(index))
        for index, value in known.items()
        if value.array is not None
    }
