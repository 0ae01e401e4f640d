"""Memory that the operating system hands out all at once, not page by page as each is first written to.

For hundreds of large arrays, each of which is written and read once, that is a good part of what they cost.
"""

from __future__ import annotations

import mmap
from contextlib import suppress
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

LARGE = 1 << 16
"""Bytes: smaller arrays lie in memory that Python has already."""
SEGMENT = 256 << 20
"""Bytes of address space that are taken at once; memory only where an array lies in it."""
_POPULATE_WRITE = 23  # of Linux since 5.14; Python's mmap does not name it everywhere
_CAN = all(hasattr(mmap, name) for name in ("MAP_PRIVATE", "MAP_ANONYMOUS", "MADV_DONTNEED"))


class Arena:
    """Hands out memory for arrays, and takes that of each back when it goes."""

    def __init__(self) -> None:
        self._segment: mmap.mmap | None = None
        self._end = 0

    def copy(self, array: Array) -> Array:
        """A copy of an array."""
        if not _CAN or array.nbytes < LARGE:
            return array.copy()
        found = self.take(array.nbytes).view(array.dtype).reshape(array.shape)
        found[...] = array
        return found

    def take(self, size_bytes: int) -> Array:
        """So many bytes."""
        if not _CAN:
            return np.empty(size_bytes, np.uint8)
        whole = -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        if self._segment is None or self._end + whole > len(self._segment):
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._segment, self._end = mmap.mmap(-1, max(SEGMENT, whole), flags=flags), 0
        begin, self._end = self._end, self._end + whole
        with suppress(OSError):  # an older kernel hands them out one by one
            self._segment.madvise(_POPULATE_WRITE, begin, whole)
        return np.asarray(_Pages(self._segment, begin, size_bytes))


class _Pages:
    """What numpy keeps alive while any view of an array is alive."""

    __slots__ = ("__array_interface__", "_begin", "_segment", "_size")

    def __init__(self, segment: mmap.mmap, begin: int, size_bytes: int) -> None:
        self._segment, self._begin, self._size = segment, begin, size_bytes
        place = (np.frombuffer(segment, np.uint8, 1, begin).__array_interface__["data"][0], False)
        self.__array_interface__ = {"version": 3, "shape": (size_bytes,), "typestr": "|u1", "data": place}

    def __del__(self) -> None:
        self._segment.madvise(mmap.MADV_DONTNEED, self._begin, self._size)
