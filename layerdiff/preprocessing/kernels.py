"""How OpenCV, PIL and torch resize a picture: every kernel of each, called as people call it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

Array = np.ndarray[Any, Any]
Size = tuple[int, int]

FLOAT, ROUNDED, TRUNCATED = "float", "rounded", "truncated"


@dataclass(frozen=True, slots=True)
class Kernel:
    """One way to resize a picture (H, W, C) to (height, width).

    `digits` is what it leaves of the numbers: floats, or whole levels by rounding or truncation. `family` is the
    kernel's name without the library, the library's options and what became of the digits.
    """

    library: str
    family: str
    options: str
    digits: str
    run: Callable[[Array, Size], Array]
    code: str  # with {h} and {w}; changes `image`, (H, W, C)
    floats: Kernel | None = None  # the same before its result is made whole

    @property
    def name(self) -> str:
        """How it is called in a report."""
        return f"{self.library} {self.family}" + (f" ({self.options})" if self.options else "")

    @property
    def setting(self) -> dict[str, str]:
        """As plain data."""
        return {"library": self.library, "kernel": self.family, "options": self.options, "digits": self.digits}

    def on(self, image: Array, size: Size) -> Array | None:
        """The picture resized; None where the library does not take a picture of this kind."""
        try:
            made = self.run(image, size)
        except (TypeError, ValueError, KeyError, RuntimeError, OSError):
            return None
        except Exception as error:
            if type(error).__module__.partition(".")[0] == "cv2":
                return None
            raise
        return made[:, :, None] if made.ndim == 2 else made


def kernels() -> tuple[Kernel, ...]:
    """Every kernel of the libraries that are here, the most used first."""
    found = [*_opencv(), *_pil(), *_torch(), _asymmetric()]
    return tuple(
        sorted(found, key=lambda k: _USUAL.index(k.name) if k.name in _USUAL and k.digits != TRUNCATED else 99)
    )


_USUAL = (
    "OpenCV bilinear",
    "OpenCV nearest",
    "PIL bilinear",
    "OpenCV area",
    "torch bilinear (half-pixel)",
    "PIL bicubic",
    "OpenCV bicubic",
)


def _opencv() -> list[Kernel]:
    if find_spec("cv2") is None:
        return []
    import cv2

    flags = {
        "bilinear": "INTER_LINEAR",
        "nearest": "INTER_NEAREST",
        "area": "INTER_AREA",
        "bicubic": "INTER_CUBIC",
        "lanczos": "INTER_LANCZOS4",
        "nearest-exact": "INTER_NEAREST_EXACT",
        "bilinear-exact": "INTER_LINEAR_EXACT",
    }

    def run(flag: int, image: Array, size: Size) -> Array:
        return np.asarray(cv2.resize(image, size[::-1], interpolation=flag))

    def in_floats(flag: int, image: Array, size: Size) -> Array:
        return np.asarray(cv2.resize(image.astype(np.float32), size[::-1], interpolation=flag))

    found = []
    for family, flag in flags.items():
        code = f"image = cv2.resize(image, ({{w}}, {{h}}), interpolation=cv2.{flag})"
        found.append(Kernel("OpenCV", family, "", ROUNDED, partial(run, getattr(cv2, flag)), code))
    for family in ("bilinear", "area", "bicubic", "lanczos"):
        code = f"image = cv2.resize(image.astype(np.float32), ({{w}}, {{h}}), interpolation=cv2.{flags[family]})"
        found += _with_digits(
            Kernel("OpenCV", family, "floats", FLOAT, partial(in_floats, getattr(cv2, flags[family])), code)
        )
    return found


def _pil() -> list[Kernel]:
    if find_spec("PIL") is None:
        return []
    from PIL import Image

    def run(method: Any, image: Array, size: Size) -> Array:
        if image.dtype == np.uint8:
            return np.asarray(
                Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).resize(size[::-1], method)
            )
        planes = [
            Image.fromarray(plane.astype(np.float32)).resize(size[::-1], method) for plane in np.moveaxis(image, 2, 0)
        ]
        return np.stack([np.asarray(p) for p in planes], axis=2)

    names = {
        "bilinear": "BILINEAR",
        "bicubic": "BICUBIC",
        "nearest": "NEAREST",
        "lanczos": "LANCZOS",
        "box": "BOX",
        "hamming": "HAMMING",
    }
    found = []
    for family, name in names.items():
        method = f"Image.Resampling.{name}"
        code = f"image = np.asarray(Image.fromarray(image.squeeze()).resize(({{w}}, {{h}}), {method}))"
        found.append(Kernel("PIL", family, "", ROUNDED, partial(run, Image.Resampling[name]), code))
    return found


def _torch() -> list[Kernel]:
    ways: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("bilinear", "half-pixel", {"mode": "bilinear", "align_corners": False}),
        ("bilinear", "antialias", {"mode": "bilinear", "align_corners": False, "antialias": True}),
        ("bilinear", "aligned corners", {"mode": "bilinear", "align_corners": True}),
        ("bicubic", "half-pixel", {"mode": "bicubic", "align_corners": False}),
        ("bicubic", "antialias", {"mode": "bicubic", "align_corners": False, "antialias": True}),
        ("bicubic", "aligned corners", {"mode": "bicubic", "align_corners": True}),
        ("area", "", {"mode": "area"}),
        ("nearest", "", {"mode": "nearest"}),
        ("nearest-exact", "", {"mode": "nearest-exact"}),
    )
    found = []
    for family, options, arguments in ways:
        told = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
        code = (
            "image = torch.from_numpy(image.copy()).float().permute(2, 0, 1)[None]\n"
            f"image = torch.nn.functional.interpolate(image, size=({{h}}, {{w}}), {told})[0].permute(1, 2, 0).numpy()"
        )
        kernel = Kernel("torch", family, options, FLOAT, partial(_interpolated, arguments), code)
        found += [kernel] if family.startswith("nearest") else _with_digits(kernel)
    return found


def _interpolated(arguments: dict[str, Any], image: Array, size: Size) -> Array:
    import torch

    tensor = torch.from_numpy(np.ascontiguousarray(image, dtype=np.float32)).permute(2, 0, 1)[None]
    with torch.no_grad():
        made: Array = torch.nn.functional.interpolate(tensor, size=size, **arguments)[0].permute(1, 2, 0).numpy()
    return made


def _asymmetric() -> Kernel:
    """Bilinear sampling at ``i * scale``, without the half pixel: TF1, Caffe, and ONNX's "asymmetric"."""
    code = (
        "y, x = (np.minimum(np.arange(n) * (m / n), m - 1) for n, m in zip(({h}, {w}), image.shape))\n"
        "top, left = y.astype(int), x.astype(int)\n"
        "below, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)\n"
        "fy, fx, image = (y - top)[:, None, None], (x - left)[None, :, None], image.astype(np.float32)\n"
        "image = image[top] * (1 - fy) + image[below] * fy\n"
        "image = image[:, left] * (1 - fx) + image[:, right] * fx"
    )
    return Kernel("NumPy", "bilinear", "asymmetric", FLOAT, _sampled_from_the_corner, code)


def _sampled_from_the_corner(image: Array, size: Size) -> Array:
    y, x = (np.minimum(np.arange(n) * (m / n), m - 1) for n, m in zip(size, image.shape, strict=False))
    top, left = y.astype(int), x.astype(int)
    below, right = np.minimum(top + 1, image.shape[0] - 1), np.minimum(left + 1, image.shape[1] - 1)
    fy, fx = (y - top)[:, None, None].astype(np.float32), (x - left)[None, :, None].astype(np.float32)
    pixels = image.astype(np.float32)
    rows = pixels[top] * (1 - fy) + pixels[below] * fy
    made: Array = rows[:, left] * (1 - fx) + rows[:, right] * fx
    return made


def _with_digits(kernel: Kernel) -> list[Kernel]:
    """A kernel that leaves floats, and the same with its result made 8-bit by rounding and by truncation."""
    ends = {ROUNDED: "np.rint(image).clip(0, 255).astype(np.uint8)", TRUNCATED: "image.clip(0, 255).astype(np.uint8)"}
    whole = [
        replace(kernel, digits=digits, code=f"{kernel.code}\nimage = {end}", floats=kernel)
        for digits, end in ends.items()
    ]
    return [kernel, *whole]


def whole_levels(made: Array, digits: str, image: Array) -> Array:
    """What a resize in floats left of a picture, as whole levels."""
    top = float(np.iinfo(image.dtype).max) if image.dtype.kind in "iu" else 255.0
    levels = np.rint(made) if digits == ROUNDED else np.floor(made)
    return np.clip(levels, 0, top, out=levels)


def _kept(image: Array, size: Size) -> Array:
    assert image.shape[:2] == size
    return image


UNTOUCHED = Kernel("", "none", "", ROUNDED, _kept, "")
"""For a picture that has its size already."""
