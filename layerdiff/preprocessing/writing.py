"""A recipe as code to paste."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.preprocessing.kernels import UNTOUCHED
from layerdiff.preprocessing.normalisation import RANGES, scalings

if TYPE_CHECKING:
    from layerdiff.preprocessing.borders import Box
    from layerdiff.preprocessing.orientation import Turn
    from layerdiff.preprocessing.planes import Axes
    from layerdiff.preprocessing.recipes import Recipe

Array = np.ndarray[Any, Any]

_IMPORTS = (
    ("np.", "import numpy as np"),
    ("cv2.", "import cv2"),
    ("ImageOps.", "from PIL import ImageOps"),
    ("Image.", "from PIL import Image"),
    ("torch.", "import torch"),
    ("simplejpeg.", "import simplejpeg"),
)


@dataclass(frozen=True, slots=True)
class Written:
    """The lines of a recipe by what they do, and all of them as a function ``corrected``."""

    decoded: str
    placed: str
    numbers: str
    script: str


def written(recipe: Recipe, axes: Axes, dtype: str) -> Written:
    """A recipe that ends in axes and a number type, as code."""
    decoded = _decoded(recipe)
    placed, pad_first = _placed(recipe)
    numbers = _numbers(recipe)
    late = [] if pad_first or recipe.pad is None else _padded("x", recipe, recipe.pad)
    ends = [*late, *_turn(recipe.after, "x"), *_laid_out(axes)]
    argument = "path" if recipe.source.code else "image"
    body = [*decoded, *placed, *numbers, *ends, f"return x.astype(np.{dtype})"]
    text = f"def corrected({argument}):\n" + "".join(
        f"    {line}\n" for part in body for line in part.split("\n") if line
    )
    imports = [line for word, line in _IMPORTS if word in text]
    return Written(
        "\n".join(decoded), "\n".join(placed), "\n".join(numbers), "\n".join(sorted(imports)) + "\n\n\n" + text
    )


def _decoded(recipe: Recipe) -> list[str]:
    source = recipe.source
    lines = [source.code] if source.code else []
    if (
        source.code
        and not source.upright.still
        and "exif_transpose" not in source.code
        and "cv2.imread(path)" not in source.code
    ):
        lines += _turn(source.upright, "image")
    if not source.code:
        lines.append("image = image.reshape(*image.shape[:2], -1)")
    if len(recipe.relation.order) > 1 and source.pixels.shape[2] == 1:
        lines.append("image = np.repeat(image, 3, axis=2)")
    return [*lines, *_turn(recipe.before, "image")]


def _turn(turn: Turn, name: str) -> list[str]:
    return [] if turn.still else [turn.code(0, 1, name)]


def _placed(recipe: Recipe) -> tuple[list[str], bool]:
    """The lines that cut, resize and pad; whether the border is put around pixels, before the numbers change."""
    frame, lines = recipe.frame, []
    if frame.cut.top or frame.cut.left or frame.cut.size != recipe_size(recipe):
        lines.append(f"image = image{_slice(frame.cut)}")
    if recipe.kernel is not UNTOUCHED:
        lines.append(recipe.kernel.code.format(h=frame.size[0], w=frame.size[1]))
        lines.append("image = image.reshape(*image.shape[:2], -1)" if recipe.source.pixels.shape[2] == 1 else "")
    if frame.window.size != frame.size:
        lines.append(f"image = image{_slice(frame.window)}")
    if recipe.pad is None:
        return [line for line in lines if line], True
    levels = (recipe.pad - recipe.relation.bias) / recipe.relation.gain
    whole = bool(
        np.all(np.abs(levels - np.rint(levels)) < 1e-3)
        and len(set(recipe.relation.order)) == recipe.source.pixels.shape[2]
    )
    if whole:
        by_colour = np.empty(len(levels))
        by_colour[list(recipe.relation.order)] = np.rint(levels)
        lines += _padded("image", recipe, by_colour)
    return [line for line in lines if line], whole


def recipe_size(recipe: Recipe) -> tuple[int, int]:
    """The size of the picture before it is cut."""
    h, w = recipe.source.pixels.shape[:2]
    swapped = recipe.source.upright.transpose != recipe.before.transpose
    return (w, h) if swapped else (h, w)


def _slice(box: Box) -> str:
    return f"[{box.top}:{box.top + box.height}, {box.left}:{box.left + box.width}]"


def _padded(name: str, recipe: Recipe, values: Array) -> list[str]:
    height, width = recipe.frame.canvas
    numbers = [float(v) for v in values]
    fill = repr(numbers[0] if len(set(numbers)) == 1 else numbers)
    return [
        f"canvas = np.empty(({height}, {width}, {name}.shape[2]), {name}.dtype)",
        f"canvas[:] = {fill}",
        f"canvas{_slice(recipe.frame.target)} = {name}",
        f"{name} = canvas",
    ]


def _numbers(recipe: Recipe) -> list[str]:
    relation = recipe.relation
    order = list(relation.order)
    straight = order == list(range(recipe.source.pixels.shape[2]))
    lines = ["x = image.astype(np.float64)" if straight else f"x = image[:, :, {order}].astype(np.float64)"]
    found = scalings(relation.gain, relation.bias)[0]
    factor, offset = found.factor, found.offset
    gain, bias = found.affine(len(order))
    if not np.all(
        np.abs(gain - relation.gain) * 255 + np.abs(bias - relation.bias)
        < 2e-6 * (np.abs(relation.gain) * 255 + np.abs(relation.bias))
    ):
        return [*lines, f"x = x * {_list(relation.gain)} + {_list(relation.bias)}"]
    if (factor, offset) == RANGES["0..1"]:
        lines.append("x = x / 255")
    elif (factor, offset) == RANGES["-1..1"]:
        lines.append("x = x / 127.5 - 1")
    elif (factor, offset) != RANGES["0..255"]:
        lines.append(f"x = x * {factor!r}")
    if found.norm.name != "none":
        lines.append(f"x = (x - {_list(np.array(found.norm.mean))}) / {_list(np.array(found.norm.std))}")
    return lines


def _list(values: Array) -> str:
    numbers = [float(v) for v in values]
    return repr(numbers[0]) if len(set(numbers)) == 1 else f"np.array({numbers})"


def _laid_out(axes: Axes) -> list[str]:
    letters = axes.letters
    if "C" not in letters:
        lines = ["x = x[:, :, 0]"]
    else:
        lines = ["x = x.transpose(2, 0, 1)"] if letters.endswith("CHW") else []
    return [*lines, "x = x[None]"] if letters.startswith("N") else lines
