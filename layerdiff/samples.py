"""What the user gives as inputs, as samples: arguments for the reference and arrays for the candidate."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils._pytree import tree_map_only

from layerdiff.array_files import read_arrays
from layerdiff.errors import FixedShapeError, InputError, SampleError
from layerdiff.layout import moved
from layerdiff.signature import signature_of
from layerdiff.tensors import named_tensors

if TYPE_CHECKING:
    from layerdiff.graph import Graph, Port
    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Sample:
    """The arguments of one forward call."""

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


_ONE = (Sample, torch.Tensor, np.ndarray, tuple, Mapping, str, Path)


def how_many(inputs: Any) -> int | None:
    """The number of samples; None for a stream, whose end nobody knows."""
    if isinstance(inputs, _ONE):
        return 1
    return len(inputs) if isinstance(inputs, Sized) else None


def samples(inputs: Any, device: str = "cpu") -> Iterator[Sample]:
    """One sample for a tensor, array, tuple, dict or file; one for each item of a list or another iterable.

    A tuple holds positional arguments, a dict keyword arguments, an ``.npz`` either (``arr_0``, ``arr_1``, … are
    positional, other names are keywords). Arrays become tensors on the device; tensors stay where they are.
    """
    if isinstance(inputs, Sample):
        yield inputs
        return
    if isinstance(inputs, _ONE):
        yield _sample(inputs, device)
        return
    if not isinstance(inputs, Iterable):
        raise SampleError(
            f"inputs: a {type(inputs).__name__} is no sample; give a tensor, an array, a tuple of arguments, "
            "a dict of keyword arguments, an .npy or .npz path, or a list of those"
        )
    count = 0
    for count, item in enumerate(inputs, 1):  # noqa: B007  the count is read after the loop
        yield _sample(item, device)
    if count == 0:
        raise SampleError("inputs: an empty list; give at least one sample")


def _sample(item: Any, device: str) -> Sample:
    if isinstance(item, (str, Path)):
        return _sample(_read(Path(item)), device)
    if isinstance(item, Mapping):
        return Sample(kwargs={str(name): _tensor(value, device) for name, value in item.items()})
    values = item if isinstance(item, tuple) else (item,)
    if not values:
        raise SampleError("inputs: an empty tuple; the model gets no arguments")
    return Sample(args=tuple(_tensor(value, device) for value in values))


def _tensor(value: Any, device: str) -> Any:
    if not isinstance(value, np.ndarray):
        return tree_map_only(torch.Tensor, _bare, value)
    if value.dtype.kind not in "biufc":
        raise SampleError(f"inputs: an array of {value.dtype} is no tensor; give numbers or booleans")
    return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C")).to(device)


def _bare(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that only carries a name for its kind, as the images of torchvision do, as a plain one."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    own_dispatch = type(tensor).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    return tensor if plain or own_dispatch else tensor.as_subclass(torch.Tensor)


def _read(path: Path) -> Any:
    try:
        arrays = read_arrays(path)
    except InputError as error:
        raise SampleError(f"{error}; give an .npy or .npz file with the model's inputs") from error
    if isinstance(arrays, np.ndarray):
        return arrays
    positional = [f"arr_{i}" for i in range(len(arrays))]
    return tuple(arrays[name] for name in positional) if set(arrays) == set(positional) else arrays


def feeds_for(graph: Graph, arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The inputs of a graph, by name: matched by argument name where all names are known, else by position.

    An input that an initializer fills is fed where the sample has something for it.

    Raises
    ------
    SampleError
        Another number of inputs, or one of another type or rank, than the graph declares.
    FixedShapeError
        An input of another size than the graph declares.

    """
    fed = _fed_ports(graph, arrays)
    if {port.name for port in fed} <= set(arrays):
        chosen = {port.name: arrays[port.name] for port in fed}
    elif len(fed) == len(arrays):
        chosen = {port.name: array for port, array in zip(fed, arrays.values(), strict=True)}
    else:
        wanted = ", ".join(f"{port.name} {_describe(port.dtype, port.shape)}" for port in fed)
        got = ", ".join(f"{name} {_describe(str(a.dtype), a.shape)}" for name, a in arrays.items())
        raise SampleError(
            f"the ONNX model has {_count(len(fed))} ({wanted}), the sample has {_count(len(arrays))} ({got}); "
            "give the same inputs to both, by name or in the order of the graph"
        )
    chosen = {port.name: _in_type(port, _in_layout(port, chosen[port.name])) for port in fed}
    for port in fed:
        _check(port, chosen[port.name])
    return chosen


def _fed_ports(graph: Graph, arrays: Mapping[str, Array]) -> tuple[Port, ...]:
    """What must be fed, and what initializers fill but the sample has: by name, or as one of the first by position."""
    if {port.name for port in graph.inputs} <= set(arrays):
        return tuple(port for port in graph.ports if port in graph.inputs or port.name in arrays)
    first = graph.ports[: len(arrays)]
    if len(first) <= len(graph.inputs) or not set(graph.inputs) <= set(first):
        return graph.inputs
    return (
        first if all(_fits(port, array) for port, array in zip(first, arrays.values(), strict=True)) else graph.inputs
    )


def _fits(port: Port, array: Array) -> bool:
    try:
        _check(port, array)
    except SampleError:
        return False
    return True


def read_only(feeds: Mapping[str, Array], reference: Reference) -> dict[str, Array]:
    """The inputs that the reference reads or returns: exporters leave out the others."""
    read = {value for site in reference.sites for value in site.inputs} | set(reference.outputs.values())
    unread = {name for name, value in reference.inputs.items() if value not in read}
    return {name: array for name, array in feeds.items() if name not in unread}


def _in_layout(port: Port, array: Array) -> Array:
    """The array with its channels where the graph has them, first or last; the report warns of it."""
    axes = None if port.shape is None else moved(array.shape, port.shape)
    return array if axes is None else np.ascontiguousarray(array.transpose(axes))


def _in_type(port: Port, array: Array) -> Array:
    """The array in half precision where the graph takes it so, as converters leave its inputs."""
    return array.astype(np.float16) if port.dtype == "float16" and array.dtype == np.float32 else array


def named_arguments(sample: Sample, model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every tensor of the sample under its argument's name (and its path inside, for nested arguments)."""
    signature = signature_of(model)
    try:
        bound = signature.bind(*sample.args, **sample.kwargs)
    except TypeError as error:
        given = [f"{len(sample.args)} positional"] if sample.args else []
        given += [f"{name}=" for name in sample.kwargs]
        raise SampleError(
            f"inputs: {type(model).__name__}.forward{signature} does not take {', '.join(given)} ({error}); "
            "give a tuple of positional arguments or a dict with the names of forward"
        ) from error
    found: dict[str, torch.Tensor] = {}
    for name, value in bound.arguments.items():
        parameter = signature.parameters[name]
        many = parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        for path, tensor in named_tensors(value).items():
            label = path if many and parameter.kind is inspect.Parameter.VAR_KEYWORD else f"{name}.{path}"
            found[label.rstrip(".")] = tensor
    return found


def _check(port: Port, array: Array) -> None:
    if port.dtype and str(array.dtype) != port.dtype and not port.dtype.startswith(("bfloat16", "float8")):
        raise SampleError(
            f"input {port.name!r}: the ONNX model wants {port.dtype}, the sample has {array.dtype}; "
            f"convert it, for instance with .astype({port.dtype!r})"
        )
    if port.shape is None:
        return
    same = len(port.shape) == array.ndim and all(
        want is None or want == got for want, got in zip(port.shape, array.shape, strict=True)
    )
    if not same:
        raise (FixedShapeError if len(port.shape) == array.ndim else SampleError)(
            f"input {port.name!r}: the ONNX model wants shape {_describe('', port.shape)}, the sample has "
            f"{array.shape}; feed that shape, or export with dynamic axes"
        )


def _count(number: int) -> str:
    return f"{number} input" if number == 1 else f"{number} inputs"


def _describe(dtype: str, shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return dtype
    return f"{dtype}({', '.join('?' if n is None else str(n) for n in shape)})"
