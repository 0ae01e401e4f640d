"""Copies of the demo's pictures for the documentation: `make demo`, then `python docs/pictures.py`."""

# ruff: noqa: INP001  a script, not a package

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Few colours are in use: a palette keeps the pictures sharp and small.
COLOURS = {"divergence.png": 64, "detections.png": 256}


def main() -> None:
    """Write docs/images from demo/out."""
    for name, colours in COLOURS.items():
        with Image.open(ROOT / "demo" / "out" / name) as picture:
            small = picture.convert("RGB").quantize(colours, dither=Image.Dither.NONE)
        small.save(ROOT / "docs" / "images" / name, optimize=True)


if __name__ == "__main__":
    main()
