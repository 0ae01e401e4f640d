"""What a file says of its eight-bit numbers: scale, zero point and axis of every tensor that is kept in integers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.graph import Graph, Node

    Array = np.ndarray[Any, Any]

# What hands integers on as they are.
_KEEPS = frozenset(
    {"MaxPool", "Reshape", "Transpose", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Slice", "Gather"}
)


@dataclass(frozen=True)
class Scheme:
    """How real numbers are integers: ``real = scale * (integer - zero)``, along an axis where `scale` is a vector."""

    scale: Array
    zero: Array
    axis: int = 1
    bits: int = 0
    """How many bits of the type are used, where that is not all: numbers of four have a byte each in numpy."""

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer."""
        return ends(f"int{self.bits}" if self.bits else "", self.zero.dtype)

    @property
    def middle(self) -> int:
        """The zero point that gives both signs the same range."""
        return 0 if self.zero.dtype.kind == "i" else (self.limits[1] + 1) // 2

    @property
    def per_channel(self) -> bool:
        """Whether every channel has a scale of its own."""
        return self.scale.size > 1

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is in the middle of the integers, so that both signs have the same range."""
        return bool(np.all(self.zero == self.middle))

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real number that there is an integer for, over all channels."""
        (low, high), zero, scale = self.limits, self.zero.astype(np.float64), self.scale.astype(np.float64)
        return float(((low - zero) * scale).min()), float(((high - zero) * scale).max())

    def same(self, other: Scheme) -> bool:
        """Whether two schemes give the same numbers."""
        kinds = self.zero.dtype == other.zero.dtype and np.array_equal(self.zero.reshape(-1), other.zero.reshape(-1))
        return kinds and np.allclose(self.scale.reshape(-1), other.scale.reshape(-1), rtol=1e-5, atol=0)

    def real(self, integers: Array) -> Array:
        """The real numbers of stored integers, in double precision."""
        scale, zero = (self.along(array, integers.ndim).astype(np.float64) for array in (self.scale, self.zero))
        return (integers.astype(np.float64) - zero) * scale

    def integers(self, real: Array) -> Array:
        """The nearest integers, halves to even, clipped to the type's range (ONNX: QuantizeLinear)."""
        scale, zero = (self.along(array, real.ndim).astype(np.float64) for array in (self.scale, self.zero))
        return np.clip(np.rint(real.astype(np.float64) / scale) + zero, *self.limits).astype(self.zero.dtype)

    def along(self, array: Array, rank: int) -> Array:
        """Scales or zero points, in the shape in which they go with an array of so many axes."""
        if array.size == 1 or rank == 0:
            return array.reshape(())
        shape = [1] * rank
        shape[self.axis % rank] = array.size
        return array.reshape(shape)


def ends(kind: str, dtype: np.dtype[Any]) -> tuple[int, int]:
    """The smallest and the largest integer of a format of few bits (int4), else of a type."""
    if kind not in ("int2", "int4"):
        return int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    count = 1 << int(kind.removeprefix("int"))
    return (-count // 2, count // 2 - 1) if dtype.kind == "i" else (0, count - 1)


def fitted(values: Array, like: Scheme, axis: int | None = None) -> Scheme:
    """The scheme that holds these numbers without clipping: of the same type, symmetry and granularity as another."""
    axis = like.axis if axis is None else axis
    flat = values.astype(np.float64)
    flat = flat[np.isfinite(flat)].reshape(1, -1) if not like.per_channel else _by_channel(flat, axis)
    low, high = (np.minimum(flat.min(axis=1, initial=0.0), 0.0), np.maximum(flat.max(axis=1, initial=0.0), 0.0))
    smallest, largest = like.limits
    if like.symmetric:
        scale, zero = np.maximum(-low, high) / (largest - like.middle), np.full(low.shape, like.middle)
    else:
        scale = (high - low) / (largest - smallest)
        zero = np.rint(smallest - low / np.where(scale > 0, scale, 1.0))
    scale = np.where(scale > 0, scale, 1.0).astype(like.scale.dtype)
    shape = () if not like.per_channel else scale.shape
    return Scheme(scale.reshape(shape), zero.astype(like.zero.dtype).reshape(shape), axis, like.bits)


def _by_channel(values: Array, axis: int) -> Array:
    return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


@dataclass(frozen=True)
class Activation:
    """A tensor that passes through integers: its QuantizeLinear and the DequantizeLinear behind it."""

    tensor: str
    writer: Node
    reader: Node
    written: Scheme
    read: Scheme


@dataclass(frozen=True)
class Stored:
    """A constant that is kept in integers, and the DequantizeLinear that reads it."""

    node: Node
    integers: Array
    scheme: Scheme

    @property
    def kind(self) -> str:
        """The type of the integers."""
        return f"int{self.scheme.bits}" if self.scheme.bits else str(self.integers.dtype)

    @property
    def is_bias(self) -> bool:
        """Whether its scale is the product of two others, and it has room for any number."""
        return bool(self.integers.dtype.itemsize == 4)


def activations(graph: Graph, constants: Mapping[str, Array]) -> Iterator[Activation]:
    """Every tensor that is quantised, and dequantised again."""
    for node in graph.nodes:
        if node.op != "DequantizeLinear" or node.inputs[0] in constants:
            continue
        index = graph.producer.get(node.inputs[0])
        while index is not None and graph.nodes[index].op in _KEEPS:
            index = graph.producer.get(graph.nodes[index].inputs[0])
        writer = None if index is None else graph.nodes[index]
        if writer is None or writer.op != "QuantizeLinear":
            continue
        written, read = scheme_of(writer, constants), scheme_of(node, constants)
        if written is not None and read is not None:
            yield Activation(writer.inputs[0], writer, node, written, read)


def stored(graph: Graph, constants: Mapping[str, Array]) -> Iterator[Stored]:
    """Every constant of sixteen bits or fewer, and biases, which have 32 and the scale of what they are added to."""
    for node in graph.nodes:
        integers = constants.get(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if integers is None or integers.dtype.kind not in "iu" or integers.dtype.itemsize not in (1, 2, 4):
            continue
        scheme, kind = scheme_of(node, constants, integers.dtype), graph.format_of(node.inputs[0])
        if scheme is not None:
            bits = int(kind.removeprefix("int")) if kind else 0
            yield Stored(node, integers, replace(scheme, bits=bits))


def scheme_of(node: Node, constants: Mapping[str, Array], kind: Any = np.uint8) -> Scheme | None:
    """The scheme of a QuantizeLinear or DequantizeLinear with constant operands; None where they are computed.

    `kind` is the type of the integers: that of a zero point which is left out.
    """
    scale = constants.get(node.inputs[1]) if len(node.inputs) > 1 else None
    if scale is None or scale.dtype.kind != "f":
        return None
    given = node.inputs[2] if len(node.inputs) > 2 else ""
    zero = constants.get(given) if given else np.zeros(scale.shape, kind)
    if zero is None or zero.dtype.kind not in "iu":
        return None
    return Scheme(scale, zero, int(node.attributes.get("axis", 1)))
