"""Pairs with known differences: the truth is stated before anything is searched.

A difference that does not show in a pair (another border where there is none) is drawn again: each must change the
tensor by more than rounding when it alone is taken away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.pipeline.pictures import jpeg, picture
from benchmarks.pipeline.pipelines import KERNELS, Pipeline

NORMS: tuple[tuple[tuple[float, ...], tuple[float, ...]] | None, ...] = (
    None,
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)


@dataclass(frozen=True)
class Truth:
    """One difference: its kind, and parameters that the answer must hold (see `judging`)."""

    kind: str
    field: str
    expected: Any
    actual: Any


@dataclass(frozen=True)
class Pair:
    """Two tensors, what they were made of, and what is true of them. `image` is None where only tensors are given."""

    number: int
    expected: np.ndarray
    actual: np.ndarray
    image: Any
    truth: tuple[Truth, ...]
    pipelines: tuple[Pipeline, Pipeline]


Change = Callable[[np.random.Generator, Pipeline], tuple[str, dict[str, Any]]]


def _order(rng: np.random.Generator, _: Pipeline) -> tuple[str, dict[str, Any]]:
    orders = [(2, 1, 0)] * 3 + [(1, 2, 0), (0, 2, 1)]
    return "channel-order", {"order": orders[int(rng.integers(len(orders)))]}


def _layout(rng: np.random.Generator, _: Pipeline) -> tuple[str, dict[str, Any]]:
    return "layout", {"layout": str(rng.choice(["NHWC", "CHW", "HWC", "reshaped"]))}


def _scale(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    scales = [(1.0, 0.0), (1 / 255, 0.0), (1 / 256, 0.0), (float(rng.uniform(0.002, 0.03)), 0.0)]
    if side.mean is None:
        scales.append((1 / 127.5, -1.0))
    others = [s for s in scales if s != side.scale]
    return "scale", {"scale": others[int(rng.integers(len(others)))]}


def _norm(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    odd = (tuple(rng.uniform(0.2, 0.6, 3).round(4).tolist()), tuple(rng.uniform(0.15, 0.4, 3).round(4).tolist()))
    now = None if side.mean is None else (side.mean, side.std)
    others = [n for n in (*NORMS, odd, odd) if n != now]
    chosen = others[int(rng.integers(len(others)))]
    return "mean-std", {"mean": None, "std": None} if chosen is None else {"mean": chosen[0], "std": chosen[1]}


def _dtype(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    options = [{"dtype": "float64"}, {"dtype": "float16"}, {"dtype": "half and back"}]
    if side.kernel[0] == "torch" and "nearest" not in side.kernel[1] and side.digits == "float":
        options += [{"digits": "truncated"}] * 4
    return "dtype", options[int(rng.integers(len(options)))]


def _kernel(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    others = [k for k in KERNELS if k != side.kernel]
    return "resize", {"kernel": others[int(rng.integers(len(others)))]}


def _letterbox(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    if side.mode != "letterbox":  # a crop on either side is called a crop
        return "crop" if side.mode == "crop" else "letterbox", {"mode": "letterbox"}
    options = [{"pad": int(rng.choice([0, 128, 255, int(rng.integers(1, 250))]))}, {"corner": not side.corner}]
    options += [{"mode": "stretch"}, {"rectangular": not side.rectangular}]
    return "letterbox", options[int(rng.integers(len(options)))]


def _border(rng: np.random.Generator, _: Pipeline) -> tuple[str, dict[str, Any]]:
    """Differences of a letterbox that can be seen without the picture."""
    options = [{"pad": int(rng.choice([0, 128, 255, int(rng.integers(1, 250))]))}, {"corner": True}]
    return "letterbox", options[int(rng.integers(len(options)))]


def _crop(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    if side.mode == "crop":
        return "crop", {"short": int(side.size * rng.uniform(1.02, 1.3))}
    return "crop", {"mode": "crop", "short": int(side.size * rng.uniform(1.0, 1.3))}


def _size(rng: np.random.Generator, side: Pipeline) -> tuple[str, dict[str, Any]]:
    others = [s for s in (224, 256, 320, 352, 416, 480, 512, 640) if s != side.size and s <= (side.short or s)]
    return "image-size", {"size": int(rng.choice(others or [side.size]))}


def _mirror(rng: np.random.Generator, _: Pipeline) -> tuple[str, dict[str, Any]]:
    return "flip", {"mirror": str(rng.choice(["horizontal", "horizontal", "vertical"]))}


def _exif(_: np.random.Generator, __: Pipeline) -> tuple[str, dict[str, Any]]:
    return "rotation", {"exif": False}


def _decoder(rng: np.random.Generator, _: Pipeline) -> tuple[str, dict[str, Any]]:
    return "decoder", {"decoder": str(rng.choice(["quick-upsample", "quick-dct"]))}


SEEN: tuple[Change, ...] = (_order, _layout, _scale, _norm, _dtype, _mirror, _border)
WITH_PICTURE: tuple[Change, ...] = (*SEEN[:-1], _kernel, _kernel, _letterbox, _letterbox, _crop, _size)
WITH_FILE: tuple[Change, ...] = (*WITH_PICTURE, _exif, _exif, _decoder, _decoder)


def pair(seed: int, number: int) -> Pair:
    """The pair of that number: drawn again until every difference shows."""
    rng = np.random.default_rng([seed, number])
    while True:
        made = _drawn(rng, number)
        if made is not None:
            return made


def _drawn(rng: np.random.Generator, number: int) -> Pair | None:
    way = rng.choice(["tensors", "array", "file"], p=[0.35, 0.35, 0.3])
    changes = {"tensors": SEEN, "array": WITH_PICTURE, "file": WITH_FILE}[str(way)]
    pixels = picture(rng)
    source: Any = pixels
    orientation = int(rng.choice([1, 1, 3, 6, 8]))
    if way == "file":
        source = jpeg(pixels, int(rng.integers(70, 96)), orientation)
    base = _base(rng, str(way))
    count = int(rng.integers(1, 4))
    picked = rng.choice(len(changes), size=count, replace=False)
    truth, merged = [], {}
    for index in picked:
        kind, fields = changes[index](rng, base)
        if merged.keys() & fields.keys() or kind in [t.kind for t in truth]:
            return None
        merged |= fields
        truth += [Truth(kind, name, getattr(base, name), value) for name, value in fields.items()]
    other = replace(base, **merged)
    if orientation == 3 and {"flip", "rotation"} <= {t.kind for t in truth}:
        return None  # half a turn and a flip are another flip
    if _ambiguous(truth, str(way)) or (way == "tensors" and _hidden_factor(truth, base, other)):
        return None
    if not _possible(base, other, pixels):
        return None
    expected, actual = base.run(source), other.run(source)
    groups = {t.kind: {f.field for f in truth if f.kind == t.kind} for t in truth}
    for fields in groups.values():
        without = replace(other, **{name: getattr(base, name) for name in fields})
        if _equal(without.run(source), actual):
            return None
    image = None if way == "tensors" else source
    return Pair(number, expected, actual, image, tuple(truth), (base, other))


def _base(rng: np.random.Generator, way: str) -> Pipeline:
    norm = NORMS[int(rng.integers(len(NORMS)))]
    if rng.random() < 0.25:
        norm = (tuple(rng.uniform(0.2, 0.6, 3).round(4).tolist()), tuple(rng.uniform(0.15, 0.4, 3).round(4).tolist()))
    mode = str(rng.choice(["letterbox", "letterbox", "stretch", "crop"]))
    size = int(rng.choice([224, 320, 416, 640, 640, 640]))
    return Pipeline(
        decoder=str(rng.choice(["pil", "cv2"])) if way == "file" else "pil",
        mode=mode,
        size=size,
        short=int(size * rng.uniform(1.0, 1.25)) if mode == "crop" else 0,
        kernel=KERNELS[int(rng.integers(len(KERNELS)))],
        digits=str(rng.choice(["float", "rounded"])),
        pad=int(rng.choice([114, 114, 0, 128])),
        mean=None if norm is None else norm[0],
        std=None if norm is None else norm[1],
        order=(0, 1, 2) if rng.random() < 0.7 else (2, 1, 0),
    )


def _ambiguous(truth: list[Truth], way: str) -> bool:
    """What no answer can be right about: two changes of the numbers are one where only tensors are given."""
    kinds = {t.kind for t in truth}
    layouts = {t.actual for t in truth if t.field == "layout"}
    factors = [t.actual[0] for t in truth if t.field == "scale"]
    if {"scale", "mean-std"} <= kinds and (way == "tensors" or factors[0] != 1.0):
        return True  # (k x - m) / s is (x - m / k) / (s / k): an odd factor before another norm is a norm
    # Mixed pixels show in no picture; half precision hides the last digits of what is estimated.
    return ("reshaped" in layouts and len(kinds) > 1) or {"letterbox", "crop"} <= kinds


def _hidden_factor(truth: list[Truth], base: Pipeline, other: Pipeline) -> bool:
    """Whether a factor cannot be told from another norm where only tensors are given.

    Where no channel stayed in place, and the norm goes by position and is none that anybody knows, six numbers (a
    factor and an offset for each channel) are as well another norm as a factor before an unknown one: both always fit.
    """
    moved = all(one != two for one, two in zip(base.order, other.order, strict=True))
    unknown = base.mean is not None and all(norm is None or norm[0] != base.mean for norm in NORMS)
    return unknown and moved and any(t.kind == "scale" for t in truth)


def _possible(base: Pipeline, other: Pipeline, pixels: np.ndarray) -> bool:
    return all(p.mode != "crop" or p.short >= p.size for p in (base, other)) and min(pixels.shape[:2]) > 32


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    gap = np.abs(one.astype(np.float64) - other).max()
    return bool(gap <= 2e-3 * np.ptp(one.astype(np.float64)) * (0.0005 if one.dtype != np.float16 else 1) + 0)
