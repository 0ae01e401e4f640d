"""The same pipeline twice, also in two libraries that compute the same: nothing may be found."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.pipeline.pairs import NORMS, Pair
from benchmarks.pipeline.pictures import jpeg, picture
from benchmarks.pipeline.pipelines import KERNELS, Pipeline

Made = tuple[np.ndarray, np.ndarray, Any]


def equal_pair(seed: int, number: int) -> Pair:
    """Two tensors that are equal within rounding; every second comes with its picture."""
    rng = np.random.default_rng([seed, 7, number])
    pixels = picture(rng)
    norm = NORMS[int(rng.integers(1, len(NORMS)))]
    assert norm is not None
    base = Pipeline(
        mode=str(rng.choice(["letterbox", "stretch"])),
        size=int(rng.choice([224, 320, 640])),
        kernel=KERNELS[int(rng.integers(len(KERNELS)))],
        digits=str(rng.choice(["float", "rounded"])),
        mean=norm[0],
        std=norm[1],
    )
    make = (_again, _normalised_by_torch, _in_double, _decoded_by_another, _floats_by_another, _nearest_by_another)
    expected, actual, image = make[number % len(make)](rng, base, pixels)
    return Pair(number, expected, actual, image if number % 2 else None, (), (base, base))


def _again(_: np.random.Generator, base: Pipeline, pixels: np.ndarray) -> Made:
    return base.run(pixels), base.run(pixels), pixels


def _normalised_by_torch(_: np.random.Generator, base: Pipeline, pixels: np.ndarray) -> Made:
    """Pixels from NumPy, mean and std by torch, in another order of operations."""
    raw = replace(base, mean=None, std=None, scale=(1.0, 0.0), layout="NCHW").run(pixels)
    tensor = torch.from_numpy(raw).div(255)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (base.mean, base.std))
    return base.run(pixels), ((tensor - mean) / std).numpy(), pixels


def _in_double(_: np.random.Generator, base: Pipeline, pixels: np.ndarray) -> Made:
    """The same in double precision, then cast: ``x * (1 / 255 / std) - mean / std``."""
    raw = replace(base, mean=None, std=None, scale=(1.0, 0.0)).run(pixels).astype(np.float64)
    mean, std = (np.array(v).reshape(1, 3, 1, 1) for v in (base.mean, base.std))
    return base.run(pixels), (raw * (1 / 255 / std) - mean / std).astype(np.float32), pixels


def _decoded_by_another(rng: np.random.Generator, base: Pipeline, pixels: np.ndarray) -> Made:
    data = jpeg(pixels, int(rng.integers(70, 96)), int(rng.choice([1, 6])))
    return replace(base, decoder="pil").run(data), replace(base, decoder="cv2").run(data), data


def _floats_by_another(_: np.random.Generator, base: Pipeline, pixels: np.ndarray) -> Made:
    """Bilinear in floats, by torch and by OpenCV."""
    size = base.size
    by_torch = replace(base, mode="stretch", kernel=("torch", "bilinear"), digits="float").run(pixels)
    made = cv2.resize(pixels.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR) / np.float32(255)
    values = (made - np.array(base.mean, np.float32)) / np.array(base.std, np.float32)
    return by_torch, np.ascontiguousarray(values.transpose(2, 0, 1)[None]), pixels


def _nearest_by_another(_: np.random.Generator, base: Pipeline, pixels: np.ndarray) -> Made:
    """Nearest neighbour by OpenCV and torch, where both take the same pixels."""
    one, other = (replace(base, mode="stretch", kernel=(library, "nearest")) for library in ("cv2", "torch"))
    expected, actual = one.run(pixels), other.run(pixels)
    if not np.allclose(expected, actual, atol=1e-5):  # the two round a few source coordinates in other ways
        return expected, expected.copy(), pixels
    return expected, actual, pixels
