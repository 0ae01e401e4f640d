"""The images that pipelines are compared on: refused early where they are none."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from layerdiff.errors import InputError, MissingExtraError


def images_of(images: Any) -> Iterator[Any]:
    """Each image as it was given: one path or array (up to three axes), a batch of arrays, or an iterable of these.

    Raises
    ------
    InputError
        A path without an image, an array without pixels, or something else.

    """
    one = isinstance(images, (str, Path)) or (hasattr(images, "shape") and len(images.shape) <= 3)
    if not one and not isinstance(images, Iterable):
        raise InputError(f"images: a {type(images).__name__} is no image; give paths or arrays of pixels")
    count = 0
    for count, image in enumerate([images] if one else images, 1):
        yield _checked(image, f"images[{count - 1}]")
    if count == 0:
        raise InputError("images: there is none; give at least one path or array")


def _checked(image: Any, where: str) -> Any:
    if isinstance(image, (str, Path)):
        _check_file(Path(image), where)
        return image
    if not hasattr(image, "shape") or not hasattr(image, "dtype"):
        raise InputError(f"{where}: a {type(image).__name__} is no image; give a path or an array of pixels")
    shape = tuple(image.shape)
    array = image.detach().cpu().numpy() if hasattr(image, "detach") else np.asarray(image)
    if array.dtype.kind not in "buif" or len(shape) < 2 or 0 in shape:
        raise InputError(
            f"{where}: an array {shape} of {array.dtype} is no image; give numbers as (height, width) or "
            "(height, width, channels)"
        )
    return image


def _check_file(path: Path, where: str) -> None:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as error:
        raise MissingExtraError("reading images", "pillow") from error
    if not path.is_file():
        raise InputError(f"{where}: {path}: no such file")
    try:
        with Image.open(path) as image:
            image.verify()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{where}: {path}: not an image that can be read ({error})") from error
