"""compare_inputs(): what relates two inputs, as the shortest chain that was applied and left rounding only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.preprocessing.chains import Chain, gap, typed
from layerdiff.preprocessing.comparison import InputComparison, InputMismatch
from layerdiff.preprocessing.direct import search
from layerdiff.preprocessing.guesses import guessed, unrelated
from layerdiff.preprocessing.halves import is_half
from layerdiff.preprocessing.planes import readings
from layerdiff.preprocessing.pointwise import half_step
from layerdiff.preprocessing.reading import arrays_of
from layerdiff.preprocessing.recipes import Workshop
from layerdiff.preprocessing.remade import Made, Remade, precision, remade
from layerdiff.preprocessing.sources import sources
from layerdiff.preprocessing.steps import lost
from layerdiff.preprocessing.tokens import are_tokens, compare_tokens, tokens_script
from layerdiff.preprocessing.views import views
from layerdiff.preprocessing.waves import compare_waves, is_wave

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.preprocessing.views import View

Array = np.ndarray[Any, Any]

FLOAT_RESIZE = 2e-4
"""The share of the range, a twentieth of an 8-bit level, that two resizes in floats may be apart."""
ROUNDING = 64
"""How many units in the last place of the largest number two libraries may differ by: a mean and a std are a few
operations, each on numbers up to eight times the result."""


def compare_inputs(expected: Any, actual: Any, *, image: Any = None) -> InputComparison:
    """What the candidate's preprocessing does differently, as the shortest chain that makes its input the expected one.

    Parameters
    ----------
    expected
        What the reference is fed: an array, a torch tensor, an ``.npy`` or ``.npz`` path, or a dict or tuple of several
        inputs. Pictures can be (N, C, H, W), (N, H, W, C), or without batch or channels.
    actual
        What the candidate is fed.
    image
        The picture that both were made from: a path, an array (H, W, 3) of RGB or (H, W), or a PIL image. With it each
        side is made again by the operations of OpenCV, PIL and torch, so that what cannot be undone (a resize kernel, a
        crop, a decoder) is named exactly.

    Raises
    ------
    InputError
        Something that is no array of numbers, or other inputs than the reference has, or no picture at `image`.

    """
    ours, theirs = arrays_of(expected, "expected"), arrays_of(actual, "actual")
    if are_tokens(ours, theirs):
        return _tokens(ours, theirs)
    if len(ours) == 1 and len(theirs) == 1:
        return _one(next(iter(ours.values())), next(iter(theirs.values())), image)
    return _several(ours, theirs, image)


def _tokens(expected: Mapping[str, Array], actual: Mapping[str, Array]) -> InputComparison:
    """The comparison of the inputs of a text model: whole numbers, so that nothing is left or all is wrong."""
    found = compare_tokens(expected, actual)
    right = all(m.verified and m.code for m in found)
    pairs = [(expected[name], actual.get(name, np.zeros(0))) for name in expected]
    left = max((gap(e, a) for e, a in pairs), default=0.0)
    proven = 0.0 if not right and all(m.verified for m in found) else None
    notes = tuple(f"the reference has no input {name!r}" for name in actual if name not in expected)
    return InputComparison(found, 0.0 if right else left, 0.0, proven, code=tokens_script(found), notes=notes)


def _several(expected: Mapping[str, Array], actual: Mapping[str, Array], image: Any) -> InputComparison:
    """The comparison of several inputs, paired by name, or by position where no name is shared."""
    names = dict(zip(expected, expected, strict=True))
    if not set(expected) & set(actual) and len(expected) == len(actual):
        names = dict(zip(expected, actual, strict=True))
    missing = [name for name, other in names.items() if other not in actual]
    if missing:
        raise InputError(
            f"actual: has no input {', '.join(missing)}; it has {', '.join(actual)}; give the same inputs to both"
        )
    found = {name: _one(expected[name], actual[other], image) for name, other in names.items()}
    worst = max(found.values(), key=lambda c: c.residual - c.limit)
    return InputComparison(
        tuple(replace(m, name=name) for name, c in found.items() for m in c.mismatches),
        worst.residual,
        worst.limit,
        next((c.reproduced for c in found.values() if c.reproduced is not None), None),
        code="\n\n".join(f"# {name}\n{c.code}" for name, c in found.items() if c.code),
        source=next((c.source for c in found.values() if c.source == "image"), "inputs"),
        notes=tuple(f"{name}: {note}" for name, c in found.items() for note in c.notes),
    )


_NOT_FROM_IMAGE = "the image does not give both inputs by any known recipe, is it theirs? They were compared without it"


def _one(expected: Array, actual: Array, image: Any) -> InputComparison:
    limit = rounding(expected)
    difference = gap(expected, actual)
    if expected.dtype == actual.dtype:
        if difference <= limit:
            return InputComparison((), difference, limit)
        if resampled_alike(expected, actual, difference):
            note = "the numbers differ by what two libraries leave that resize or normalise in floats"
            return InputComparison((), difference, difference, notes=(note,))
    holes = [~np.isfinite(x) if x.dtype.kind == "f" else np.zeros(1, bool) for x in (expected, actual)]
    if holes[0].sum() != holes[1].sum():
        return told(_holes(holes, expected, actual), limit, expected)
    if holes[0].any():
        expected, actual = (
            np.where(hole, 0, x).astype(x.dtype) for hole, x in zip(holes, (expected, actual), strict=True)
        )
    if is_wave(expected) and (is_wave(actual) or (actual.ndim == 2 and is_wave(actual.T))):
        return told(compare_waves(expected, actual, limit) or unrelated(expected, actual), limit, expected)
    if not readings(expected.shape) or not readings(actual.shape):
        return _shapes(expected, actual, limit)
    if image is not None and not _mixed(expected, actual, limit):
        found = _from_image(expected, actual, image)
        if found is not None:
            return found
    searched = search(expected, actual, limit)
    chain = searched.chain or guessed(searched.nearest, expected, actual)
    return replace(told(chain, limit, expected), notes=() if image is None else (_NOT_FROM_IMAGE,))


def _mixed(expected: Array, actual: Array, limit: float) -> bool:
    """Whether pixels were reshaped where a transpose was wanted, and nothing else: no picture shows what that makes."""
    mixed = (v for v in views(expected, actual) if v.layout is not None and "how" in v.layout.parameters)
    return any(gap(view.expected, view.actual) <= limit for view in mixed)


def _holes(holes: list[Array], expected: Array, actual: Array) -> Chain:
    """That one side has NaN or infinity where the other has numbers; nothing else can be told then."""
    counts = [int(hole.sum()) for hole in holes]
    text = f"NaN or infinity at {counts[1]} places, wanted at {counts[0]}: look at what made them first"
    return Chain(
        (lost("dtype", {"expected": counts[0], "actual": counts[1], "how": "nonfinite"}, text),), gap(expected, actual)
    )


def _shapes(expected: Array, actual: Array, limit: float) -> InputComparison:
    """Neither pictures, sounds nor tokens: compared as numbers, one factor and one offset for all."""
    if expected.size == actual.size and expected.size > 1:
        flat = (expected.reshape(1, 1, 1, -1), actual.reshape(1, 1, 1, -1))
        chain = search(*flat, limit).chain
        if chain is not None and expected.shape == actual.shape:
            return told(chain, limit, expected)
    return told(unrelated(expected, actual), limit, expected)


def _from_image(expected: Array, actual: Array, image: Any) -> InputComparison | None:
    """The difference of the recipes of both sides; None where one of them was not found."""
    for view in views(expected, actual):
        if (view.layout is not None and "how" in view.layout.parameters) or len(view.expected) != 1:
            continue
        channels = {view.expected.shape[1], view.actual.shape[1]}
        if len(channels) != 1 or channels - {1, 3, 4}:
            continue
        shop = Workshop(sources(image, channels.pop()))
        sides = remade(shop, view.expected[0], view.actual[0])
        if sides[0] is not None and sides[1] is not None and _found(sides[0]) and _found(sides[1]):
            return _remade(Remade(shop, sides[0], sides[1]), view, expected, actual)
    return None


def _found(side: Made) -> bool:
    return side.left <= max(1e-4, precision(side.planes))


def _remade(both: Remade, view: View, expected: Array, actual: Array) -> InputComparison:
    """What differs in the recipes of both sides, and what the expected one leaves of the expected input."""
    steps, code = both.steps(view.axes, str(expected.dtype))
    casts = half_step(expected, actual)
    layout = (view.layout,) if view.layout is not None else ()
    all_steps = (*steps, *casts, *layout, *typed(expected, actual))
    if not all_steps:
        # Both are made by one recipe: what is left is what two libraries leave that do the same.
        left = gap(expected, actual)
        note = "the numbers differ by what two libraries leave that do the same; both were made again from the image"
        return InputComparison((), left, left, source="image", notes=(note,))
    again = both.shop.made(both.expected.recipe)
    assert again is not None
    if expected.dtype.kind in "iu":
        again = np.rint(again)
    left = gap(view.expected[0], again)
    span = float(np.ptp(view.expected[0].astype(np.float64)))
    # Two resizes in floats may differ by more than the last digits: by what a recipe may leave.
    allowed = max(rounding(expected), 1.001 * both.expected.left * span)
    mismatches = tuple(InputMismatch(s.kind, dict(s.parameters), s.code, s.summary, verified=True) for s in all_steps)
    return InputComparison(mismatches, left, allowed, code=code.script, source="image")


def resampled_alike(expected: Array, actual: Array, difference: float) -> bool:
    """Whether a difference is what is left where two libraries resize in floats: small, and without a pattern.

    Coordinates in float32 are off by 1e-4 of a pixel in pictures of 1000, which moves the result by as much of the
    range. Another factor, mean or std leaves a pattern, and half precision is told by itself.
    """
    if expected.dtype.kind != "f" or is_half(expected) != is_half(actual):
        return False
    span = float(np.ptp(expected[np.isfinite(expected)]))
    if not difference <= FLOAT_RESIZE * span:
        return False
    e, a = (x.ravel()[:: max(1, x.size // 100_000)].astype(np.float64) for x in (expected, actual))
    use = np.isfinite(e)
    slope, offset = np.polyfit(a[use], e[use], 1)
    middle = float(np.abs(a[use]).max())
    return bool(abs(slope - 1) * middle + abs(offset) <= 0.1 * FLOAT_RESIZE * span)


def rounding(expected: Array) -> float:
    """How far two inputs may be apart in the units of the expected one; nothing for integers and booleans."""
    if expected.dtype.kind != "f":
        return 0.0
    epsilon = max(float(np.finfo(np.float32).eps), float(np.finfo(expected.dtype).eps) / ROUNDING)
    size = max(abs(float(expected.min(initial=0.0))), abs(float(expected.max(initial=0.0))))
    if not np.isfinite(size):
        size = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    return ROUNDING * epsilon * size


def told(chain: Chain, limit: float, expected: Array) -> InputComparison:
    """A chain as what is told of it."""
    if chain.reproduced is not None and chain.reproduced == chain.residual:
        limit = max(limit, chain.residual)  # what float16 leaves of the numbers
    right = chain.residual <= limit
    proven = right or chain.reproduced is not None
    mismatches = tuple(InputMismatch(s.kind, dict(s.parameters), s.code, s.summary, proven) for s in chain.steps)
    return InputComparison(
        mismatches, chain.residual, limit, chain.reproduced, code=script(chain, expected) if right else ""
    )


def script(chain: Chain, expected: Array) -> str:
    """The chain as a function to paste."""
    body = [line for step in chain.steps for line in step.code.split("\n") if line]
    typed_last = chain.steps[-1].kind == "dtype" and chain.steps[-1].parameters.get("how") == "type"
    numeric = any(step.kind in ("scale", "mean-std", "augmentation", "dtype") for step in chain.steps)
    numeric = numeric or any("x * " in line for line in body)
    ends = [] if typed_last or not numeric else [f"x = x.astype(np.{expected.dtype})"]
    lines = [*(["x = x.astype(np.float64)"] if numeric else []), *body, *ends, "return x"]
    imports = "import numpy as np\n" + ("import torch\n" if any("torch." in line for line in lines) else "")
    return f"{imports}\n\ndef corrected(x):\n" + "".join(f"    {line}\n" for line in lines)
