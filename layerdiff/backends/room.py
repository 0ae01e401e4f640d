"""Memory that one run after another gives its outputs in: what an operating system has to hand out anew costs more."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.arena import Arena

if TYPE_CHECKING:
    from collections.abc import Mapping

    Array = np.ndarray[Any, Any]

_ALIGNMENT = 64


class Room:
    """Room for float32 outputs of known shapes, so many bytes at once."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], size_bytes: int) -> None:
        self._shapes = shapes
        self._size_bytes = size_bytes
        self._end = 0

    @cached_property
    def _memory(self) -> Array:
        return Arena().take(self._size_bytes)

    def clear(self) -> None:
        """Forget what is in it: the next run writes over it."""
        self._end = 0

    def take(self, name: str) -> Array | None:
        """Where an output goes; None where its shape is not known, or no room is left."""
        shape = self._shapes.get(name)
        size = 0 if shape is None else 4 * math.prod(shape)
        if shape is None or not 0 < size <= self._size_bytes - self._end:
            return None
        found = self._memory[self._end : self._end + size].view(np.float32).reshape(shape)
        self._end += -(-size // _ALIGNMENT) * _ALIGNMENT
        return found
