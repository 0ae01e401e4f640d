"""Steps that correct an input: what each does to an array, and the code that does the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerdiff.preprocessing.borders import Box
    from layerdiff.preprocessing.orientation import Turn
    from layerdiff.preprocessing.planes import Axes
    from layerdiff.preprocessing.scaling import Part

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One mismatch and its correction; `apply` and `code` do the same to the candidate's input."""

    kind: str
    parameters: Mapping[str, Any]
    summary: str
    code: str
    apply: Callable[[Array], Array]


def lost(kind: str, parameters: Mapping[str, Any], summary: str) -> Step:
    """A mismatch that nothing done to the candidate's input can undo."""
    return Step(kind, parameters, summary, "", lambda x: x)


def relaid(expected: Axes, actual: Axes, shape: tuple[int, ...]) -> Step | None:
    """The candidate's axes in the expected order; None where they are."""
    if expected == actual:
        return None
    kept = [letter for letter in expected.letters if letter in actual.letters]
    current = [letter for letter in actual.letters if letter in expected.letters]
    dropped = tuple(i for i, letter in enumerate(actual.letters) if letter not in expected.letters)
    order = tuple(current.index(letter) for letter in kept)
    added = tuple(i for i, letter in enumerate(expected.letters) if letter not in actual.letters)

    def apply(x: Array) -> Array:
        return np.expand_dims(np.squeeze(x, dropped).transpose(order), added)

    lines = [f"x = np.squeeze(x, {dropped})"] * bool(dropped)
    lines += [f"x = x.transpose{order}"] * (order != tuple(range(len(order))))
    lines += [f"x = np.expand_dims(x, {added})"] * bool(added)
    named = {"expected": expected.letters, "actual": actual.letters, "shape": list(shape)}
    missing = "N" in expected.letters and "N" not in actual.letters and len(lines) == 1 and not dropped
    text = "the batch axis is missing" if missing else f"the layout is {actual.letters}, wanted {expected.letters}"
    return Step("layout", named, text, "\n".join(lines), apply)


def reshaped(expected: Axes, shape: tuple[int, ...], *, channels_last: bool) -> Step:
    """Pixels that were reshaped into the expected shape where they should have been transposed."""
    last = expected.letters.replace("C", "") + "C"
    first = "NCHW"[4 - len(expected.letters) :]
    made = last if channels_last else first
    sizes = dict(zip(expected.letters, shape, strict=True))
    before = tuple(sizes[letter] for letter in made)
    order = tuple(made.index(letter) for letter in expected.letters)

    def apply(x: Array) -> Array:
        return x.reshape(before).transpose(order)

    text = f"pixels in {made} order were reshaped to {expected.letters}, which mixes them, where a transpose was wanted"
    parameters = {"expected": expected.letters, "actual": made, "shape": list(shape), "how": "reshape"}
    return Step("layout", parameters, text, f"x = x.reshape{before}.transpose{order}", apply)


def turned(turn: Turn, axes: Axes) -> Step:
    """The candidate's picture the right way up; `turn` is what has to be done to it."""
    h, w = axes.at("H"), axes.at("W")
    return Step(turn.kind, turn.parameters, turn.summary, turn.code(h, w), lambda x: turn.on(x, h, w))


def cropped(box: Box, axes: Axes, size: tuple[int, int]) -> Step:
    """The part of the candidate's picture that was wanted."""
    rows, columns = f"{box.top}:{box.top + box.height}", f"{box.left}:{box.left + box.width}"
    index = _index(axes, box)
    parameters = {
        "expected": {"top": box.top, "left": box.left, "height": box.height, "width": box.width},
        "actual": {"top": 0, "left": 0, "height": size[0], "width": size[1]},
    }
    text = f"the picture is not cropped: rows {rows} and columns {columns} of it are wanted"
    return Step("crop", parameters, text, f"x = x{axes.pick(H=rows, W=columns)}", lambda x: x[index])


def reordered(order: Sequence[int], axes: Axes, channels: int) -> Step | None:
    """The candidate's channels in the expected order; None where they are."""
    picked = list(order)
    if picked == list(range(channels)) or "C" not in axes.letters:
        return None
    names: dict[tuple[int, ...], str] = {(2, 1, 0): "BGR", (0, 1, 2): "RGB"}
    if len(picked) == len(set(picked)) == channels:
        back = [picked.index(i) for i in range(channels)]
        actual = names.get(tuple(back), "".join("RGBA"[i] for i in back) if channels <= 4 else str(back))
        text = f"the channels are in the order {actual} where RGB is wanted"
        if tuple(back[:3]) == (2, 1, 0):
            text = "the first and the third channel are exchanged (BGR for RGB, or the other way round)"
    else:
        text = f"{channels} channels where {len(picked)} are wanted"
    axis = axes.at("C")
    parameters = {"order": picked, "channels": channels}
    index = axes.pick(C=str(picked)) if axis != -1 else f"[..., {picked}]"
    return Step("channel-order", parameters, text, f"x = x{index}", lambda x: np.take(x, picked, axis=axis))


def rescaled(part: Part, axes: Axes) -> Step:
    """The candidate's numbers with another range, mean or std."""
    gain, bias = axes.spread(part.gain), axes.spread(part.bias)
    plain = np.all(part.bias == 0)
    code = f"x = x * {axes.spread_code(part.gain)}" + ("" if plain else f" + {axes.spread_code(part.bias)}")
    return Step(part.kind, part.parameters, part.summary, code, lambda x: x * gain + bias)


def padded(boxes: tuple[Box, Box], pads: tuple[Array, Array | None], axes: Axes, shape: tuple[int, ...]) -> Step:
    """The candidate's picture on the expected canvas: `boxes` and `pads` are those of both, expected first."""
    (wanted, got), (pad, theirs) = boxes, pads
    into, out = _index(axes, wanted), _index(axes, got)
    filled = axes.spread(pad)

    def apply(x: Array) -> Array:
        canvas = np.empty(shape, x.dtype)
        canvas[...] = filled
        canvas[into] = x[out]
        return canvas

    lines = [
        f"canvas = np.empty({shape}, x.dtype)",
        f"canvas[...] = {axes.spread_code(pad)}",
        f"canvas{_pick(axes, wanted)} = x{_pick(axes, got)}",
        "x = canvas",
    ]
    numbers = [float(f"{v:.7g}") for v in pad]
    parameters: dict[str, Any] = {
        "expected": {"pad": numbers, "top": wanted.top, "left": wanted.left, "size": list(wanted.size)},
        "actual": {
            "pad": None if theirs is None else [float(f"{v:.7g}") for v in theirs],
            "top": got.top,
            "left": got.left,
            "size": list(got.size),
        },
    }
    return Step("letterbox", parameters, _pad_text(wanted, got, pad, theirs), "\n".join(lines), apply)


def _pad_text(wanted: Box, got: Box, pad: Array, theirs: Array | None) -> str:
    parts = []
    if (wanted.top, wanted.left) != (got.top, got.left):
        parts.append(f"it starts at row {got.top}, column {got.left}, wanted {wanted.top}, {wanted.left}")
    if theirs is None or np.abs(pad - theirs).max() > 1e-4 * max(float(np.abs(pad).max()), 1e-3):
        parts.append(f"it is padded with {_few(theirs)}, wanted {_few(pad)}")
    return f"the letterbox differs: {' and '.join(parts) or 'the canvas has another size'}"


def _few(values: Array | None) -> str:
    if values is None:
        return "nothing"
    return ", ".join(dict.fromkeys(f"{v:.5g}" for v in values))


def _index(axes: Axes, box: Box) -> tuple[slice, ...]:
    cut = {"H": box.rows, "W": box.columns}
    return tuple(cut.get(letter, slice(None)) for letter in axes.letters)


def _pick(axes: Axes, box: Box) -> str:
    return axes.pick(
        H=f"{box.top}:{box.top + box.height}",
        W=f"{box.left}:{box.left + box.width}",
    )
