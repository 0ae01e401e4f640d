"""Both sides as they were given: image by image, with their raw heads, and how far apart they may be."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.pipeline.found import Detections
from layerdiff.pipeline.reading import Side, first_output, in_pixels, read_heads, read_side

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from layerdiff.pipeline.heads import Head

    Heads = tuple[Head, ...] | None

# A tenth of a thousandth of the image, 0.06 pixels at 640: healthy exports differ by about 1e-4 pixels there, files
# keep three decimals.
SHARE = 1e-4
SCORE = 1e-3
# Boxes written with few digits cannot agree better than those.
QUANTA = (1.0, 0.5, 0.1, 0.01, 0.001)
# Coordinates that stay below are shares of an image, not pixels.
LEAST_PIXELS = 4.0


@dataclass(frozen=True, slots=True)
class Given:
    """Pairs of expected and actual detections, one per image, and the raw heads of each side."""

    images: tuple[tuple[Detections, Detections], ...]
    heads: tuple[Heads, Heads]


def read_both(expected: Any, actual: Any, raw: Any, image_size: Any) -> Given:
    """Both sides, read and paired by image: by name where all images have one, else in order.

    Raises
    ------
    InputError
        A side is in no form that is known, or the two are of different images.

    """
    left, right = (read_side(side, name) for side, name in ((expected, "expected"), (actual, "actual")))
    for side, name in ((left, "expected"), (right, "actual")):
        if not side.images:
            raise InputError(f"{name}: of no image; for an image without detections give an array of shape (0, 6)")
    heads = _heads(raw, left, right)
    left, right = in_pixels(left, image_size, "expected"), in_pixels(right, image_size, "actual")
    images = _paired(left, right)
    _check_classes(images)
    return Given(tuple(images), heads)


def _heads(raw: Any, left: Side, right: Side) -> tuple[Heads, Heads]:
    if raw is None:
        return (left.heads, right.heads) if left.heads is not None and right.heads is not None else (None, None)
    raw = first_output(raw)
    pair = raw if isinstance(raw, (tuple, list)) and len(raw) == 2 and np.ndim(raw[0]) != 4 else (raw, raw)
    heads = [read_heads(one, name) for one, name in zip(pair, ("raw[0]", "raw[1]"), strict=True)]
    for found, side, name in zip(heads, (left, right), ("expected", "actual"), strict=True):
        if len(found) != len(side.images):
            raise InputError(
                f"raw: {len(found)} images in the raw output, {len(side.images)} in {name}; "
                "give the heads of the same images"
            )
    return heads[0], heads[1]


def _paired(left: Side, right: Side) -> list[tuple[Detections, Detections]]:
    names = [[image.name for image in side.images] for side in (left, right)]
    if all(all(some) and len(set(some)) == len(some) for some in names):
        if not set(names[0]) & set(names[1]) and left.count and right.count:
            raise InputError(
                f"expected is of images {_few(names[0])}, actual of {_few(names[1])}; they must be of the same images"
            )
        by_name = [{image.name: image for image in side.images} for side in (left, right)]
        order = dict.fromkeys([*names[0], *names[1]])
        return [tuple(some.get(name) or _nothing(name) for some in by_name) for name in order]  # type: ignore[misc]
    if len(left.images) != len(right.images):
        raise InputError(
            f"expected is of {len(left.images)} images, actual of {len(right.images)}; "
            "give both for the same images, in one order"
        )
    one = len(left.images) == 1
    numbered = enumerate(zip(left.images, right.images, strict=True))
    given = [(e.name or a.name or ("" if one else str(number)), e, a) for number, (e, a) in numbered]
    return [(replace(e, name=name), replace(a, name=name)) for name, e, a in given]


def _nothing(name: str) -> Detections:
    return Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64), name)


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")


def _check_classes(images: Sequence[tuple[Detections, Detections]]) -> None:
    kinds = [{image[side].classes.dtype.kind in "US" for image in images if len(image[side])} for side in (0, 1)]
    if kinds[0] and kinds[1] and kinds[0] != kinds[1]:
        raise InputError("one side has class names, the other class numbers; give both the same")


def tolerances(
    images: Sequence[tuple[Detections, Detections]], given: tuple[float, float] | None
) -> tuple[float, float]:
    """What a box edge, in the units of the boxes, and a score may differ by."""
    if given is not None:
        if len(given) != 2 or not all(value >= 0 for value in given):
            raise InputError(f"tolerance: wanted (pixels, score), both at least 0, got {given!r}")
        return float(given[0]), float(given[1])
    extent = max((side.extent for image in images for side in image), default=0.0)
    sides = [np.concatenate([image[n].boxes.ravel() for image in images]) for n in (0, 1)]
    return max(SHARE * extent, *(_quantum(side) for side in sides)), SCORE


def _quantum(numbers: NDArray[np.float64]) -> float:
    """The step in which boxes are written, where they are written with few digits; 0 otherwise."""
    finite = numbers[np.isfinite(numbers)]
    if finite.size < 8 or not np.abs(finite).max() > LEAST_PIXELS:
        return 0.0
    return next((q for q in QUANTA if np.all(np.abs(finite / q - np.round(finite / q)) < 1e-6)), 0.0)
