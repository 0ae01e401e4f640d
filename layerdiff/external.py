"""Weights that stay on disk: a model without them, which says where in which file each lies.

Weights that are inside an .onnx file are left there, too: the file is walked through once in its wire format
(protobuf.dev/programming-guides/encoding), and what is large becomes a reference to the place where it lies in the very
same file. So no weight is read before somebody looks at it, none is copied into the models that are made for a run, and
a runtime maps the file like any other external data.
"""

from __future__ import annotations

import math
import mmap
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_tensor

from layerdiff.errors import ModelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator

    Array = np.ndarray[Any, Any]

LARGE = 64 << 10
"""Bytes from which on a weight is left where it is; what runtimes need for shapes is smaller."""
FOLDER = "layerdiff.folder"
"""The key of the metadata that names the folder that a model's external data lies in."""
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9  # field numbers of onnx.proto
_VARINT, _LONG, _BYTES, _SHORT = 0, 1, 2, 5  # wire types


def without_weights(path: Path) -> onnx.ModelProto:
    """The model in a file, each large weight a reference to where it lies.

    Raises
    ------
    DecodeError, ValueError
        The file is no ONNX model, or truncated.

    """
    real = path.resolve()
    with real.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        model: onnx.ModelProto = onnx.ModelProto.FromString(b"".join(_stripped(content, real.name)))
    folder = real.parent
    if real != path.absolute() and any(_location(t) != real.name for t in _outside(model)):
        model = onnx.load_model(path, load_external_data=False)  # its data lies beside the link
        folder = path.parent.absolute()
    kept = [entry for entry in model.metadata_props if entry.key != FOLDER]  # a file does not say where it lies
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    _place(model, folder)
    return model


def placed(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The model, with a folder for its external data where it has such data and none is known."""
    if folder_of(model) is not None or not _outside(model):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    _place(result, folder)
    return result


def _place(model: onnx.ModelProto, folder: Path) -> None:
    entry = model.metadata_props.add()
    entry.key, entry.value = FOLDER, str(folder)


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, after a look whether all that lies outside is there; what is small is read into it.

    Raises
    ------
    OSError, ValueError, onnx.checker.ValidationError
        A file is not there, too short, or outside the folder.

    """
    folder = folder_of(model)
    assert folder is not None
    sizes: dict[str, int] = {}
    for tensor in _outside(model):
        location = _location(tensor)
        if location not in sizes:
            sizes[location] = _size_of(location, folder)
        offset, length = _span(tensor, sizes[location])
        if not 0 <= offset <= offset + length <= sizes[location]:
            raise ValueError(
                f"{location} has {sizes[location]} bytes, and {tensor.name} should lie at {offset} to {offset + length}"
            )
        if length < LARGE:
            load_external_data_for_tensor(tensor, str(folder))
    return model


def _size_of(location: str, folder: Path) -> int:
    """The size of a data file; onnx itself says whether the path may be read at all."""
    probe = onnx.TensorProto(name=location, data_type=onnx.TensorProto.UINT8, dims=[1])
    probe.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", "1")):
        entry = probe.external_data.add()
        entry.key, entry.value = key, value
    load_external_data_for_tensor(probe, str(folder))
    return (folder / location).stat().st_size


def folder_of(model: onnx.ModelProto) -> Path | None:
    """The folder that the external data of a model lies in; None where nothing says so."""
    return next((Path(entry.value) for entry in model.metadata_props if entry.key == FOLDER), None)


def is_outside(tensor: onnx.TensorProto) -> bool:
    """Whether the numbers of a tensor are in a file of their own."""
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def numbers(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    """The numbers of a tensor; what is outside is mapped, and read as it is looked at.

    Raises
    ------
    ModelFileError
        The file has changed since it was opened, or onnx cannot read what is in it.

    """
    if not is_outside(tensor):
        return _array(tensor)
    raw = _mapped(tensor, folder)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if dtype.itemsize * math.prod(tensor.dims) != raw.size or dtype.kind not in "fciub":  # packed, or not of numpy
        inside = onnx.TensorProto(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        inside.raw_data = raw.tobytes()
        return _array(inside)
    return np.asarray(raw.view(dtype).reshape(tuple(tensor.dims)))  # numpy also reads what is not aligned


def _array(tensor: onnx.TensorProto) -> Array:
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, IndexError) as error:  # no texts; 1.17 reads no complex numbers
        raise ModelFileError(
            f"tensor {tensor.name!r} cannot be read by onnx {onnx.__version__} ({type(error).__name__}: {error}); "
            "export the model again, or try a newer onnx"
        ) from error


def _mapped(tensor: onnx.TensorProto, folder: Path | None) -> Array:
    path = (folder or Path()) / _location(tensor)
    try:
        with path.open("rb") as file:
            offset, length = _span(tensor, os.fstat(file.fileno()).st_size)
            before = offset % mmap.ALLOCATIONGRANULARITY
            pages = mmap.mmap(file.fileno(), before + length, access=mmap.ACCESS_READ, offset=offset - before)
        return np.frombuffer(pages, np.uint8, length, before)
    except (OSError, ValueError) as error:
        raise ModelFileError(
            f"{path}: cannot be read any more ({error}); it has changed since it was opened, trace again"
        ) from error


def with_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every weight in it that is outside; itself when there is none."""
    if not any(is_outside(tensor) for tensor in model.graph.initializer):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    folder = folder_of(model)
    for tensor in result.graph.initializer:
        if is_outside(tensor):
            tensor.raw_data = _mapped(tensor, folder).tobytes()
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
    kept = [entry for entry in model.metadata_props if entry.key != FOLDER]
    del result.metadata_props[:]
    result.metadata_props.extend(kept)
    return result


def _outside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    return [tensor for tensor in model.graph.initializer if is_outside(tensor)]


def _location(tensor: onnx.TensorProto) -> str:
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _span(tensor: onnx.TensorProto, size: int) -> tuple[int, int]:
    """Offset and length in bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset = int(entries.get("offset", 0))
    return offset, int(entries.get("length", size - offset))


def _stripped(content: mmap.mmap, name: str) -> Iterator[bytes]:
    """The bytes of a model in pieces, without its large weights."""
    for field, begin, value, end in _fields(content, 0, len(content)):
        if field != _GRAPH:
            yield content[begin:end]
            continue
        parts = list(_graph(content, value, end, name))
        yield _tag(_GRAPH, _BYTES) + _varint(sum(map(len, parts)))
        yield from parts


def _graph(content: mmap.mmap, begin: int, end: int, name: str) -> Iterator[bytes]:
    for field, start, value, stop in _fields(content, begin, end):
        parts = _tensor(content, value, stop, name) if field == _INITIALIZER and stop - value >= LARGE else None
        if parts is None:
            yield content[start:stop]
        else:
            yield _tag(_INITIALIZER, _BYTES) + _varint(len(parts)) + parts


def _tensor(content: mmap.mmap, begin: int, end: int, name: str) -> bytes | None:
    """A tensor without its numbers; None where they are not one run of bytes."""
    parts, found = [], None
    for field, start, value, stop in _fields(content, begin, end):
        if field == _RAW_DATA and stop - value >= LARGE:
            found = (value, stop - value)
        else:
            parts.append(content[start:stop])
    if found is None:
        return None
    outside = onnx.TensorProto(data_location=onnx.TensorProto.EXTERNAL)
    for key, text in (("location", name), ("offset", str(found[0])), ("length", str(found[1]))):
        entry = outside.external_data.add()
        entry.key, entry.value = key, text
    return b"".join([*parts, bytes(outside.SerializeToString())])


def _fields(content: mmap.mmap, begin: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """The fields of a message: number, where it begins, where its value begins, where it ends.

    Raises
    ------
    ValueError
        It is no message, or cut off.

    """
    at = begin
    while at < end:
        key, value = _read_varint(content, at, end)
        kind = key & 7
        if kind == _VARINT:
            _, stop = _read_varint(content, value, end)
        elif kind == _BYTES:
            length, value = _read_varint(content, value, end)
            stop = value + length
        elif kind in (_LONG, _SHORT):
            stop = value + (8 if kind == _LONG else 4)
        else:
            raise ValueError(f"no field of a message at byte {at}")
        if stop > end:
            raise ValueError(f"cut off at byte {end}: a field goes on to byte {stop}")
        yield key >> 3, at, value, stop
        at = stop


def _read_varint(content: mmap.mmap, at: int, end: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while at < end and shift < 70:
        byte = content[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise ValueError(f"no number at byte {at}")


def _varint(value: int) -> bytes:
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _tag(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)
