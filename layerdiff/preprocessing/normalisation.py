"""Ranges, means and standard deviations: the known ones, and what a factor and an offset for each channel mean."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SAME = 2e-5
"""Relative distance of numbers that mean the same: float32, and constants written with six digits."""

# value = factor * pixel + offset, for a pixel of 0 to 255
RANGES = {"0..255": (1.0, 0.0), "0..1": (1 / 255, 0.0), "-1..1": (1 / 127.5, -1.0)}


@dataclass(frozen=True, slots=True)
class Norm:
    """``(value - mean) / std``, one number for each channel."""

    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def affine(self, channels: int) -> tuple[Array, Array]:
        """The factor and the offset of each channel."""
        mean, std = (np.array((v * channels)[:channels] if len(v) == 1 else v) for v in (self.mean, self.std))
        return 1 / std, -mean / std

    def told(self) -> dict[str, Any] | None:
        """As plain data; None where nothing is done."""
        return None if self.name == "none" else {"name": self.name, "mean": list(self.mean), "std": list(self.std)}

    def __str__(self) -> str:
        if self.name == "none":
            return "no mean and std"
        numbers = f"mean {_shown(self.mean)}, std {_shown(self.std)}"
        return f"{numbers} ({self.name})" if self.name else numbers

    def reverse(self) -> Norm:
        """With the channels in the opposite order."""
        return Norm(self.name, self.mean[::-1], self.std[::-1])

    def close(self, other: Norm) -> bool:
        """Whether both are the same to rounding."""
        mine, theirs = np.array([*self.mean, *self.std]), np.array([*other.mean, *other.std])
        return mine.shape == theirs.shape and bool(
            np.all(np.abs(mine - theirs) <= 1e-4 * np.maximum(np.abs(mine), 1e-2))
        )


NONE = Norm("none", (0.0,), (1.0,))
# Sources: torchvision's documentation of its models; openai/CLIP, clip/clip.py; Inception of TF-slim and timm;
# Caffe's BVLC models, in BGR order; the customary figures for CIFAR-10 and MNIST.
NORMS = (
    NONE,
    Norm("ImageNet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Norm("CLIP", (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    Norm("Inception, 0.5", (0.5,), (0.5,)),
    Norm("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    Norm("CIFAR-10", (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    Norm("MNIST", (0.1307,), (0.3081,)),
    Norm("ImageNet mean, std 1", (0.485, 0.456, 0.406), (1.0,)),
    Norm("Caffe", (104.0 / 255, 117.0 / 255, 123.0 / 255), (1.0,)),
    Norm("Caffe", (103.939 / 255, 116.779 / 255, 123.68 / 255), (1.0,)),
)


@dataclass(frozen=True, slots=True)
class Scaling:
    """What one side does to a pixel of 0 to 255: a range (a name of `RANGES`, or a factor), then a norm."""

    span: str
    factor: float
    offset: float
    norm: Norm

    def affine(self, channels: int) -> tuple[Array, Array]:
        """The factor and the offset of each channel, from a pixel to what the model is fed."""
        gain, bias = self.norm.affine(channels)
        return self.factor * gain, self.offset * gain + bias


@lru_cache
def known(channels: int) -> tuple[Scaling, ...]:
    """Every range with every norm that fits so many channels, the usual first."""
    norms = [n for n in NORMS if len(n.mean) in (1, channels) and len(n.std) in (1, channels)]
    norms += [n.reverse() for n in norms if len(set(n.mean)) > 1]
    both = product(norms, RANGES.items())
    return tuple(
        Scaling(name, factor, offset, norm)
        for norm, (name, (factor, offset)) in both
        # A norm behind -1..1 is a mistake nobody makes; "0.5" behind it is the same as another range.
        if norm is NONE or name != "-1..1"
    )


def scalings(gain: Array, bias: Array) -> tuple[Scaling, ...]:
    """What can have made such factors and offsets of pixels of 0 to 255: known settings, else numbers of their own."""
    channels = len(gain)
    found = [s for s in known(channels) if _same((gain, bias), s.affine(channels))]
    if found:
        return tuple(found)
    if _uniform(gain) and np.all(np.abs(bias) <= SAME * np.abs(gain).max() * 255):
        return (Scaling("", float(gain.mean()), 0.0, NONE),)
    unit = 1 / (255 * gain)
    name, factor = ("0..1", 1 / 255) if np.all((np.abs(unit) > 0.02) & (np.abs(unit) < 2)) else ("0..255", 1.0)
    std = factor / gain
    return (Scaling(name, factor, 0.0, Norm("", _numbers(-bias * std), _numbers(std))),)


def _same(one: tuple[Array, Array], other: tuple[Array, Array]) -> bool:
    """Whether two maps of pixels are the same to rounding, in the units of the result."""
    size = float(np.abs(other[0]).max()) * 255
    gains = np.abs(one[0] - other[0]) * 255 <= SAME * size
    return bool(np.all(gains) and np.all(np.abs(one[1] - other[1]) <= 4 * SAME * size))


def _uniform(values: Array) -> bool:
    return bool(np.all(np.abs(values - values[0]) <= SAME * np.abs(values).max()))


def _numbers(values: Array) -> tuple[float, ...]:
    """As few digits as the data can tell, one number where all are the same."""
    rounded = tuple(float(f"{v:.6g}") for v in values)
    if np.abs(values).max() < 1e-6:
        return (0.0,)
    return rounded[:1] if _uniform(values) else rounded


def _shown(values: tuple[float, ...]) -> str:
    return ", ".join(f"{v:.5g}" for v in values)


def recognised(values: Array) -> tuple[Scaling, ...]:
    """The known settings behind which values (C, S) are whole numbers of 0 to 255: what 8-bit pixels leave."""
    distinct = [np.unique(channel) for channel in values]
    if min(d.size for d in distinct) < 8 or max(d.size for d in distinct) > 256:
        return ()
    found = []
    for setting in known(len(values)):
        gain, bias = setting.affine(len(values))
        pixels = [(d - b) / g for d, g, b in zip(distinct, gain, bias, strict=True)]
        if all(np.all(np.abs(p - np.rint(p)) < 0.01) and p.min() > -0.5 and p.max() < 255.5 for p in pixels):
            found.append(setting)
    return tuple(found)


def snapped(gain: Array, bias: Array) -> tuple[Array, Array]:
    """A map from pixels as the known setting that is within half precision of it; as it is where none is."""
    for setting in known(len(gain)):
        wanted = setting.affine(len(gain))
        size = 255 * float(np.abs(wanted[0]).max())
        if np.all(np.abs(wanted[0] - gain) * 255 + np.abs(wanted[1] - bias) <= 1e-3 * size):
            return wanted
    return gain, bias
