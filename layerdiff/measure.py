"""Metrics of one pair of arrays, and the verdict on them.

Floats are subtracted in float64, complex numbers in complex128; integers and booleans compare exactly; NaN and Inf
must coincide. Every comparison is written so that NaN fails.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import Apart, Overall, overall, plain
from layerdiff.limits import EPSILON, MASK_SMALLEST, Limit, allowances, rounding_limit
from layerdiff.model import Metrics
from layerdiff.shelf import Shelf

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from layerdiff.model import Noise, Tolerance, Value

    Array = NDArray[Any]

# Norms below this are measured the careful way: the squares of small numbers are zero.
# Squares of float32 numbers in float32 vanish below about 1e-38.
_TINY = 1e-12
_CANCELLED = 1e-2
OVERALL = "overall"
"""Under which it is noted what a pass over a tensor and a value showed."""


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
    return np.maximum(2.0 ** np.floor(np.log2(np.maximum(size, 2.0**-126))) * EPSILON.get(dtype, 2.0**-23), 2.0**-149)


def _ratio(top: float, bottom: float) -> float:
    if bottom > 0:
        return top / bottom
    return 0.0 if top == 0 else float("inf")
