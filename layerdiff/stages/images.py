"""Ready-made stages from a file to the network's input: read, letterbox, augment, normalise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]


class Library(str, Enum):
    """What computes a stage."""

    NUMPY = "numpy"
    TORCH = "torch"
    OPENCV = "opencv"

    def __str__(self) -> str:
        return self.value


class Fit(str, Enum):
    """How an image is brought to the network's size."""

    LETTERBOX = "letterbox"
    RECTANGLE = "rectangle"
    STRETCH = "stretch"

    def __str__(self) -> str:
        return self.value


def opencv() -> Any:
    """The module cv2.

    Raises
    ------
    MissingExtraError
        It is not installed.

    """
    try:
        import cv2
    except ImportError as error:
        raise MissingExtraError("a stage of OpenCV", "opencv-python-headless") from error
    return cv2


def pixels(image: Any) -> Array:
    """An image as (H, W, 3) of uint8, RGB where it is in colour.

    Grey images get three channels, an alpha channel is dropped, 16 bits become their upper 8, floats in [0, 1] are
    multiplied by 255, and (3, H, W) becomes (H, W, 3).

    Raises
    ------
    InputError
        Not an image.

    """
    array = np.asarray(image.detach().cpu().numpy() if hasattr(image, "detach") else image)
    array = array[0] if array.ndim == 4 and len(array) == 1 else array
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.dtype.kind not in "buif" or array.size == 0:
        raise InputError(f"an array {array.shape} of {array.dtype} is no image; wanted (height, width, 1, 3 or 4)")
    array = array[..., :3] if array.shape[2] != 1 else np.repeat(array, 3, 2)
    return np.ascontiguousarray(_eight_bits(array))


def _eight_bits(array: Array) -> Array:
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * 255
    if array.dtype.kind == "f":
        if not np.all(np.isfinite(array)):
            count = int(np.count_nonzero(~np.isfinite(array)))
            raise InputError(
                f"an array {array.shape} of {array.dtype} is no image: {count} of its numbers are not finite"
            )
        top = 1.0 if float(array.max()) <= 1.0 else 255.0
        return np.asarray(np.clip(array * (255.0 / top) + 0.5, 0, 255)).astype(np.uint8)
    if array.dtype == np.uint8:
        return array
    return np.asarray(np.clip(array >> 8 if array.dtype.itemsize > 1 and array.max() > 255 else array, 0, 255)).astype(
        np.uint8
    )


@dataclass(frozen=True, slots=True)
class ReadImage:
    """A path or an array (RGB) as (H, W, 3) of uint8, in RGB or, with `bgr`, in OpenCV's order.

    `exif` turns the picture as its EXIF orientation says, which ``cv2.imread`` does and ``PIL.Image.open`` does not.
    """

    library: Library = Library.OPENCV
    bgr: bool = False
    exif: bool = True

    def __call__(self, image: Any) -> Array:
        """The image."""
        found = pixels(self._file(Path(image)) if isinstance(image, (str, Path)) else image)
        return np.ascontiguousarray(found[..., ::-1]) if self.bgr else found

    def _file(self, path: Path) -> Array:
        if self.library is Library.OPENCV:
            cv2 = opencv()
            as_stored = 0 if self.exif else cv2.IMREAD_IGNORE_ORIENTATION
            found = cv2.imread(str(path), cv2.IMREAD_ANYDEPTH | cv2.IMREAD_ANYCOLOR | as_stored)
            if found is None:
                raise InputError(f"{path}: OpenCV cannot read this image")
            return found if found.ndim == 2 else np.asarray(found[..., [2, 1, 0]])
        from PIL import Image, ImageOps

        with Image.open(path) as image:
            made = image if image.mode in ("RGB", "L", "RGBA", "I;16", "I") else image.convert("RGB")
            return np.asarray(ImageOps.exif_transpose(made) if self.exif else made)


@dataclass(frozen=True, slots=True)
class Letterbox:
    """An image (H, W, 3) at the network's size, bilinear, as in YOLOv5's ``letterbox``.

    `fit` pads to a square of `image_size` with `colour`, pads to the next multiple of `stride` only (a rectangle), or
    stretches. Small images are enlarged unless `enlarge` is off.
    """

    image_size: int = 640
    fit: Fit = Fit.LETTERBOX
    colour: int = 114
    enlarge: bool = True
    stride: int = 32
    library: Library = Library.OPENCV

    def __call__(self, image: Array) -> Array:
        """The image at its new size."""
        height, width = image.shape[:2]
        if self.fit is Fit.STRETCH:
            return resized(image, (self.image_size, self.image_size), self.library)
        gain = min(self.image_size / height, self.image_size / width)
        gain = gain if self.enlarge else min(gain, 1.0)
        size = max(1, round(width * gain)), max(1, round(height * gain))
        inner = image if size == (width, height) else resized(image, size, self.library)
        spare = [self.image_size - side for side in size]
        if self.fit is Fit.RECTANGLE:
            spare = [side % self.stride for side in spare]
        left, top = (round(side / 2 - 0.1) for side in spare)
        whole = np.full((size[1] + spare[1], size[0] + spare[0], 3), self.colour, np.uint8)
        whole[top : top + size[1], left : left + size[0]] = inner
        return whole


def resized(image: Array, size: tuple[int, int], library: Library) -> Array:
    """An image of uint8 resized to (width, height), bilinear with half-pixel centres, without antialiasing."""
    if library is Library.OPENCV:
        cv2 = opencv()
        return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR))
    if library is Library.TORCH:
        import torch

        wide = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).float()
        found = torch.nn.functional.interpolate(wide, (size[1], size[0]), mode="bilinear", align_corners=False)
        return np.ascontiguousarray(found[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8).numpy())
    x, y = (_taps(old, new) for old, new in ((image.shape[1], size[0]), (image.shape[0], size[1])))
    wide_rows = image[y[0]] * (1 - y[2])[:, None, None] + image[y[1]] * y[2][:, None, None]
    found_columns = wide_rows[:, x[0]] * (1 - x[2])[None, :, None] + wide_rows[:, x[1]] * x[2][None, :, None]
    return np.asarray(np.clip(np.rint(found_columns), 0, 255)).astype(np.uint8)


def _taps(old: int, new: int) -> tuple[Array, Array, Array]:
    """The two source pixels of each target pixel, and the weight of the second."""
    at = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    low = np.floor(at).astype(np.intp)
    return low, np.minimum(low + 1, old - 1), at - low


@dataclass(frozen=True, slots=True)
class Augment:
    """What training does to an image and inference must not: mirrored left to right, brightness scaled."""

    flip: bool = False
    brightness: float = 1.0

    def __call__(self, image: Array) -> Array:
        """The changed image."""
        found = image[:, ::-1] if self.flip else image
        if self.brightness != 1.0:
            found = np.clip(np.rint(found * self.brightness), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(found)


@dataclass(frozen=True, slots=True)
class ToTensor:
    """An image (H, W, 3) as a batch (1, 3, H, W) of float32: channels swapped or not, divided, normalised."""

    swap_channels: bool = False
    divisor: float = 255.0
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)

    def __call__(self, image: Array) -> Array:
        """The batch."""
        found = image[..., ::-1] if self.swap_channels else image
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        scaled = (found.astype(np.float32) / np.float32(self.divisor) - mean) / std
        return np.ascontiguousarray(scaled.transpose(2, 0, 1)[None])
