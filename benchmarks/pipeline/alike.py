"""Whether two chains are one on every picture: tried on white noise of the size of the pair's picture.

A resize is a weighted sum of the pixels near each place. In noise no pixel follows from its neighbours, so two resizes
that agree on it have the same weights, and agree on every picture of that size. A name alone proves nothing.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from benchmarks.pipeline.pictures import jpeg
from benchmarks.pipeline.pipelines import Pipeline
from layerdiff.preprocessing.kernels import Kernel, kernels

if TYPE_CHECKING:
    from benchmarks.pipeline.pairs import Pair

ROUNDING = 2e-4 * 255
"""What two resizes in floats are apart, in levels: they compute their coordinates in float32."""
FLIPPED = 1e-3
"""The share of whole levels that this rounding may put on the other side of a half."""


@dataclass(frozen=True)
class _Resizing(Pipeline):
    """A pipeline with a kernel that layerdiff named in place of its own."""

    named: Kernel | None = None

    def resized(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        assert self.named is not None
        if pixels.shape[:2] == (height, width):
            return pixels
        made = self.named.on(pixels, (height, width))
        if made is None:
            return np.zeros((height, width, 3), np.float32)
        if self.named.digits == "float" or made.dtype == np.uint8:
            return made
        return np.clip(np.rint(made) if self.named.digits == "rounded" else made, 0, 255).astype(np.uint8)


def noise_like(picture: Any) -> Any:
    """White noise in the size and form of a pair's picture: an array, or a JPEG file with its EXIF orientation."""
    rng = np.random.default_rng(0)
    if not isinstance(picture, bytes):
        return rng.integers(0, 256, picture.shape).astype(np.uint8)
    opened = Image.open(io.BytesIO(picture))
    pixels = rng.integers(0, 256, (opened.height, opened.width, 3)).astype(np.uint8)
    return jpeg(pixels, 90, opened.getexif().get(0x0112, 1))


def same_resize(pipeline: Pipeline, setting: dict[str, Any], pair: Pair) -> bool:
    """Whether the kernel that an answer names makes what the pipeline's own kernel makes, whatever the picture."""
    named = next((k for k in kernels() if k.setting == setting), None)
    if named is None:
        return False
    noise = noise_like(pair.image)
    pixels = pipeline.decoded(noise) if isinstance(noise, bytes) else noise
    made = pipeline.placed(pixels)
    settings = {name: getattr(pipeline, name) for name in Pipeline.__dataclass_fields__}
    again = _Resizing(**settings, named=named).placed(pixels)
    gaps = np.abs(made.astype(np.float64) - again)
    whole = np.uint8 in (made.dtype, again.dtype)
    return bool(np.mean(gaps > ROUNDING) <= (FLIPPED if whole else 0))
