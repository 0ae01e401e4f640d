"""Pictures drawn by code: coloured shapes on noisy gradients, with their boxes and classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.random import Generator
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]

IMAGE_SIZE = 160
SMALLEST_PX, LARGEST_PX = 18.0, 72.0
MOST_OBJECTS = 7
# A placement that would hide more than this share of either object is drawn anew.
MOST_HIDDEN = 0.35
LEAST_CONTRAST = 0.3
_ROWS, _COLUMNS = np.mgrid[0:IMAGE_SIZE, 0:IMAGE_SIZE].astype(np.float32) + np.float32(0.5)


@dataclass(frozen=True, slots=True)
class Scene:
    """One picture: image (3, H, W) in [0, 1], boxes (n, 4) as x1 y1 x2 y2 in pixels, classes (n,)."""

    image: Floats
    boxes: Floats
    classes: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Outline:
    """A closed curve of radius 1 round the origin: its signed distance (negative inside) and its extreme points."""

    distance: Callable[[Floats], Floats]
    extremes: Callable[[float], Floats]


def draw_scene(rng: Generator) -> Scene:
    """Return one random picture; later objects lie over earlier ones."""
    image = _background(rng)
    boxes: list[Floats] = []
    classes: list[int] = []
    for _ in range(int(rng.integers(2, MOST_OBJECTS + 1))):
        kind = int(rng.integers(len(OUTLINES)))
        outline = list(OUTLINES.values())[kind]
        placed = _place(rng, outline, boxes)
        if placed is None:
            continue
        centre, radius, angle, box = placed
        _paint(image, rng, _coverage(outline, centre, radius, angle))
        boxes.append(box)
        classes.append(kind)
    image += np.float32(rng.uniform(0.005, 0.04)) * rng.standard_normal(image.shape, np.float32)
    return Scene(image.clip(0.0, 1.0), np.stack(boxes), np.array(classes, np.int64))


def _background(rng: Generator) -> Floats:
    """Return a (3, H, W) gradient between two random colours along a random direction, with soft ripples."""
    x, y = _COLUMNS / IMAGE_SIZE - 0.5, _ROWS / IMAGE_SIZE - 0.5
    angle = rng.uniform(0.0, 2.0 * np.pi)
    along, across = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    ramp = np.clip(along / 1.4 + 0.5, 0.0, 1.0)
    first, second = rng.uniform(0.0, 1.0, (2, 3, 1, 1))
    ripple = rng.uniform(0.0, 0.06) * np.sin(across * rng.uniform(10.0, 50.0) + angle)
    return np.asarray(first * (1.0 - ramp) + second * ramp + ripple, np.float32)


def _place(rng: Generator, outline: Outline, others: list[Floats]) -> tuple[Floats, float, float, Floats] | None:
    """Return centre, radius, angle and box of a placement inside the picture that hides little, if one is found."""
    for _ in range(20):
        angle = rng.uniform(0.0, 2.0 * np.pi)
        points = outline.extremes(angle)
        low, high = points.min(0), points.max(0)
        # Log-uniform, so that small and large objects are equally common; the size is that of the longer box side.
        size = np.exp(rng.uniform(np.log(SMALLEST_PX), np.log(LARGEST_PX)))
        radius = float(size / (high - low).max())
        centre = rng.uniform(-radius * low, IMAGE_SIZE - radius * high).astype(np.float32)
        box = np.concatenate([centre + radius * low, centre + radius * high]).astype(np.float32)
        if all(_hidden_share(box, other) <= MOST_HIDDEN for other in others):
            return centre, radius, angle, box
    return None


def _hidden_share(first: Floats, second: Floats) -> float:
    """Return the overlap of two boxes as a share of the smaller one."""
    overlap = np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])
    areas = np.prod(first[2:] - first[:2]), np.prod(second[2:] - second[:2])
    return float(np.prod(overlap.clip(0.0)) / min(areas))


def _coverage(outline: Outline, centre: Floats, radius: float, angle: float) -> Floats:
    """Return how much of each pixel the shape covers, (H, W) in [0, 1]: an anti-aliased mask."""
    x, y = (_COLUMNS - centre[0]) / radius, (_ROWS - centre[1]) / radius
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    turned = np.stack([cos * x + sin * y, cos * y - sin * x])
    return np.clip(0.5 - radius * outline.distance(turned), 0.0, 1.0)


def _paint(image: Floats, rng: Generator, coverage: Floats) -> None:
    """Blend one object into the image, in a colour that stands out from what lies under it."""
    under = (image * coverage).sum((1, 2)) / coverage.sum()
    colour = rng.uniform(0.0, 1.0, 3)
    while np.abs(colour - under).max() < LEAST_CONTRAST:
        colour = rng.uniform(0.0, 1.0, 3)
    shade = 1.0 + rng.uniform(-0.2, 0.2) * np.linspace(-1.0, 1.0, IMAGE_SIZE, dtype=np.float32)
    image += coverage * (colour.astype(np.float32)[:, None, None] * shade - image)


def _polygon(corners: int, phase: float) -> Floats:
    """Return the (corners, 2) corners of a regular polygon of radius 1."""
    angles = phase + 2.0 * np.pi * np.arange(corners) / corners
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def _turn(points: Floats, angle: float) -> Floats:
    """Return (n, 2) points turned by an angle in radians."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.asarray(points @ np.array([[cos, sin], [-sin, cos]]), np.float32)


def _regular(corners: int) -> Outline:
    """Return the outline of a regular polygon: the largest distance to its sides."""
    normals = _polygon(corners, np.pi / corners)
    inradius = float(np.cos(np.pi / corners))
    return Outline(
        lambda p: np.max(np.tensordot(normals, p, 1) - inradius, 0),
        lambda angle: _turn(_polygon(corners, 0.0), angle),
    )


def _bar(p: Floats, half_length: float, half_width: float) -> Floats:
    """Return the distance to an upright bar, largest over its two pairs of sides."""
    return np.maximum(np.abs(p[0]) - half_length, np.abs(p[1]) - half_width)


_CROSS_CORNERS = np.array([[sx * a, sy * b] for a, b in ((1, 0.3), (0.3, 1)) for sx in (-1, 1) for sy in (-1, 1)])

OUTLINES = {
    "circle": Outline(
        lambda p: np.hypot(p[0], p[1]) - 1.0,
        lambda _: np.array([[-1, -1], [1, 1]], np.float32),
    ),
    "square": _regular(4),
    "triangle": _regular(3),
    "cross": Outline(
        lambda p: np.minimum(_bar(p, 1.0, 0.3), _bar(p, 0.3, 1.0)),
        lambda angle: _turn(_CROSS_CORNERS, angle),
    ),
}
CLASSES = tuple(OUTLINES)
