"""Whether an answer is the truth: the same kinds, the right settings, and code that makes the input right."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.pipeline.pairs import Pair, Truth
    from layerdiff.preprocessing.comparison import InputComparison, InputMismatch

LIBRARIES = {"cv2": "OpenCV", "pil": "PIL", "torch": "torch"}


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
    parameters = dict(found.parameters)
    theirs = parameters.get("actual")
    if truth.field == "kernel" and isinstance(theirs, dict):
        sides = ((truth.expected, parameters["expected"]), (truth.actual, theirs))
        return all(_is_kernel(kernel, setting) for kernel, setting in sides)
    if truth.field == "pad" and isinstance(theirs, dict) and pair.image is not None:
        return bool(np.allclose(theirs["pad"], truth.actual, atol=0.05))
    if truth.field == "short" and isinstance(theirs, dict):
        return min(theirs.get("resized", [0])) == truth.actual
    if truth.field == "size":
        return list(theirs) == [truth.actual] * 2 or pair.pipelines[1].rectangular
    if truth.field == "mirror":
        return parameters["axis"] == truth.actual
    if truth.field == "mean" and isinstance(theirs, dict) and truth.actual is not None:
        mean = np.broadcast_to(theirs["mean"], 3)
        order = list(pair.pipelines[1].order)
        back = np.argsort(order)
        return any(np.allclose(mean, np.array(truth.actual)[o], atol=2e-4) for o in ([0, 1, 2], order, back, [2, 1, 0]))
    if truth.field == "scale" and truth.expected[1] == truth.actual[1] == 0.0:
        return bool(np.isclose(parameters["factor"], truth.expected[0] / truth.actual[0], rtol=1e-4))
    return True


def _is_kernel(kernel: tuple[str, str], setting: dict[str, Any]) -> bool:
    """Whether a setting is this kernel, or one that computes the same (all "nearest" do, and float bilinear ones)."""
    library, name = kernel
    family, _, option = name.partition(" ")
    found = setting["kernel"].partition("-")[0]
    same = found == family or {found, family} <= {"box", "area", "nearest"}
    if not same:
        return False
    alike = family in ("nearest", "area", "box") or library == "torch" or setting["library"] == "torch"
    wanted = {"": ("", "half-pixel", "floats"), "antialias": ("antialias",), "aligned": ("aligned corners",)}[option]
    return (setting["library"] == LIBRARIES[library] and setting["options"] in wanted) or alike


def _run(pair: Pair, found: InputComparison) -> list[str]:
    """What the code of an answer leaves, run as a reader would run it; what is lost leaves no code."""
    if not found.code:
        lossy = any(t.kind in ("dtype", "crop") for t in pair.truth)
        return [] if lossy else ["no code"]
    scope: dict[str, Any] = {}
    exec(found.code, scope)
    given: Any = pair.actual
    if found.source == "image":
        given = _file(pair.image) if isinstance(pair.image, bytes) else pair.image
    made = scope["corrected"](given)
    if made.shape != pair.expected.shape or made.dtype != pair.expected.dtype:
        return [f"code makes {made.dtype}{made.shape}"]
    left = float(np.abs(made.astype(np.float64) - pair.expected).max())
    span = float(np.ptp(pair.expected.astype(np.float64)))
    half = any("half" in str(t.actual) or t.actual == "float16" for t in pair.truth)
    return [] if left <= (1e-3 if half else 2e-4) * span else [f"code leaves {left / span:.2g} of the range"]


def _file(data: bytes) -> str:
    import tempfile
    from pathlib import Path

    path = Path(tempfile.gettempdir()) / "layerdiff-bench-picture.jpg"
    path.write_bytes(data)
    return str(path)
