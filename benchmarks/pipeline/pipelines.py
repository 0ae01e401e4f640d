"""A preprocessing pipeline as people write it, from settings: decode, place, resize, scale, normalise, lay out."""

from __future__ import annotations

import io
from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg
import torch
from PIL import Image, ImageOps

CV = {
    "nearest": cv2.INTER_NEAREST,
    "bilinear": cv2.INTER_LINEAR,
    "area": cv2.INTER_AREA,
    "bicubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
}
PIL = {
    "nearest": Image.Resampling.NEAREST,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
TORCH = {
    "nearest": {"mode": "nearest"},
    "area": {"mode": "area"},
    "bilinear": {"mode": "bilinear", "align_corners": False},
    "bilinear antialias": {"mode": "bilinear", "align_corners": False, "antialias": True},
    "bilinear aligned": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic antialias": {"mode": "bicubic", "align_corners": False, "antialias": True},
    "bicubic aligned": {"mode": "bicubic", "align_corners": True},
}
KERNELS = [("cv2", k) for k in CV] + [("pil", k) for k in PIL] + [("torch", k) for k in TORCH]


@dataclass(frozen=True)
class Pipeline:
    """All settings of one side."""

    decoder: str = "pil"  # pil, cv2, quick-upsample, quick-dct
    exif: bool = True
    mirror: str = ""  # "", horizontal, vertical
    mode: str = "letterbox"  # letterbox, stretch, crop
    size: int = 640
    short: int = 0  # of a crop: what the short side is resized to
    kernel: tuple[str, str] = ("cv2", "bilinear")
    digits: str = "rounded"  # of a torch resize: float, rounded, truncated
    pad: int = 114
    corner: bool = False
    rectangular: bool = False
    order: tuple[int, int, int] = (0, 1, 2)
    scale: tuple[float, float] = (1 / 255, 0.0)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    dtype: str = "float32"
    layout: str = "NCHW"

    def run(self, picture: bytes | np.ndarray) -> np.ndarray:
        """The tensor that the network is fed."""
        pixels = self.decoded(picture) if isinstance(picture, bytes) else picture
        placed = self.placed(pixels)
        if self.mirror:
            placed = placed[:, ::-1] if self.mirror == "horizontal" else placed[::-1]
        values = placed[:, :, list(self.order)].astype(np.float32) * np.float32(self.scale[0]) + np.float32(
            self.scale[1]
        )
        if self.mean is not None and self.std is not None:
            values = (values - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        if self.layout == "reshaped":
            laid = np.ascontiguousarray(values).reshape(1, 3, *values.shape[:2])
        else:
            laid = values[None] if self.layout.startswith("N") else values
            laid = laid.transpose(0, 3, 1, 2) if self.layout == "NCHW" else laid
            laid = laid.transpose(2, 0, 1) if self.layout == "CHW" else laid
        if self.dtype == "half and back":
            return np.ascontiguousarray(laid.astype(np.float16).astype(np.float32))
        return np.ascontiguousarray(laid.astype(self.dtype))

    def decoded(self, data: bytes) -> np.ndarray:
        if self.decoder == "cv2":
            flags = cv2.IMREAD_COLOR | (0 if self.exif else cv2.IMREAD_IGNORE_ORIENTATION)
            return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), flags), cv2.COLOR_BGR2RGB)
        opened = Image.open(io.BytesIO(data))
        if self.decoder == "pil":
            return np.asarray((ImageOps.exif_transpose(opened) if self.exif else opened).convert("RGB"))
        quick = {"quick-upsample": {"fastupsample": True}, "quick-dct": {"fastdct": True}}[self.decoder]
        pixels = simplejpeg.decode_jpeg(data, "RGB", **quick)
        tag = opened.getexif().get(0x0112, 1)
        back = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels, -1), 8: np.rot90(pixels, 1)}
        return np.ascontiguousarray(back[tag]) if self.exif else pixels

    def placed(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        if self.mode == "stretch":
            return self.resized(pixels, self.size, self.size)
        if self.mode == "crop":
            ratio = self.short / min(height, width)
            made = self.resized(
                pixels, *(self.short if n == min(height, width) else int(n * ratio) for n in (height, width))
            )
            top, left = ((n - self.size) // 2 for n in made.shape[:2])
            return made[top : top + self.size, left : left + self.size]
        ratio = min(self.size / height, self.size / width)
        made = self.resized(pixels, round(height * ratio), round(width * ratio))
        free = [self.size - n for n in made.shape[:2]]
        if self.rectangular:
            free = [n % 32 for n in free]
        before = [0, 0] if self.corner else [round(n / 2 - 0.1) for n in free]
        border = (before[0], free[0] - before[0], before[1], free[1] - before[1])
        if made.dtype == np.uint8:
            return cv2.copyMakeBorder(made, *border, cv2.BORDER_CONSTANT, value=(self.pad,) * 3)
        return np.pad(made, (border[:2], border[2:], (0, 0)), constant_values=self.pad)

    def resized(self, pixels: np.ndarray, height: int, width: int) -> np.ndarray:
        library, kernel = self.kernel
        if pixels.shape[:2] == (height, width):
            return pixels
        if library == "cv2":
            return cv2.resize(pixels, (width, height), interpolation=CV[kernel])
        if library == "pil":
            return np.asarray(Image.fromarray(pixels).resize((width, height), PIL[kernel]))
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float()
        made = torch.nn.functional.interpolate(tensor, size=(height, width), **TORCH[kernel])[0].permute(1, 2, 0)
        if self.digits == "float":
            return made.numpy()
        whole = made.clamp(0, 255)
        return (whole.round() if self.digits == "rounded" else whole).to(torch.uint8).numpy()
