"""What is written on a command line, as models, samples, masks and sizes."""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerdiff.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Sequence


def built(spec: str) -> tuple[Any, Any]:
    """The model that ``package.module:name`` gives, and example inputs where its builder returns some."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute:
        raise InputError(f"{spec!r}: wanted package.module:name, for instance mymodels.yolo:build")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise InputError(f"{spec!r}: cannot import {module_name} ({error}); run from the folder it is in") from error
    if not hasattr(module, attribute):
        raise InputError(f"{spec!r}: module {module_name} has no {attribute!r}")
    built = getattr(module, attribute)
    import torch

    if not isinstance(built, torch.nn.Module) and callable(built):
        built = built()
    if isinstance(built, tuple) and len(built) == 2:  # the model and its example inputs
        return built
    return built, None


def side(spec: str) -> tuple[Any, Any]:
    """One side of a diff, and example inputs where its builder returns some."""
    path = Path(spec)
    if path.suffix == ".pt2":
        import torch

        if not path.is_file():
            raise InputError(f"{path}: no such file; give the path of a file that torch.export.save wrote")
        return torch.export.load(path), None
    if path.suffix == ".onnx" or path.exists() or ":" not in spec:
        return path, None
    return built(spec)


def paired(given: Any, candidates: list[Path], images: list[Path]) -> Any:
    """The samples with what the candidate is fed for each, where that is given."""
    import layerdiff

    if not candidates:
        if images:
            raise InputError("--image is what --input and --candidate-input were made from: give both")
        return given
    files = given if isinstance(given, list) else [given]
    if len(candidates) != len(files) or len(images) not in (0, len(files)):
        raise InputError(
            f"{len(files)} samples, {len(candidates)} --candidate-input and {len(images)} --image: give one for each"
        )
    pictures: list[Path | None] = list(images) or [None] * len(files)
    sides = zip(files, candidates, pictures, strict=True)
    return [layerdiff.InputPair(expected, actual, image) for expected, actual, image in sides]


@dataclass(frozen=True, slots=True)
class Drawing:
    """How inputs are drawn at random, and whether they were asked for."""

    sizes: dict[str, int]
    seed: int
    asked: bool


def given(files: list[Path], example: Any, sides: tuple[Any, Any], drawing: Drawing) -> tuple[Any, str | None]:
    """What both sides are fed, and a sentence about it where it was drawn."""
    if files:
        return (files if len(files) > 1 else files[0]), None
    if example is not None and not drawing.asked and not drawing.sizes:
        return example, None
    source = next((side for side in sides if isinstance(side, Path)), None)
    if source is None:
        raise InputError("inputs can be drawn only for an .onnx file, which declares them; pass --inputs x.npz")
    from layerdiff.draws import draw

    drawn = draw(source, drawing.sizes, drawing.seed)
    files_only = all(isinstance(side, Path) for side in sides)  # a module has names of its own
    return drawn.inputs if files_only else tuple(drawn.inputs.values()), drawn.note


def sizes(options: Sequence[str]) -> dict[str, int]:
    """The sizes of open dimensions, by name."""
    found = {}
    for option in options:
        name, _, size = option.rpartition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise InputError(f"--size {option}: wanted NAME=N, for instance batch=4")
        found[name] = int(size)
    return found


def masks(path: Path) -> dict[str, Any]:
    """The masks in an .npz file, by name."""
    import numpy as np

    if not path.is_file():
        raise InputError(f"{path}: no such file; give an .npz file with a mask for each name")
    try:
        with np.load(path, allow_pickle=False) as content:
            return {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, TypeError) as error:  # TypeError: a bare array
        raise InputError(f"{path}: not an .npz file of plain arrays ({error})") from error


def width_height(option: str | None) -> tuple[int, int] | None:
    """The two sizes in ``WIDTHxHEIGHT``; one number stands for both."""
    if option is None:
        return None
    width, _, height = option.lower().partition("x")
    if not width.isdigit() or not (height or width).isdigit():
        raise InputError(f"--image-size {option}: wanted WIDTHxHEIGHT in pixels, for instance 1280x720")
    return int(width), int(height or width)
