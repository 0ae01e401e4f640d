"""Whether an answer is the truth: the same kinds, the right settings, and code that makes the input right."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.pipeline.alike import FLIPPED, noise_like, same_resize

if TYPE_CHECKING:
    from collections.abc import Callable

    from benchmarks.pipeline.pairs import Pair, Truth
    from layerdiff.preprocessing.comparison import InputComparison, InputMismatch


def faults(pair: Pair, found: InputComparison) -> list[str]:
    """What is wrong with an answer; nothing where it is exact."""
    wrong: list[str] = []
    json.dumps(found.to_dict(), allow_nan=False)  # every answer can be saved
    kinds, wanted = sorted(m.kind for m in found.mismatches), sorted({t.kind for t in pair.truth})
    if _renamed(kinds, pair) != _renamed(wanted, pair):
        return [f"kinds {kinds}"]
    if not found.verified:
        wrong.append("not verified")
    for truth in pair.truth:
        mismatch = next((m for m in found.mismatches if m.kind == truth.kind), None)
        if mismatch is not None and not _right(truth, mismatch, pair):
            wrong.append(f"{truth.kind} {truth.field} {truth.expected} -> {truth.actual}: {dict(mismatch.parameters)}")
    return wrong + _run(pair, found)


def _renamed(kinds: list[str], pair: Pair) -> list[str]:
    """-1..1 is 0..1 with mean and std 0.5: both names are right."""
    half = any(t.field == "scale" and -1.0 in (t.expected[1], t.actual[1]) for t in pair.truth)
    fives = any(t.field == "mean" and (0.5, 0.5, 0.5) in (t.expected, t.actual) for t in pair.truth)
    return sorted({"mean-std": "scale"}.get(k, k) for k in kinds) if half or fives else kinds


def _right(truth: Truth, found: InputMismatch, pair: Pair) -> bool:
    """Whether the parameters of a mismatch say what was planted."""
    check = _CHECKS.get(truth.field)
    try:
        return check is None or check(truth, dict(found.parameters), pair)
    except (KeyError, TypeError, IndexError):
        return False  # the answer does not say it


def _order(_: Truth, told: dict[str, Any], pair: Pair) -> bool:
    expected, actual = (pipeline.order for pipeline in pair.pipelines)
    return list(told["order"]) == [actual.index(colour) for colour in expected]


def _kernel(_: Truth, told: dict[str, Any], pair: Pair) -> bool:
    """Kernels of other names will do where they make the same of every picture, as two of "nearest" do."""
    sides = zip(pair.pipelines, ("expected", "actual"), strict=True)
    return all(same_resize(pipeline, told[side], pair) for pipeline, side in sides)


def _mode(truth: Truth, told: dict[str, Any], _: Pair) -> bool:
    """A stretch of a picture that has the shape of the canvas is a plain resize."""
    alike = {"stretch": {"stretch", "resize"}}
    return all(
        told[s]["mode"] in alike.get(m, {m}) for s, m in (("expected", truth.expected), ("actual", truth.actual))
    )


def _pad(truth: Truth, told: dict[str, Any], pair: Pair) -> bool:
    """Without the picture the border is told in the numbers of the tensor, which the code has to get right."""
    return pair.image is None or bool(np.allclose(told["actual"]["pad"], truth.actual, atol=0.05))


def _corner(truth: Truth, told: dict[str, Any], _: Pair) -> bool:
    side = "actual" if truth.actual else "expected"
    return (told[side]["top"], told[side]["left"]) == (0, 0)


def _rectangular(_: Truth, told: dict[str, Any], pair: Pair) -> bool:
    """An answer tells of the upright picture: in the tensor of one that was left turned its sides are exchanged."""
    sizes = [
        _size_of(array, pipeline.layout)
        for array, pipeline in zip((pair.expected, pair.actual), pair.pipelines, strict=True)
    ]
    answer = [told["expected"]["canvas"], told["actual"]["canvas"]]
    if any(truth.kind == "rotation" for truth in pair.truth):
        sizes, answer = [sorted(size) for size in sizes], [sorted(size) for size in answer]
    return answer == sizes


def _size(_: Truth, told: dict[str, Any], pair: Pair) -> bool:
    return list(told["actual"]) == _size_of(pair.actual, pair.pipelines[1].layout)


def _size_of(array: np.ndarray, layout: str) -> list[int]:
    return list(array.shape[-3:-1] if layout.endswith("C") else array.shape[-2:])


def _mean(truth: Truth, told: dict[str, Any], pair: Pair) -> bool:
    theirs = told.get("actual")
    if truth.actual is None or not isinstance(theirs, dict):
        return True  # -1..1, or a relation of two sides of which neither is known: the code has to get it right
    mean, order = np.broadcast_to(theirs["mean"], 3), list(pair.pipelines[1].order)
    return any(np.allclose(mean, np.array(truth.actual)[o], atol=2e-4) for o in ([0, 1, 2], order, np.argsort(order)))


def _factor(truth: Truth, told: dict[str, Any], _: Pair) -> bool:
    if truth.expected[1] or truth.actual[1]:
        return True  # -1..1 may be told as a mean and a std
    return bool(np.isclose(told["factor"], truth.expected[0] / truth.actual[0], rtol=1e-4))


def _layout(truth: Truth, told: dict[str, Any], _: Pair) -> bool:
    return told.get("how") == "reshape" if truth.actual == "reshaped" else told["actual"] == truth.actual


def _exif(_: Truth, told: dict[str, Any], pair: Pair) -> bool:
    return told["exif"] == Image.open(io.BytesIO(pair.image)).getexif()[0x0112]


def _decoder(truth: Truth, told: dict[str, Any], _: Pair) -> bool:
    option = {"quick-upsample": "fastdct=False, fastupsample=True", "quick-dct": "fastdct=True, fastupsample=False"}
    return option[truth.actual] in told["actual"]


_CHECKS: dict[str, Callable[[Truth, dict[str, Any], Pair], bool]] = {
    "order": _order,
    "kernel": _kernel,
    "mode": _mode,
    "pad": _pad,
    "corner": _corner,
    "rectangular": _rectangular,
    "size": _size,
    "short": lambda truth, told, _: min(told["actual"].get("resized", [0])) == truth.actual,
    "mirror": lambda truth, told, _: told["axis"] == truth.actual,
    "mean": _mean,
    "scale": _factor,
    "layout": _layout,
    "exif": _exif,
    "decoder": _decoder,
    "dtype": lambda truth, told, _: told["actual"] == {"half and back": "float16"}.get(truth.actual, truth.actual),
    "digits": lambda truth, told, _: told["how"] == truth.actual,
}


def _run(pair: Pair, found: InputComparison) -> list[str]:
    """What the code of an answer leaves, run as a reader would run it; what is lost leaves no code."""
    if not found.code:
        lossy = any(t.kind in ("dtype", "crop") for t in pair.truth)
        return [] if lossy else ["no code"]
    scope: dict[str, Any] = {}
    exec(found.code, scope)
    if found.source != "image":
        return _left(scope["corrected"](pair.actual), pair.expected, pair, 0)
    wrong = _left(scope["corrected"](_readable(pair.image)), pair.expected, pair, 0)
    if wrong:
        return wrong
    noise = noise_like(pair.image)
    again = _left(scope["corrected"](_readable(noise)), pair.pipelines[0].run(noise), pair, FLIPPED)
    return [f"on another picture {text}" for text in again]


def _left(made: np.ndarray, wanted: np.ndarray, pair: Pair, share: float) -> list[str]:
    """What is wrong with what some code made, but for a share of the numbers."""
    if made.shape != wanted.shape or made.dtype != wanted.dtype:
        return [f"code makes {made.dtype}{made.shape}"]
    gaps = np.abs(made.astype(np.float64) - wanted)
    span = float(np.ptp(wanted.astype(np.float64)))
    half = any("half" in str(t.actual) or t.actual == "float16" for t in pair.truth)
    limit = (1e-3 if half else 2e-4) * span
    if float(np.mean(~(gaps <= limit))) <= share:
        return []
    return [f"code leaves {float(gaps.max()) / span:.2g} of the range"]


def _readable(picture: Any) -> Any:
    return _file(picture) if isinstance(picture, bytes) else picture


def _file(data: bytes) -> str:
    import tempfile
    from pathlib import Path

    path = Path(tempfile.gettempdir()) / f"layerdiff-bench-picture-{os.getpid()}.jpg"
    path.write_bytes(data)
    return str(path)
