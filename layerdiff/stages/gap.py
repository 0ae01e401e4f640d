"""How far apart two values of one stage are: images, tensors, heads, detections, and nests of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.pipeline.compare import match_detections
from layerdiff.pipeline.reading import BOXES, CLASSES, SCORES
from layerdiff.stages.result import StageGap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from layerdiff.pipeline.detection_model import DetectionComparison

    Array = NDArray[Any]

# Floats agree up to this share of the largest one: two runtimes differ by 1e-6 to 1e-5 of it at the end of a healthy
# network, and half a step of eight bits is 2e-3.
SHARE = 1e-4
BLOCK = 1_000_000


def is_detections(value: Any) -> bool:
    """Whether a value is a set of detections: a dict or object with boxes, and one score and one class per box."""
    value = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    if isinstance(value, Mapping):
        names = set(value)
        flat = [np.ndim(array(value[name])) == 1 for name in (*SCORES, *CLASSES) if name in names]
        return bool(names & set(BOXES)) and bool(names & set(CLASSES)) and all(flat)
    found = np.asarray(array(value)) if hasattr(value, "shape") else None
    if found is not None:
        return found.ndim == 2 and found.shape[1] == 6 and bool(np.all(found[:, 5] == np.round(found[:, 5])))
    return hasattr(value, "boxes") or hasattr(value, "xyxy")


def array(value: Any) -> Any:
    """A tensor as an array; anything else as it is."""
    return value.detach().cpu().numpy() if hasattr(value, "detach") else value


def gap(expected: Any, actual: Any, image: int = 0) -> StageGap:
    """How far `actual` is from `expected`."""
    if is_detections(expected) and is_detections(actual):
        return of_detections(match_detections(expected, actual), image)
    return _nested(expected, actual, image)


def of_detections(compared: DetectionComparison, image: int = 0) -> StageGap:
    """The gap of two sets of detections."""
    lone = f"{len(compared.matches)} matched, {len(compared.missing)} missing, {len(compared.extra)} extra"
    offsets = [abs(edge) for match in compared.matches for edge in match.offset_px]
    shifts = [abs(match.score_shift) for match in compared.matches]
    text = f"{lone}; boxes within {max(offsets, default=0):.2g}, scores within {max(shifts, default=0):.2g}"
    return StageGap(compared.agrees, text, max(offsets, default=0.0), image)


def _nested(expected: Any, actual: Any, image: int) -> StageGap:
    e, a = array(expected), array(actual)
    if isinstance(e, Mapping) and isinstance(a, Mapping):
        if set(e) != set(a):
            return StageGap(
                agrees=False, detail=f"{', '.join(map(str, e))} against {', '.join(map(str, a))}", image=image
            )
        return _worst([_nested(e[key], a[key], image) for key in e], image)
    if isinstance(e, (list, tuple)) and isinstance(a, (list, tuple)):
        if len(e) != len(a):
            return StageGap(agrees=False, detail=f"{len(e)} values against {len(a)}", image=image)
        return _worst([_nested(x, y, image) for x, y in zip(e, a, strict=True)], image)
    try:
        return _arrays(np.asarray(e), np.asarray(a), image)
    except (TypeError, ValueError) as error:
        raise InputError(f"values of {type(e).__name__} and {type(a).__name__} cannot be compared ({error})") from error


def _worst(gaps: list[StageGap], image: int) -> StageGap:
    bad = [one for one in gaps if not one.agrees]
    if bad:
        return bad[0]
    return max(
        gaps, key=lambda one: one.max_abs, default=StageGap(agrees=True, detail="nothing", max_abs=0.0, image=image)
    )


def _arrays(e: Array, a: Array, image: int) -> StageGap:
    if e.dtype.kind not in "biuf" or a.dtype.kind not in "biuf":
        same = e.shape == a.shape and bool(np.all(e == a))
        return StageGap(same, "equal" if same else "other values", 0.0 if same else float("inf"), image)
    if e.shape != a.shape:
        return StageGap(agrees=False, detail=f"shapes {e.shape} against {a.shape}", image=image)
    if e.size == 0:
        return StageGap(agrees=True, detail="empty", max_abs=0.0, image=image)
    if e.dtype == a.dtype and np.array_equal(e, a):
        return StageGap(agrees=True, detail="equal", max_abs=0.0, image=image)
    whole = e.dtype.kind in "biu" and a.dtype.kind in "biu"
    scale = max((float(np.abs(x[np.isfinite(x)]).max(initial=0.0)) for x, _ in _blocks(e, e)), default=0.0)
    limit = 0.0 if whole else SHARE * scale
    worst, far, odd = 0.0, 0, 0
    for x, y in _blocks(e, a):
        finite = np.isfinite(x) & np.isfinite(y)
        special = ~finite & ((x == y) | (np.isnan(x) & np.isnan(y)))
        difference = np.abs(np.where(finite, x, 0) - np.where(finite, y, 0))
        worst = max(worst, float(difference.max()))
        far += int(np.count_nonzero(~((difference <= limit) | special)))
        odd += int(np.count_nonzero(~(finite | special)))
    text = f"max-abs {worst:.3g} of {scale:.3g}"
    text += f", {odd} values not finite on one side only" if odd else ""
    return StageGap(far == 0 and odd == 0, text if worst or odd else "equal", worst, image)


def _blocks(e: Array, a: Array) -> Iterator[tuple[Array, Array]]:
    """Pieces of two arrays as float64: an image of 8000 x 6000 pixels would need gigabytes as a whole."""
    x, y = e.reshape(-1), a.reshape(-1)
    for at in range(0, x.size, BLOCK):
        yield x[at : at + BLOCK].astype(np.float64), y[at : at + BLOCK].astype(np.float64)
