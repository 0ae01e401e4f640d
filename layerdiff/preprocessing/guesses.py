"""What can be said of two inputs where no chain explains them: named, and marked as not verified."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.blocks import Integral, correlation
from layerdiff.preprocessing.borders import Box, content, whole
from layerdiff.preprocessing.chains import Chain, applied, gap, layout_steps, numeric_steps
from layerdiff.preprocessing.colour import related
from layerdiff.preprocessing.mosaics import tile_in
from layerdiff.preprocessing.orientation import TURNS
from layerdiff.preprocessing.scaling import nearest_known
from layerdiff.preprocessing.steps import Step, lost
from layerdiff.preprocessing.views import Placed, views

if TYPE_CHECKING:
    from layerdiff.preprocessing.colour import Relation
    from layerdiff.preprocessing.orientation import Turn
    from layerdiff.preprocessing.views import View

Array = np.ndarray[Any, Any]

_ALIKE = 0.85
"""A correlation of means over 32 × 32 cells from which two rectangles are taken to show the same."""
_FINE = 0.12
"""A correlation of neighbouring differences from which two pictures are taken for one, place by place."""


def guessed(nearest: Placed | None, expected: Array, actual: Array) -> Chain:
    """The likeliest explanation; that the pictures have nothing to do with each other where there is none."""
    if nearest is not None and _same_places(nearest):
        samples = nearest.samples()
        relation = _likely(nearest.relation, samples)
        steps = (*layout_steps(nearest), *numeric_steps(nearest.view, relation, samples), _difference(nearest))
        return applied(steps, expected, actual)
    for view in list(views(expected, actual))[:1]:
        found = _registered(view)
        if found is not None:
            return found
    return unrelated(expected, actual, 0.0 if nearest is None else nearest.relation.score)


def unrelated(expected: Array, actual: Array, score: float = 0.0) -> Chain:
    """That nothing which is known relates the two; `score` is the best correlation that was seen."""
    text = "the inputs are unrelated: no transformation that is known relates the two"
    step = lost("unrelated", {"correlation": round(score, 4)}, text)
    return Chain((step,), gap(expected, actual))


def _likely(relation: Relation, samples: tuple[Array, Array]) -> Relation:
    """The factors and offsets behind a relation that something else has blurred: none, known ones, or as they are."""
    span = float(np.ptp(samples[0]))
    middle = samples[1][list(relation.order)].mean(axis=1)
    moved = np.abs((relation.gain - 1) * middle + relation.bias)
    if np.all(np.abs(relation.gain - 1) < 0.1) and np.all(moved < 0.05 * span):
        return replace(relation, gain=np.ones(len(relation.gain)), bias=np.zeros(len(relation.bias)))
    return next(iter(nearest_known(relation, samples[1])), relation)


def _same_places(nearest: Placed) -> bool:
    """Whether both show the same place by place: fine detail agrees, which unrelated pictures never share."""
    if not nearest.everything and min(nearest.boxes[0].size) < 4:
        return False
    e = nearest.boxes[0].of(nearest.view.expected)[0].astype(np.float64).sum(axis=0)
    a = nearest.boxes[1].of(nearest.turned)[0].astype(np.float64).sum(axis=0)
    if e.shape != a.shape:
        return False
    fine = correlation(np.diff(e, axis=-1), np.diff(a, axis=-1)) if e.shape[-1] > 1 else 0.0
    return (nearest.relation.score > 0.5 and fine > _FINE) or fine > 2 * _FINE


def _difference(nearest: Placed) -> Step:
    """The name of a difference of two pictures that show the same at the same places."""
    e, a = nearest.samples()
    made = nearest.relation.predicted(a)
    off = made - e
    level = max(float(np.ptp(e)), 1e-30) / 255
    luma, total = off.mean(axis=0), off
    chroma = total - luma
    sizes = {"max_levels": float(np.abs(off).max() / level), "rms_levels": float(np.sqrt((off**2).mean()) / level)}
    rough = {key: round(value, 3) for key, value in sizes.items()}
    if sizes["max_levels"] <= 1.6 and sizes["rms_levels"] <= 0.8:
        text = "pixels differ by single 8-bit levels, as two libraries round when they resize or decode"
        return lost("resize", {"expected": None, "actual": None, "how": "8-bit rounding", **rough}, text)
    if len(e) == 3 and sizes["rms_levels"] < 8 and np.sqrt((luma**2).mean()) < 0.35 * np.sqrt((chroma**2).mean()):
        text = "colours differ while brightness agrees, as JPEG decoders differ that upsample colour in another way"
        return lost("decoder", {"expected": None, "actual": None, "how": "chroma", **rough}, text)
    if _of_colour_alone(e, a):
        text = "the colours were changed the same way all over the picture, as colour jitter does"
        return lost("augmentation", {"how": "colour-jitter", **rough}, text)
    text = (
        "fine detail differs while the picture is the same, as two resize kernels differ; give the image to name them"
    )
    return lost("resize", {"expected": None, "actual": None, "how": "kernel", **rough}, text)


def _of_colour_alone(expected: Array, actual: Array) -> bool:
    """Whether the expected colour follows from the candidate's colour alone: a smooth function of it fits."""
    a = (actual - actual.mean(axis=1, keepdims=True)) / np.maximum(actual.std(axis=1, keepdims=True), 1e-12)
    terms = [np.ones(a.shape[1]), *a, *(a[i] * a[j] for i in range(len(a)) for j in range(i, len(a))), *(a**3)]
    if len(a) > 1:
        terms += [a.max(axis=0), a.min(axis=0)]
    design = np.stack(terms, axis=1)
    left = expected.T - design @ np.linalg.lstsq(design, expected.T, rcond=None)[0]
    linear = expected.T - design[:, : len(a) + 1] @ np.linalg.lstsq(design[:, : len(a) + 1], expected.T, rcond=None)[0]
    spread = float(expected.var(axis=1).mean())
    return float((left**2).mean()) < 0.01 * spread and float((left**2).mean()) < 0.5 * float((linear**2).mean())


def _registered(view: View) -> Chain | None:
    """The same picture at another size or in another frame; None where no rectangle shows it."""
    e_sums = Integral.of(view.expected[0])
    best: tuple[float, Turn, Box, Box] | None = None
    for turn in TURNS:
        turned = turn.on(view.actual, -2, -1)
        a_sums = Integral.of(turned[0])
        for e_box, a_box in _frames(view.expected, turned):
            score = correlation(e_sums.grid(_tuple(e_box)), a_sums.grid(_tuple(a_box)))
            if best is None or score > best[0] + 0.01:
                best = (score, turn, e_box, a_box)
    if best is None or best[0] < _ALIKE:
        return _other_window(view, e_sums) or _tile(view)
    _, turn, e_box, a_box = best
    return _approximate(view, turn, (e_box, a_box))


def _frames(expected: Array, turned: Array) -> list[tuple[Box, Box]]:
    e, a = (list(dict.fromkeys((whole(x), content(x[0])))) for x in (expected, turned))
    return list(product(e, a))


def _tuple(box: Box) -> tuple[float, float, float, float]:
    return box.top, box.left, box.height, box.width


def _other_window(view: View, e_sums: Integral) -> Chain | None:
    """One of the two is a window from the middle of the other, at another scale: a centre crop against a stretch."""
    a_sums = Integral.of(view.actual[0])
    best: tuple[float, str, tuple[float, float]] | None = None
    for side, (outer, inner) in (("actual", (a_sums, e_sums)), ("expected", (e_sums, a_sums))):
        h, w = outer.size
        small = inner.grid((0, 0, *inner.size))
        for fy, fx in product(np.linspace(0.4, 1, 25), repeat=2):
            window = outer.grid((h * (1 - fy) / 2, w * (1 - fx) / 2, h * fy, w * fx))
            score = correlation(window, small)
            if best is None or score > best[0]:
                best = (score, side, (float(fy), float(fx)))
    if best is None or best[0] < _ALIKE:
        return None
    score, side, (fy, fx) = best
    other = "actual" if side == "expected" else "expected"
    parameters = {side: "whole", other: {"height": round(fy, 3), "width": round(fx, 3)}, "correlation": round(score, 4)}
    whose = "the candidate's" if other == "actual" else "the expected"
    text = f"{whose} picture is a centre crop, about {fy:.0%} × {fx:.0%} of the other; give the image for exact numbers"
    return Chain((lost("crop", parameters, text),), float("inf"))


def _tile(view: View) -> Chain | None:
    """The expected picture is one of several in the candidate's."""
    found = tile_in(view.expected[0], view.actual[0])
    if found is None:
        return None
    top, left, height, _width = found["box"]
    place = f"{top:.0%} from its top and {left:.0%} from its left, about {height:.0%} of its size"
    text = f"the picture is one part of the candidate's, {place} (a mosaic)"
    return Chain((lost("augmentation", found, text),), float("inf"))


def _approximate(view: View, turn: Turn, boxes: tuple[Box, Box]) -> Chain:
    """What the frames tell, without a chain that could be applied to the last digit."""
    (e_box, a_box), turned = boxes, turn.on(view.actual, -2, -1)
    e_size, a_size = view.expected.shape[-2:], turned.shape[-2:]
    samples = _resampled(view.expected, turned, boxes)
    relation = related(*samples)

    hypothesis = Placed(view, turn, boxes, relation)
    steps = list(layout_steps(hypothesis))
    framed = [box != whole(x) for box, x in ((e_box, view.expected), (a_box, turned))]
    sides = {
        "expected": {"size": list(e_size), "content": list(e_box.size)},
        "actual": {"size": list(a_size), "content": list(a_box.size)},
    }
    aspect = (a_box.height / a_box.width) / (e_box.height / e_box.width)
    if framed[0] != framed[1] or (any(framed) and abs(np.log(aspect)) > 0.05):
        names = ["a letterbox" if f else "no letterbox (a stretch or a plain resize)" for f in framed]
        steps.append(lost("letterbox", sides, f"{names[1]} of {a_size[0]} × {a_size[1]}, wanted {names[0]}"))
    if e_size != a_size:
        text = f"the picture is {a_size[0]} × {a_size[1]}, wanted {e_size[0]} × {e_size[1]}"
        steps.append(lost("image-size", sides, f"{text}; give the image to name the kernel"))
    if relation.score > 0.98:
        steps += numeric_steps(view, _likely(relation, samples), samples)
    if len(steps) == len(layout_steps(hypothesis)):
        steps.append(lost("resize", sides, "the picture was resized in another way; give the image to name it"))
    return Chain(tuple(steps), float("inf"))


def _resampled(expected: Array, turned: Array, boxes: tuple[Box, Box]) -> tuple[Array, Array]:
    """Means over cells of both boxes, channel by channel, (C, S) and (D, S)."""
    found = []
    for planes, box in ((expected[0], boxes[0]), (turned[0], boxes[1])):
        found.append(np.stack([Integral.of(plane[None]).grid(_tuple(box)).ravel() for plane in planes]))
    return found[0], found[1]
