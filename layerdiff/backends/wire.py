"""Messages between a process and the worker that runs a model for it: JSON, and arrays in shared memory.

What comes back from a worker is data and never code, since the worker has read a file that nobody trusts. Memory is
shared by handing over the descriptor of an anonymous file: it has no name that could be left behind, whoever dies, and
it is not bounded by the size of /dev/shm, which is 64 MB in a container.
"""

from __future__ import annotations

import array
import json
import mmap
import os
import socket
import struct
import tempfile
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    Array = np.ndarray[Any, Any]

_HEAD = struct.Struct("!QI")  # length of the text, number of descriptors
_FDS_AT_ONCE = 64  # Linux takes 253 in one message
_ALIGNMENT = 64
# An array of this size gets memory of its own, which is given back with it; smaller ones share.
_ALONE_BYTES = 1 << 20
_LONGEST_TEXT = 1 << 30
_KINDS = "biufc"


class BrokenWireError(Exception):
    """The other side is gone, or what it sent is no message."""


def send(wire: socket.socket, message: Mapping[str, Any], arrays: Mapping[str, Array | None] | None = None) -> None:
    """Send a message, with named arrays; None stands for what is no array."""
    segments: list[int] = []
    try:
        text = json.dumps({**message, "arrays": _packed(arrays or {}, segments)}).encode()
        _send(wire, text, segments)
    finally:
        for segment in segments:
            os.close(segment)


def receive(wire: socket.socket) -> tuple[dict[str, Any], dict[str, Array | None]]:
    """The next message, and its arrays; they lie in the memory that the sender wrote.

    Raises
    ------
    BrokenWireError
        The other side is gone, or does not keep to the form.
    TimeoutError
        Nothing came within the time limit of the socket.

    """
    try:
        text, segments = _receive(wire)
    except (TimeoutError, BrokenWireError):
        raise
    except (OSError, ValueError) as error:
        raise BrokenWireError(str(error)) from error
    try:
        message = json.loads(text)
        return message, _unpacked(message["arrays"], segments)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise BrokenWireError(f"a message that is none ({error})") from error
    finally:
        for segment in segments:
            os.close(segment)


def _anonymous_file() -> int:
    """A descriptor of memory that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("layerdiff")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _packed(arrays: Mapping[str, Array | None], segments: list[int]) -> list[dict[str, Any]]:
    """Where each array lies; the segments are made here."""
    entries, small = [], []
    for name, given in arrays.items():
        entry: dict[str, Any] = {"name": name}
        entries.append(entry)
        if given is None:
            continue
        entry |= {"dtype": given.dtype.str, "shape": given.shape}
        if given.dtype.kind not in _KINDS:  # text
            entry["items"] = [str(item) for item in given.reshape(-1).tolist()]
        elif given.nbytes >= _ALONE_BYTES:
            entry |= {"segment": len(segments), "offset": 0}
            segments.append(_filled([(0, given)]))
        else:
            small.append((entry, given))
    offset, placed = 0, []
    for entry, given in small:
        entry |= {"segment": len(segments), "offset": offset}
        placed.append((offset, given))
        offset += -(-given.nbytes // _ALIGNMENT) * _ALIGNMENT
    if placed:
        segments.append(_filled(placed))
    return entries


def _filled(placed: Sequence[tuple[int, Array]]) -> int:
    """A segment that holds arrays at offsets."""
    segment = _anonymous_file()
    size = max(offset + given.nbytes for offset, given in placed)
    if size == 0:
        return segment
    os.ftruncate(segment, size)
    with mmap.mmap(segment, size) as memory:
        for offset, given in placed:
            view: Array = np.ndarray(given.shape, given.dtype, memory, offset)
            view[...] = given
            del view  # a mapping in use cannot be closed
    return segment


def _unpacked(entries: Sequence[Mapping[str, Any]], segments: Sequence[int]) -> dict[str, Array | None]:
    maps: dict[int, mmap.mmap] = {}
    found: dict[str, Array | None] = {}
    for entry in entries:
        found[str(entry["name"])] = _array(entry, segments, maps) if "dtype" in entry else None
    return found


def _array(entry: Mapping[str, Any], segments: Sequence[int], maps: dict[int, mmap.mmap]) -> Array:
    """One array; numpy refuses what does not lie inside its segment."""
    shape = tuple(int(size) for size in entry["shape"])
    if "items" in entry:
        return np.array([str(item) for item in entry["items"]], dtype=object).reshape(shape)
    dtype = np.dtype(str(entry["dtype"]))
    if dtype.kind not in _KINDS:
        raise ValueError(f"an array of {dtype}")
    if prod(shape) == 0:
        return np.empty(shape, dtype)
    index = int(entry["segment"])
    if index not in maps:
        maps[index] = mmap.mmap(segments[index], 0)
    return np.ndarray(shape, dtype, maps[index], int(entry["offset"]))


def _send(wire: socket.socket, text: bytes, segments: Sequence[int]) -> None:
    wire.sendall(_HEAD.pack(len(text), len(segments)))
    for start in range(0, len(segments), _FDS_AT_ONCE):
        socket.send_fds(wire, [b"+"], list(segments[start : start + _FDS_AT_ONCE]))
    wire.sendall(text)


def _receive(wire: socket.socket) -> tuple[bytes, list[int]]:
    length, count = _HEAD.unpack(_exactly(wire, _HEAD.size))
    if length > _LONGEST_TEXT:
        raise ValueError(f"a message of {length} bytes")
    segments: list[int] = []
    try:
        while len(segments) < count:
            wanted = min(count - len(segments), _FDS_AT_ONCE)
            mark, ancillary, _, _ = wire.recvmsg(1, socket.CMSG_SPACE(wanted * array.array("i").itemsize))
            before = len(segments)
            segments += _descriptors(ancillary)
            if not mark or len(segments) == before:
                raise BrokenWireError("it ended in the middle of a message")  # noqa: TRY301  the descriptors are closed
        return _exactly(wire, length), segments
    except BaseException:
        for segment in segments:
            os.close(segment)
        raise


def _descriptors(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    found = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


def _exactly(wire: socket.socket, length: int) -> bytes:
    found = bytearray()
    while len(found) < length:
        part = wire.recv(min(length - len(found), 1 << 20))
        if not part:
            raise ValueError("it ended in the middle of a message" if found else "it ended")
        found += part
    return bytes(found)
