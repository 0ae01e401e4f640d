"""The picture that both inputs were made from: decoded in every way that is at hand."""

from __future__ import annotations

import io
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from layerdiff.errors import InputError
from layerdiff.preprocessing.orientation import BY_TAG, STILL, Turn

Array = np.ndarray[Any, Any]

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True, slots=True)
class Source:
    """A decoded picture (H, W, C), RGB or grey, as it is stored: `upright` is what EXIF wants done to it."""

    decoder: str
    pixels: Array
    upright: Turn
    code: str

    def shown(self, turn: Turn) -> Array:
        """The picture upright, and then turned: a view."""
        return turn.on(self.upright.on(self.pixels, 0, 1), 0, 1)

    def turned(self, turn: Turn) -> Array:
        """The same as pixels of their own, which a kernel can read."""
        return np.ascontiguousarray(self.shown(turn))


def sources(image: Any, channels: int) -> tuple[Source, ...]:
    """The picture as every decoder gives it, without those that give the same; grey where one channel is wanted.

    Raises
    ------
    InputError
        No picture, or one that nothing here can read.

    """
    found = _decoded(image)
    distinct: list[Source] = []
    for source in found:
        for made in _with_channels(source, channels):
            if not any(_equal(made.pixels, other.pixels) for other in distinct):
                distinct.append(made)
    return tuple(distinct)


def _equal(one: Array, other: Array) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and np.array_equal(one, other)


def _decoded(image: Any) -> list[Source]:
    if isinstance(image, (str, Path)):
        path = Path(image)
        if not path.is_file():
            raise InputError(f"image: {path}: no such file; give the picture that both inputs were made from")
        if path.suffix == ".npy":
            try:
                return [_array(np.load(path, allow_pickle=False))]
            except (ValueError, OSError, EOFError) as error:
                raise InputError(f"image: {path}: not an .npy file of a plain array ({error})") from error
        return _from_bytes(path.read_bytes(), str(path))
    if isinstance(image, (bytes, bytearray)):
        return _from_bytes(bytes(image), "bytes")
    if hasattr(image, "getexif"):  # a PIL image
        return [_from_pil(image)]
    if hasattr(image, "detach"):
        from layerdiff.tensors import to_array

        image = to_array(image)
    return [_array(np.asarray(image))]


def _array(pixels: Array) -> Source:
    """An array (H, W), (H, W, C) or (C, H, W) as a picture."""
    if pixels.dtype.kind not in "uif" or pixels.ndim not in (2, 3) or pixels.size == 0:
        raise InputError(
            f"image: an array of {pixels.dtype} and shape {pixels.shape} is no picture; give (H, W, 3) in RGB or (H, W)"
        )
    if pixels.dtype.kind == "f" and not np.all(np.isfinite(pixels)):
        count = int(np.count_nonzero(~np.isfinite(pixels)))
        raise InputError(
            f"image: {count} numbers of the array {pixels.shape} are not finite; give the picture as it was"
        )
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if pixels.shape[2] not in (1, 3, 4) and pixels.shape[0] in (1, 3, 4):
        pixels = pixels.transpose(1, 2, 0)
    if pixels.shape[2] not in (1, 3, 4):
        raise InputError(f"image: shape {pixels.shape} is no picture; give (H, W, 3) in RGB or (H, W)")
    return Source("array", np.ascontiguousarray(pixels), STILL, "")


def _from_bytes(data: bytes, where: str) -> list[Source]:
    found: list[Source] = []
    turn = STILL
    if find_spec("PIL") is not None:
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data)) as opened:
                first = _from_pil(opened)
                turn = first.upright
                found.append(first)
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError):
            found = []
    found += _by_opencv(data, turn)
    if data[:2] == b"\xff\xd8":
        found += _by_simplejpeg(data, turn)
    if not found:
        missing = [name for name in ("cv2", "PIL") if find_spec(name) is None]
        hint = "; install layerdiff[pipeline] for OpenCV and PIL" if missing else ""
        raise InputError(f"image: {where}: not a picture that can be decoded here{hint}")
    return found


def _from_pil(opened: Any) -> Source:
    turn = BY_TAG[tag - 1] if (tag := opened.getexif().get(_EXIF_ORIENTATION, 1)) in range(1, 9) else STILL
    plain = opened.mode in ("L", "RGB", "RGBA") or opened.mode.startswith("I;16")
    pixels = np.asarray(opened if plain else opened.convert("RGB"))
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    code = 'image = np.asarray(Image.open(path).convert("RGB"))'
    if not turn.still:
        code = 'image = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))'
    return Source("PIL", pixels, turn, code)


def _by_opencv(data: bytes, turn: Turn) -> list[Source]:
    if find_spec("cv2") is None:
        return []
    import cv2

    buffer = np.frombuffer(data, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    decoded = cv2.imdecode(buffer, flags)
    if decoded is None:
        return []
    found = [Source("OpenCV", np.ascontiguousarray(decoded[:, :, ::-1]), turn, "image = cv2.imread(path)[:, :, ::-1]")]
    raw = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED)
    if raw is not None and raw.dtype == np.uint16:
        raw = raw[:, :, None] if raw.ndim == 2 else raw[:, :, [2, 1, 0, 3][: raw.shape[2]]]
        code = "image = cv2.imread(path, cv2.IMREAD_UNCHANGED)"
        found.append(Source("OpenCV, 16 bits", np.ascontiguousarray(raw), turn, code))
    return found


def _by_simplejpeg(data: bytes, turn: Turn) -> list[Source]:
    """libjpeg-turbo with its quicker transforms, as video tools and data loaders ask for it."""
    if find_spec("simplejpeg") is None:
        return []
    import simplejpeg

    found: list[Source] = []
    for dct, upsample in ((False, True), (True, False), (True, True)):
        try:
            pixels = simplejpeg.decode_jpeg(data, "RGB", fastdct=dct, fastupsample=upsample)
        except ValueError:
            return found
        options = f"fastdct={dct}, fastupsample={upsample}"
        code = f'image = simplejpeg.decode_jpeg(open(path, "rb").read(), "RGB", {options})'
        found.append(Source(f"libjpeg-turbo ({options})", pixels, turn, code))
    return found


def _with_channels(source: Source, channels: int) -> list[Source]:
    """The picture with as many channels as an input has: grey made of colours, colours of grey, without alpha."""
    pixels = source.pixels
    have = pixels.shape[2]
    eight = [source]
    if pixels.dtype == np.uint16:
        eight.append(
            Source(
                f"{source.decoder}, upper 8 bits", (pixels >> 8).astype(np.uint8), source.upright, source.code + " >> 8"
            )
        )
    if channels == 1 and have >= 3:
        return [made for s in eight for made in _grey(s)]
    if channels >= 3 and have == 1:
        return [Source(s.decoder, np.repeat(s.pixels, 3, axis=2), s.upright, s.code) for s in eight]
    if channels == 3 and have == 4:
        return [Source(s.decoder, np.ascontiguousarray(s.pixels[:, :, :3]), s.upright, s.code) for s in eight]
    return eight


def _grey(source: Source) -> list[Source]:
    pixels = source.pixels[:, :, :3]
    found = []
    if find_spec("PIL") is not None and pixels.dtype == np.uint8:
        from PIL import Image

        grey = np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None]
        code = f'{source.code}\nimage = np.asarray(Image.fromarray(image).convert("L"))[:, :, None]'.strip()
        found.append(Source(f"{source.decoder}, grey by PIL", grey, source.upright, code))
    if find_spec("cv2") is not None and pixels.dtype in (np.uint8, np.uint16, np.float32):
        import cv2

        grey = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY))[:, :, None]
        code = f"{source.code}\nimage = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]".strip()
        found.append(Source(f"{source.decoder}, grey by OpenCV", grey, source.upright, code))
    weights = np.array([0.299, 0.587, 0.114])
    if not found:
        code = f"{source.code}\nimage = image @ np.array([0.299, 0.587, 0.114])[:, None]".strip()
        found.append(Source(f"{source.decoder}, grey", (pixels @ weights)[:, :, None], source.upright, code))
    return found
