"""Where captured arrays are kept: in memory up to a budget, behind it in temporary files that are mapped when read.

What is kept comes back as a `Held`, whose ``array`` is there for as long as somebody looks at it. The files have no
name: whatever happens to the process, nothing is left behind. A file goes when nothing that it holds is held any more.
"""

from __future__ import annotations

import math
import mmap
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from layerdiff.arena import Arena
from layerdiff.errors import SpillError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    Array = np.ndarray[Any, Any]

SMALL = 4096
"""Arrays below so many bytes stay in memory: a file gives memory back by whole pages."""
SEGMENT = 1 << 30
"""Bytes of address space for each file; it takes the disk only for what is written."""
MARGIN = 8
"""How much more one side may take than the other: an exporter writes one operator as several."""
_PAGE = mmap.ALLOCATIONGRANULARITY


class Held(Protocol):
    """An array that is kept somewhere."""

    @property
    def array(self) -> Array:
        """Its numbers; what is on disk is mapped, read as it is looked at, and not to be written to."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, which cost no reading."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Its type, which costs no reading."""
        ...


class Store:
    """Keeps arrays; those beyond the budget (bytes; None: no bound) go to disk.

    As a context manager it forgets at the end how much there was; what is still held can be read until it is let go.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = budget
        self.spilled_bytes = 0  # what ever went to disk
        self._held = self._resident = 0
        self._arena = Arena()
        self._segment: _Segment | None = None

    def __enter__(self) -> Store:  # noqa: PYI034  typing.Self is not in Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._segment = None

    def keep(self, array: Array) -> Held:
        """Keep an array that nobody will write to.

        Raises
        ------
        SpillError
            It has to go to disk, and the disk is full or not writable.

        """
        return self._on_disk(array) if self._is_full(array) else self._in_memory(array)

    def keep_copy(self, array: Array) -> Held:
        """Keep what an array holds now, whatever is written to it later.

        Raises
        ------
        SpillError
            It has to go to disk, and the disk is full or not writable.

        """
        return self._on_disk(array) if self._is_full(array) else self._in_memory(self._arena.copy(array))

    @staticmethod
    def refer_to(array: Array) -> Held:
        """What is in memory anyway and stays there: a view of a weight, say. It takes nothing of the budget."""
        return Resident(array)

    def most_at_once(self, guess_bytes: int) -> int | None:
        """How much may be computed before it is kept; None where nothing stands in the way of doing it all at once.

        What is held, the other side's activations, tells how much that is; else a guess does.
        """
        about = MARGIN * (self._held or guess_bytes)
        return None if self.budget is None or about <= self.budget else self.budget // 2

    def _is_full(self, array: Array) -> bool:
        self._held += array.nbytes
        return self.budget is not None and array.nbytes >= SMALL and self._resident + array.nbytes > self.budget

    def _in_memory(self, array: Array) -> Held:
        self._resident += array.nbytes
        return Resident(array, self._let_go)

    def _let_go(self, size_bytes: int) -> None:
        self._resident -= size_bytes
        self._held -= size_bytes

    def _let_go_of_disk(self, size_bytes: int) -> None:
        self._held -= size_bytes

    def _on_disk(self, array: Array) -> Held:
        if self._segment is None or not self._segment.has_room_for(array.nbytes):
            self._segment = _Segment(max(SEGMENT, array.nbytes))
        begin = self._segment.write(array)
        self.spilled_bytes += array.nbytes
        return _Spilled(self._segment, begin, array.shape, array.dtype, self._let_go_of_disk)


class Resident:
    """An array in memory that tells when it is let go, if anybody counts."""

    __slots__ = ("_let_go", "array", "dtype", "shape")

    def __init__(self, array: Array, let_go: Callable[[int], None] | None = None) -> None:
        self.array = array
        self.shape: tuple[int, ...] = array.shape
        self.dtype: np.dtype[Any] = array.dtype
        self._let_go = let_go

    def __del__(self) -> None:
        if self._let_go is not None:
            self._let_go(self.array.nbytes)


class _Segment:
    """One file without a name, mapped whole."""

    def __init__(self, size_bytes: int) -> None:
        size_bytes = -(-size_bytes // _PAGE) * _PAGE
        self._file: Any = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  it lives as long as what it holds
        try:
            self._file.truncate(size_bytes)
            self._map = mmap.mmap(self._file.fileno(), size_bytes, access=mmap.ACCESS_READ)
        except OSError as error:
            raise _full(error, size_bytes) from error
        self._size = size_bytes
        self._end = 0

    def __del__(self) -> None:  # nothing looks at it any more
        self._file.close()

    def has_room_for(self, size_bytes: int) -> bool:
        return self._end + size_bytes <= self._size

    def write(self, array: Array) -> int:
        """Write an array at the end and return where; the pages that it begins and ends with are its own."""
        rest, begin = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data, self._end
        try:
            self._file.seek(begin)
            while rest:  # one call writes 2 GB at most
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            raise _full(error, array.nbytes) from error
        self._end = -(-(begin + array.nbytes) // _PAGE) * _PAGE
        return begin

    def view(self, begin: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """What was written there, as an array; the pages it takes are given back when it goes."""
        size_bytes = math.prod(shape) * dtype.itemsize
        return np.asarray(_Pages(self, begin, size_bytes)).view(dtype).reshape(shape)

    def pointer(self, begin: int) -> int:
        """The address of a place in the file."""
        return int(np.frombuffer(self._map, np.uint8, 1, begin).__array_interface__["data"][0])

    def give_back(self, begin: int, size_bytes: int) -> None:
        """Let the pages out of memory; they stay in the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED, begin, size_bytes)


class _Pages:
    """What numpy keeps alive while any view of a mapped array is alive."""

    __slots__ = ("__array_interface__", "_begin", "_segment", "_size")

    def __init__(self, segment: _Segment, begin: int, size_bytes: int) -> None:
        self._segment, self._begin, self._size = segment, begin, size_bytes
        place = (segment.pointer(begin), True)  # True: it is not to be written to
        self.__array_interface__ = {"version": 3, "shape": (size_bytes,), "typestr": "|u1", "data": place}

    def __del__(self) -> None:
        self._segment.give_back(self._begin, self._size)


@dataclass(frozen=True, slots=True)
class _Spilled:
    """An array in a file."""

    segment: _Segment
    begin: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    let_go: Callable[[int], None]

    def __del__(self) -> None:
        self.let_go(math.prod(self.shape) * self.dtype.itemsize)

    @property
    def array(self) -> Array:
        return self.segment.view(self.begin, self.shape, self.dtype)


def _full(error: OSError, size_bytes: int) -> SpillError:
    return SpillError(
        f"{tempfile.gettempdir()}: cannot write {size_bytes:,} bytes of activations there ({error.strerror}); "
        "memory_limit= keeps what is beyond it on disk: raise it, or point TMPDIR to a disk with more room"
    )
