"""Pictures and the usual ways to feed them, for the tests of what compares inputs."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def picture(height: int = 120, width: int = 160, seed: int = 0) -> np.ndarray[Any, Any]:
    """Blurred noise over the whole range of 8 bits, RGB."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 1.2), None, 0, 255, cv2.NORM_MINMAX)


def fed(pixels: Any, scale: float = 1 / 255, mean: Any = MEAN, std: Any = STD) -> np.ndarray[Any, Any]:
    """Pixels (H, W, 3) as (1, 3, H, W) in float32, normalised."""
    values = (np.asarray(pixels, np.float32) * np.float32(scale) - np.float32(mean)) / np.float32(std)
    return np.ascontiguousarray(values.astype(np.float32).transpose(2, 0, 1)[None])


def letterbox(
    pixels: Any, size: int = 96, pad: int = 114, kernel: int = cv2.INTER_LINEAR, *, corner: bool = False
) -> Any:
    """The picture in a square, as YOLOv5 places it."""
    ratio = min(size / pixels.shape[0], size / pixels.shape[1])
    height, width = (round(n * ratio) for n in pixels.shape[:2])
    canvas = np.full((size, size, 3), pad, np.uint8)
    top, left = (0, 0) if corner else ((size - height) // 2, (size - width) // 2)
    canvas[top : top + height, left : left + width] = cv2.resize(pixels, (width, height), interpolation=kernel)
    return canvas


def left_by(code: str, given: Any, expected: Any) -> float:
    """What the code of an answer leaves, run as a reader would run it."""
    scope: dict[str, Any] = {}
    exec(code, scope)
    made = scope["corrected"](given)
    assert made.dtype == expected.dtype
    assert made.shape == expected.shape
    return float(np.abs(made.astype(np.float64) - expected).max())
