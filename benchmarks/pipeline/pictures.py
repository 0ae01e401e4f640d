"""Pictures to preprocess: drawn ones, noise, and drawings under noise."""

from __future__ import annotations

import io

import cv2
import numpy as np
from PIL import Image


def picture(rng: np.random.Generator) -> np.ndarray:
    """An RGB picture (H, W, 3) of 8 bits, of a random size and shape."""
    height, width = (int(rng.integers(300, 1100)) for _ in range(2))
    kind = rng.choice(["drawn", "noise", "both"])
    if kind == "noise":
        return _noise(rng, height, width)
    drawn = _drawn(rng, height, width)
    if kind == "drawn":
        return drawn
    noisy = drawn.astype(np.float32) + rng.normal(0, rng.uniform(2, 25), drawn.shape)
    return np.clip(noisy, 0, 255).astype(np.uint8)


def _noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    pixels = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    sigma = rng.choice([0.0, 0.7, 1.5, 4.0])
    if sigma:
        pixels = cv2.normalize(cv2.GaussianBlur(pixels, (0, 0), sigma), None, 0, 255, cv2.NORM_MINMAX)
    return pixels


def _drawn(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    slopes = rng.uniform(-0.2, 0.2, (2, 3))
    base = y[..., None] * slopes[0] + x[..., None] * slopes[1] + rng.uniform(20, 200, 3)
    canvas = np.ascontiguousarray(np.clip(base, 0, 255).astype(np.uint8))
    for _ in range(int(rng.integers(15, 50))):
        colour = tuple(int(v) for v in rng.integers(0, 256, 3))
        a, b = (tuple(int(rng.integers(0, n)) for n in (width, height)) for _ in range(2))
        shape = rng.choice(["line", "circle", "rectangle", "text"])
        thickness = int(rng.choice([-1, 1, 3, 8]))
        if shape == "line":
            cv2.line(canvas, a, b, colour, max(1, thickness), cv2.LINE_AA)
        elif shape == "circle":
            cv2.circle(canvas, a, int(rng.integers(4, 160)), colour, thickness, cv2.LINE_AA)
        elif shape == "rectangle":
            cv2.rectangle(canvas, a, b, colour, thickness if thickness > 0 or rng.random() < 0.3 else 2)
        else:
            cv2.putText(
                canvas, "layerdiff", a, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.5, 3), colour, max(1, thickness)
            )
    return canvas


def jpeg(pixels: np.ndarray, quality: int, orientation: int) -> bytes:
    """The picture as a JPEG file with an EXIF orientation."""
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0", exif=exif)
    return buffer.getvalue()
