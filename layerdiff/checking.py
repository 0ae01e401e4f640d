"""What a model must be before anything walks through it: a file from elsewhere may claim whatever it likes.

Operators, types and shapes are left to the runtime, which refuses with words of its own. What is checked here are the
things that readers of the file trust blindly: kinds of attributes, sizes of tensors, the depth of subgraphs, and where
weights outside the file lie.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import chain
from math import prod
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING

import onnx
from onnx import AttributeProto, TensorProto, helper

from layerdiff.errors import LayerdiffError, ModelFileError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# Each level of an If takes three levels of messages, and protobuf reads a hundred: no file is deeper than this.
MAX_DEPTH = 32
# Nodes that functions may be when they are written out where they are called, and calls of one inside the other.
MAX_NODES = 1_000_000
_MOST_CALLS = 100
_KINDS = frozenset(AttributeProto.AttributeType.values()) - {AttributeProto.UNDEFINED}
_PACKED = {TensorProto.UINT4: 2, TensorProto.INT4: 2, 23: 2, 25: 4, 26: 4}  # FLOAT4E2M1, UINT2, INT2
_LARGE_BYTES = 1 << 20
_LONGEST = 1 << 40
_MOST_AXES = 32  # numpy's own limit before version 2


def check(model: onnx.ModelProto, name: str) -> None:
    """Refuse a model that cannot be walked through; `name` is what an error calls it.

    Raises
    ------
    ModelFileError
        An attribute, a tensor or the depth of subgraphs is none that a model can have; the text says where.

    """
    todo: list[tuple[onnx.GraphProto | onnx.FunctionProto, str, int]] = [(model.graph, "the graph", 0)]
    todo += [(function, f"function {function.domain}.{function.name}", 0) for function in model.functions]
    while todo:
        graph, where, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ModelFileError(f"{name}: subgraphs are nested more than {MAX_DEPTH} deep in {where}")
        if isinstance(graph, onnx.GraphProto):
            _check_ends(graph, name, where)
        for index, node in enumerate(graph.node):
            place = f"node {_legible(node, f'{name}: node {index} of {where}')} of {where}"
            for attribute in node.attribute:
                if not isinstance(attribute.name, str):
                    raise ModelFileError(f"{name}: {place}: an attribute's name is no text; the file is damaged")
                _check_attribute(attribute, f"{name}: attribute {attribute.name!r} of {place}")
                inner = [attribute.g] if attribute.HasField("g") else []
                todo += [(graph, place if depth < 2 else where, depth + 1) for graph in (*inner, *attribute.graphs)]
    if model.functions:
        _check_functions(model, name)


@contextmanager
def walking(name: str) -> Iterator[None]:
    """Whatever a reader of a model stumbles over is told as the model's; `name` is what the error calls it.

    Raises
    ------
    ModelFileError
        The readers raised something that is no error of ours; it is the cause of this one.

    """
    try:
        yield
    except LayerdiffError:
        raise
    except Exception as error:
        kind = f"{type(error).__name__}: {error}"
        raise ModelFileError(
            f"{name}: the graph cannot be read ({' '.join(kind.split())[:300]}); see what onnx.checker.check_model "
            "says of it. If it has nothing to say, please report this with the file"
        ) from error


def check_places(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model whose weights lie anywhere but beside it.

    Raises
    ------
    ModelFileError
        A place is absolute, or leads out of the model's folder, by its name or by a link.

    """
    folder = path.parent.resolve()
    for tensor in _all_tensors(model):
        for place in (entry.value for entry in tensor.external_data if entry.key == "location"):
            parts = PurePosixPath(place).parts + PureWindowsPath(place).parts
            absolute = PurePosixPath(place).is_absolute() or PureWindowsPath(place).anchor
            inside = not absolute and "\0" not in place and ".." not in parts
            if not inside or not (folder / place).resolve().is_relative_to(folder):
                raise ModelFileError(
                    f"{path}: tensor {tensor.name!r} wants its numbers from {place!r}, which is not in the folder of "
                    "the model; only files beside it are read. If you trust it, copy the data "
                    "beside the model (cp -L follows links) and name it there"
                )


def _check_ends(graph: onnx.GraphProto, name: str, where: str) -> None:
    for port in (*graph.input, *graph.output):
        if not isinstance(port.name, str) or port.type.HasField("opaque_type"):
            raise ModelFileError(f"{name}: input or output {port.name!r} of {where} is of no type that runs")
    for tensor in _tensors_of(graph):
        _check_tensor(tensor, f"{name}: initializer {tensor.name!r} of {where}")


def _legible(node: onnx.NodeProto, where: str) -> str:
    """A node's name and operator; refused where they, or the names of its tensors, are no text."""
    for text in (node.op_type, node.domain, node.name, *node.input, *node.output):
        if not isinstance(text, str):  # protobuf hands out what is no UTF-8 as bytes
            raise ModelFileError(f"{where}: the name {text!r} is no text; the file is damaged")
    return f"{node.name or ', '.join(node.output[:1])} ({node.op_type})"


def _tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    sparse = ((tensor.values, tensor.indices) for tensor in graph.sparse_initializer)
    return chain(graph.initializer, chain.from_iterable(sparse))


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a model, in attributes and subgraphs too."""
    todo: list[onnx.GraphProto | onnx.FunctionProto] = [model.graph, *model.functions]
    while todo:
        graph = todo.pop()
        if isinstance(graph, onnx.GraphProto):
            yield from _tensors_of(graph)
        for node in graph.node:
            for attribute in node.attribute:
                yield from (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors)
                todo += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _check_functions(model: onnx.ModelProto, name: str) -> None:
    """That functions do not call themselves, and that written out they are no more nodes than can be looked at."""
    functions = {(f.domain, f.name): f for f in model.functions}
    if len({(f.domain, f.name, getattr(f, "overload", "")) for f in model.functions}) < len(model.functions):
        raise ModelFileError(f"{name}: a function is there twice under one name")
    sizes: dict[tuple[str, str], int] = {}
    open_calls: dict[tuple[str, str], None] = {}

    def size(key: tuple[str, str]) -> int:
        if key in open_calls or len(open_calls) > _MOST_CALLS:
            chain = " calls ".join(f"{domain}.{function}" for domain, function in [*open_calls][-4:])
            raise ModelFileError(f"{name}: functions call each other without an end ({chain} calls {key[0]}.{key[1]})")
        if key not in sizes:
            open_calls[key] = None
            sizes[key] = sum(1 if call is None else size(call) for call in calls(functions[key]))
            del open_calls[key]
        return sizes[key]

    def calls(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[tuple[str, str] | None]:
        for node in _all_nodes(graph):
            key = (node.domain, node.op_type)
            yield key if key in functions else None

    total = sum(1 if call is None else size(call) for call in calls(model.graph))
    if total > MAX_NODES:
        raise ModelFileError(f"{name}: its functions, written out where they are called, are {total} nodes")


def _all_nodes(graph: onnx.GraphProto | onnx.FunctionProto) -> Iterator[onnx.NodeProto]:
    """The nodes of a graph and of its subgraphs."""
    todo = [graph]
    while todo:
        for node in todo.pop().node:
            yield node
            for attribute in node.attribute:
                todo += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _check_attribute(attribute: onnx.AttributeProto, where: str) -> None:
    if attribute.ref_attr_name:  # filled in where its function is called
        return
    if attribute.type not in _KINDS:
        raise ModelFileError(f"{where} is of no kind that there is (type {attribute.type}); export the model again")
    try:
        helper.get_attribute_value(attribute)
    except (ValueError, TypeError) as error:  # UnicodeDecodeError is a ValueError
        raise ModelFileError(f"{where} cannot be read ({error}); export the model again") from error
    for tensor in (*([attribute.t] if attribute.HasField("t") else []), *attribute.tensors):
        _check_tensor(tensor, where)


def _check_tensor(tensor: onnx.TensorProto, where: str) -> None:
    """That a tensor holds as many numbers as it says; what lies outside the file is checked when it is read."""
    dims = list(tensor.dims)
    if tensor.data_type not in TensorProto.DataType.values() or tensor.data_type == TensorProto.UNDEFINED:
        raise ModelFileError(f"{where}: an element type that there is not ({tensor.data_type})")
    _check_sizes(dims, where)
    outside = tensor.data_location == TensorProto.EXTERNAL or bool(tensor.external_data)
    if tensor.data_type == TensorProto.STRING and (outside or tensor.HasField("raw_data")):
        raise ModelFileError(f"{where}: texts that are kept as raw bytes, which onnx does not allow; it is damaged")
    if outside:
        return
    wanted = prod(dims)
    if tensor.HasField("raw_data"):
        per_byte = _PACKED.get(tensor.data_type, 0)
        itemsize = 1 if per_byte else helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        size = -(-wanted // per_byte) if per_byte else wanted * itemsize
        if size > _LARGE_BYTES and tensor.ByteSize() >= size:  # reading the field would copy it
            return
        if len(tensor.raw_data) != size:
            raise ModelFileError(
                f"{where}: shape {_shape(dims)} takes {size} bytes, the file holds {len(tensor.raw_data)}; "
                "it is damaged"
            )
        return
    held = len(getattr(tensor, helper.tensor_dtype_to_field(tensor.data_type)))
    each = 2 if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128) else 1
    per_item = _PACKED.get(tensor.data_type, 1)
    if held != -(-wanted * each // per_item):
        raise ModelFileError(
            f"{where}: shape {_shape(dims)} takes {wanted} elements, the file holds {held // each * per_item}; "
            "it is damaged"
        )


def _check_sizes(dims: Sequence[int], where: str) -> None:
    """That an array can have the shape, whatever is in it."""
    if any(size < 0 for size in dims):
        raise ModelFileError(f"{where}: a negative size in shape {_shape(dims)}")
    if len(dims) > _MOST_AXES:
        raise ModelFileError(f"{where}: {len(dims)} axes, and no more than {_MOST_AXES} can be held")
    if prod(size or 1 for size in dims) > _LONGEST:  # a size of 0 changes nothing: numpy refuses the others alone
        raise ModelFileError(f"{where}: no memory holds shape {_shape(dims)}")


def _shape(dims: Sequence[int]) -> str:
    return f"({', '.join(str(size) for size in dims[:8])}{', …' if len(dims) > 8 else ''})"
