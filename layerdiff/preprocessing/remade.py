"""Two inputs against the picture they were made from: the settings in which their recipes differ."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.frames import Frame
from layerdiff.preprocessing.halves import is_half
from layerdiff.preprocessing.identify import identify
from layerdiff.preprocessing.kernels import TRUNCATED, UNTOUCHED
from layerdiff.preprocessing.likely import unturned
from layerdiff.preprocessing.normalisation import snapped
from layerdiff.preprocessing.orientation import EXIF, STILL, TURNS, Turn, back, same
from layerdiff.preprocessing.recipes import Recipe, Workshop, with_kernel_of
from layerdiff.preprocessing.scaling import closest
from layerdiff.preprocessing.steps import Step
from layerdiff.preprocessing.writing import Written, written

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.preprocessing.planes import Axes

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """One side: its planes (C, H, W), how they were made, and what that leaves as a share of their range."""

    planes: Array
    recipe: Recipe
    left: float


@dataclass(frozen=True, slots=True)
class Remade:
    """Both sides made again."""

    shop: Workshop
    expected: Made
    actual: Made

    def steps(self, axes: Axes, dtype: str) -> tuple[tuple[Step, ...], Written]:
        """The differences in the order in which the settings are applied, and the expected recipe as code."""
        code = written(self.expected.recipe, axes, dtype)
        return tuple(_differences(self, code)), code


def remade(shop: Workshop, expected: Array, actual: Array) -> tuple[Made | None, Made | None]:
    """How both planes (C, H, W) were made; None for a side that no recipe makes again."""
    ours, left = identify(shop, expected, precision(expected))
    mine = None if ours is None else Made(expected, ours, left)
    theirs, other = identify(shop, actual, precision(actual), ours)
    return mine, None if theirs is None else Made(actual, theirs, other)


def precision(planes: Array) -> float:
    """What a number format leaves of the numbers, as a share of their range; 0 where they have all their digits."""
    return 1e-3 if is_half(planes) else 0.0


def _differences(both: Remade, code: Written) -> Iterator[Step]:
    e, a = _lying(both.expected.recipe), _lying(both.actual.recipe)
    if e.turn != a.turn and _mirrored(e.frame, a.frame):  # what is odd lies on the other side when it is turned
        a = replace(a, frame=e.frame)
    if e.source.decoder != a.source.decoder:
        parameters = {"expected": e.source.decoder, "actual": a.source.decoder}
        yield _step("decoder", parameters, f"decoded by {a.source.decoder}, wanted {e.source.decoder}", code.decoded)
    yield from _turned(e, a, code)
    yield from _placed(e, a, code, both)
    yield from _resized(both, code)
    if e.relation.order != a.relation.order:
        yield _reordered(e, a, code)
    yield from _scaled(e, a, code, blurred=any(precision(side.planes) for side in (both.expected, both.actual)))


def _lying(recipe: Recipe) -> Recipe:
    """A recipe with its frame as it would lie if the picture had not been turned.

    A picture that is turned after it was placed was placed as it lay before: there what is odd keeps its side. One that
    is turned before and placed then keeps it, too, by its own lights; but a letterbox that lies at no usual place so,
    and does where it was turned at the end, was turned at the end.
    """
    if not recipe.after.still:
        return _unturned(recipe, recipe.before)
    first, last = (_unturned(recipe, turn) for turn in (Turn(transpose=recipe.before.transpose), recipe.before))
    return last if _corner(first) == "elsewhere" != _corner(last) else first


def _unturned(recipe: Recipe, turn: Turn) -> Recipe:
    """A recipe with its frame as it lies before a turn."""
    if turn.still:
        return recipe
    frame, swap = recipe.frame, turn.transpose
    size, canvas = (pair[::-1] if swap else pair for pair in (frame.size, frame.canvas))
    full = recipe.source.shown(STILL).shape[:2]
    cut, window, target = (
        unturned(box, turn, area) for box, area in ((frame.cut, full), (frame.window, size), (frame.target, canvas))
    )
    return replace(recipe, frame=Frame(cut, size, window, target, canvas))


def _mirrored(one: Frame, other: Frame) -> bool:
    """Whether a frame lies where another does, or where that lies in a mirror, with an odd pixel on the other side."""
    if (one.cut, one.size, one.canvas) != (other.cut, other.size, other.canvas):
        return False
    pairs = ((one.window, other.window, one.size), (one.target, other.target, one.canvas))
    for a, b, area in pairs:
        for first, second, length, room in ((a.top, b.top, a.height, area[0]), (a.left, b.left, a.width, area[1])):
            if a.size != b.size or second not in (first, room - length - first):
                return False
    return True


def _step(kind: str, parameters: dict[str, Any], summary: str, code: str) -> Step:
    return Step(kind, parameters, summary, code, lambda x: x)


def _turned(e: Recipe, a: Recipe, code: Written) -> Iterator[Step]:
    """How the candidate's picture has to be turned to lie like the expected one."""
    if e.turn == a.turn:
        return
    which, turn = ("candidate's", a.turn) if e.turn.still else ("expected", e.turn)
    stored = a.source.upright
    ignored = None if stored.still else back(stored)
    rest = turn
    plain = turn.kind == "flip"  # one flip is less than a rotation and another flip
    if ignored is not None and not plain and turn.transpose == ignored.transpose and (e.turn.still or a.turn.still):
        tag = EXIF[stored]
        undone = stored if which == "candidate's" else ignored
        parameters = undone.parameters | {"degrees": undone.degrees, "exif": tag}
        text = f"the {which} picture lies as it is stored: its EXIF orientation {tag} was not applied"
        rest = next(t for t in TURNS if same(t, ignored, turn))
        if not rest.transpose and not (rest.flip_rows and rest.flip_columns):
            yield _step("rotation", parameters, text, code.decoded)
        else:
            rest = turn
    if not rest.still:
        undone = back(rest) if which == "candidate's" else rest
        kind = "rotation" if undone.kind == "layout" else undone.kind
        yield _step(kind, undone.parameters | {"side": which.partition("'")[0]}, undone.summary, code.decoded)


def _placed(e: Recipe, a: Recipe, code: Written, both: Remade) -> Iterator[Step]:
    """Letterbox against stretch against crop, their numbers, and the size of the input."""
    ours, theirs = e.frame.setting, a.frame.setting
    modes = {e.frame.mode, a.frame.mode}
    pads = [_pad(r) for r in (e, a)]
    if pads[0] is not None and pads[1] is not None and np.abs(np.subtract(pads[0], pads[1])).max() <= _pad_slack(both):
        pads[1] = pads[0]
    ours, theirs = ({**s, "pad": p} if p is not None else s for s, p in zip((ours, theirs), pads, strict=True))
    parameters = {"expected": ours, "actual": theirs}
    if len(modes - {"resize"}) == 2 or (len(modes) == 2 and not _fits(e, a)):
        kind = "crop" if "crop" in modes else "letterbox"
        words = {
            "resize": "a plain resize",
            "stretch": "a stretch",
            "letterbox": "a letterbox",
            "crop": "a centre crop",
        }
        yield _step(kind, parameters, f"{words[a.frame.mode]}, wanted {words[e.frame.mode]}", code.placed)
        if _other_size(e, a):
            yield _sized(e, a, code)
        return
    if _other_size(e, a):
        yield _sized(e, a, code)
    if modes == {"letterbox"}:
        text = _letterbox_text(e, a, pads)
        if text:
            yield _step("letterbox", parameters, f"the letterbox {text}", code.placed)
    elif modes == {"crop"} and _other_window(e, a):
        text = (
            f"the picture is resized to {_by(a.frame.size)} and cropped at {a.frame.window.top}, {a.frame.window.left}"
        )
        wanted = f"{_by(e.frame.size)} and {e.frame.window.top}, {e.frame.window.left}"
        yield _step("crop", parameters, f"{text}, wanted {wanted}", code.placed)


def _pad_slack(both: Remade) -> float:
    """By how many levels two borders may be apart that are one: more where a number format hides the last digits."""
    return 0.05 if not any(precision(side.planes) for side in (both.expected, both.actual)) else 0.25


def _fits(e: Recipe, a: Recipe) -> bool:
    """Whether "resize" is the other side's mode, where the picture happens to have the shape of the canvas."""
    plain, other = (e, a) if e.frame.mode == "resize" else (a, e)
    if other.frame.mode == "stretch":
        ratio = (plain.frame.canvas[0] / plain.frame.canvas[1]) / (other.frame.canvas[0] / other.frame.canvas[1])
        return bool(abs(np.log(ratio)) > 1e-3)
    return False


def _other_size(e: Recipe, a: Recipe) -> bool:
    """Whether the candidate's input has another size; a rectangular letterbox of one scale has not."""
    if e.frame.canvas == a.frame.canvas:
        return False
    both = "letterbox" in (e.frame.mode, a.frame.mode)
    return not (both and e.frame.size == a.frame.size)


def _sized(e: Recipe, a: Recipe, code: Written) -> Step:
    parameters = {"expected": list(e.frame.canvas), "actual": list(a.frame.canvas)}
    return _step(
        "image-size", parameters, f"the input is {_by(a.frame.canvas)}, wanted {_by(e.frame.canvas)}", code.placed
    )


def _letterbox_text(e: Recipe, a: Recipe, pads: list[list[float] | None]) -> str:
    parts = []
    if e.frame.canvas != a.frame.canvas and not _other_size(e, a):
        parts.append(f"is {_by(a.frame.canvas)} (rectangular or square), wanted {_by(e.frame.canvas)}")
    elif e.frame.canvas == a.frame.canvas:
        at = [(r.frame.target.top, r.frame.target.left) for r in (e, a)]
        if at[0] != at[1]:
            parts.append(f"starts at row {at[1][0]}, column {at[1][1]}, wanted {at[0][0]}, {at[0][1]}")
        if e.frame.size != a.frame.size:
            parts.append(f"holds {_by(a.frame.size)}, wanted {_by(e.frame.size)}")
    elif (e.frame.canvas[0] == e.frame.canvas[1]) != (a.frame.canvas[0] == a.frame.canvas[1]):
        kinds = ["square" if r.frame.canvas[0] == r.frame.canvas[1] else "rectangular" for r in (e, a)]
        parts.append(f"is {kinds[1]}, wanted {kinds[0]}")
    elif _corner(e) != _corner(a):
        parts.append(f"lies {_corner(a)}, wanted {_corner(e)}")
    if pads[0] is not None and pads[1] is not None and pads[0] != pads[1]:
        parts.append(f"is padded with {_few(pads[1])}, wanted {_few(pads[0])}")
    return " and ".join(parts)


def _corner(recipe: Recipe) -> str:
    free = [c - s for c, s in zip(recipe.frame.canvas, recipe.frame.size, strict=True)]
    at = (recipe.frame.target.top, recipe.frame.target.left)
    if all(a <= 0 for a, f in zip(at, free, strict=True) if f > 1):
        return "at the top left"
    return "in the middle" if all(abs(2 * a - f) <= 2 for a, f in zip(at, free, strict=True)) else "elsewhere"


def _other_window(e: Recipe, a: Recipe) -> bool:
    """Whether another part of the picture is shown; two canvases may show windows of one resize, or one part of it."""
    if e.frame.canvas == a.frame.canvas:
        return (e.frame.cut, e.frame.size, e.frame.window) != (a.frame.cut, a.frame.size, a.frame.window)
    shares = [(f.window.height / f.size[0], f.window.width / f.size[1]) for f in (e.frame, a.frame)]
    alike = np.abs(np.subtract(shares[0], shares[1])).max() < 1.5 / min(*e.frame.size, *a.frame.size)
    return bool(not alike) and (e.frame.cut, e.frame.size) != (a.frame.cut, a.frame.size)


def _pad(recipe: Recipe) -> list[float] | None:
    """The border in levels of the picture, by channel of the picture; one number where all are the same."""
    if recipe.pad is None:
        return None
    levels = (recipe.pad - recipe.relation.bias) / recipe.relation.gain
    values = [round(float(v), 3) + 0.0 for v in levels]
    return [v for _, v in sorted(zip(recipe.relation.order, values, strict=True))]


def _few(values: list[float] | None) -> str:
    return ", ".join(dict.fromkeys(f"{v:g}" for v in values or ()))


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def _resized(both: Remade, code: Written) -> Iterator[Step]:
    """Another kernel, or whole levels on one side only."""
    e, a = both.expected.recipe, both.actual.recipe
    ours, theirs = e.kernel, a.kernel
    if UNTOUCHED in (ours, theirs) or ours is theirs:
        return
    parameters: dict[str, Any] = {"expected": ours.setting, "actual": theirs.setting}
    like = next((k for k in both.shop.kernels if k.name == theirs.name and k.digits == ours.digits), None)
    if like is not None and ours.name != theirs.name:  # the same but for what became of the digits?
        tried = replace(a, kernel=like)
        if with_kernel_of(both.shop, both.expected.recipe, tried, both.expected.planes):
            ours = like
            parameters["expected"] = ours.setting
    if ours is theirs:
        return
    if ours.name == theirs.name:
        text = f"pixels are {_digits(theirs.digits)} after the resize, wanted {_digits(ours.digits)}"
        parameters |= {"how": theirs.digits if theirs.digits == TRUNCATED else ours.digits}
        yield _step("dtype", parameters, text, code.placed)
        return
    if with_kernel_of(both.shop, both.expected.recipe, a, both.expected.planes) or with_kernel_of(
        both.shop, both.actual.recipe, e, both.actual.planes
    ):
        return
    yield _step("resize", parameters, f"resized with {theirs.name}, wanted {ours.name}", code.placed)
    if (ours.digits == TRUNCATED) != (theirs.digits == TRUNCATED):
        told = {"expected": ours.digits, "actual": theirs.digits, "how": TRUNCATED}
        text = f"pixels are {_digits(theirs.digits)} after the resize, wanted {_digits(ours.digits)}"
        yield _step("dtype", told, text, code.placed)


def _digits(digits: str) -> str:
    return {"float": "kept as floats", "rounded": "rounded to 8 bits", "truncated": "truncated to 8 bits"}[digits]


def _reordered(e: Recipe, a: Recipe, code: Written) -> Step:
    ours, theirs = ("".join("RGBA"[i] for i in r.relation.order) for r in (e, a))
    order = [a.relation.order.index(i) for i in e.relation.order if i in a.relation.order]
    parameters = {"expected": ours, "actual": theirs, "order": order, "channels": len(a.relation.order)}
    return _step("channel-order", parameters, f"the channels are {theirs}, wanted {ours}", code.numbers)


def _scaled(e: Recipe, a: Recipe, code: Written, *, blurred: bool) -> Iterator[Step]:
    order = [a.relation.order.index(i) if i in a.relation.order else 0 for i in e.relation.order]
    top = 65535.0 if e.source.pixels.dtype == np.uint16 else 255.0
    unit = top / 255.0
    maps = [(r.relation.gain * unit, r.relation.bias) for r in (e, a)]
    if blurred:  # half precision hides the last digits of what was estimated
        maps = [snapped(*m) for m in maps]
        if np.allclose(maps[0][0], maps[1][0][order], rtol=3e-4) and np.allclose(
            maps[0][1], maps[1][1][order], atol=1e-3
        ):
            return
        maps[1] = _beside(maps[0], maps[1], order)
    for part in closest(maps[0], maps[1], order):
        yield _step(part.kind, dict(part.parameters), part.summary, code.numbers)


def _beside(expected: tuple[Array, Array], actual: tuple[Array, Array], order: list[int]) -> tuple[Array, Array]:
    """The candidate's map as a factor before the expected one's norm, where half precision leaves it that near.

    The norm may go by colour or by position. A map that is not near is given back as it is.
    """
    count = len(expected[0])
    if len(actual[0]) != count or sorted(order) != list(range(count)):
        return actual
    for place in (order, list(range(count))):
        ratio = actual[0][place] / expected[0]
        hidden = max(1e-3, 1e-4 * 255 * float(np.abs(actual[0]).max()))  # by a step of the largest numbers
        if np.ptp(ratio) <= 3e-4 * np.abs(ratio).max() and np.allclose(expected[1], actual[1][place], atol=hidden):
            gain, bias = np.empty(count), np.empty(count)
            gain[place], bias[place] = expected[0] * ratio.mean(), expected[1]
            return gain, bias
    return actual
