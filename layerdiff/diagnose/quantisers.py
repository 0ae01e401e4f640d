"""What a file says of its eight-bit numbers: scale, zero point and axis of every tensor that is kept in integers."""

from __future__ import annotations

from dataclasses import dataclass
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

    @property
    def per_channel(self) -> bool:
        """Whether every channel has a scale of its own."""
        return self.scale.size > 1

    @property
    def symmetric(self) -> bool:
        """Whether the zero point is in the middle of the integers, so that both signs have the same range."""
        return bool(
            np.all(self.zero == (0 if self.zero.dtype.kind == "i" else 1 << (8 * self.zero.dtype.itemsize - 1)))
        )

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest real number that there is an integer for, over all channels."""
        limits, zero, scale = np.iinfo(self.zero.dtype), self.zero.astype(np.float64), self.scale.astype(np.float64)
        return float(((limits.min - zero) * scale).min()), float(((limits.max - zero) * scale).max())

    def same(self, other: Scheme) -> bool:
        """Whether two schemes give the same numbers."""
        kinds = self.zero.dtype == other.zero.dtype and np.array_equal(self.zero.reshape(-1), other.zero.reshape(-1))
        return kinds and np.allclose(self.scale.reshape(-1), other.scale.reshape(-1), rtol=1e-5, atol=0)

    def real(self, integers: Array) -> Array:
        """The real numbers of stored integers, in double precision."""
        scale, zero = (self._along(array, integers.ndim).astype(np.float64) for array in (self.scale, self.zero))
        return (integers.astype(np.float64) - zero) * scale

    def integers(self, real: Array) -> Array:
        """The nearest integers, halves to even, clipped to the type's range (ONNX: QuantizeLinear)."""
        scale, zero = (self._along(array, real.ndim).astype(np.float64) for array in (self.scale, self.zero))
        limits = np.iinfo(self.zero.dtype)
        return np.clip(np.rint(real.astype(np.float64) / scale) + zero, limits.min, limits.max).astype(self.zero.dtype)

    def _along(self, array: Array, rank: int) -> Array:
        if array.size == 1 or rank == 0:
            return array.reshape(())
        shape = [1] * rank
        shape[self.axis % rank] = array.size
        return array.reshape(shape)


def fitted(values: Array, like: Scheme, axis: int | None = None) -> Scheme:
    """The scheme that holds these numbers without clipping: of the same type, symmetry and granularity as another."""
    axis = like.axis if axis is None else axis
    flat = values.astype(np.float64)
    flat = flat[np.isfinite(flat)].reshape(1, -1) if not like.per_channel else _by_channel(flat, axis)
    low, high = (np.minimum(flat.min(axis=1, initial=0.0), 0.0), np.maximum(flat.max(axis=1, initial=0.0), 0.0))
    limits, kind = np.iinfo(like.zero.dtype), like.zero.dtype
    if like.symmetric:
        middle = 0 if kind.kind == "i" else (limits.max + 1) // 2
        scale, zero = np.maximum(-low, high) / (limits.max - middle), np.full(low.shape, middle)
    else:
        scale = (high - low) / (limits.max - limits.min)
        zero = np.rint(limits.min - low / np.where(scale > 0, scale, 1.0))
    scale = np.where(scale > 0, scale, 1.0).astype(like.scale.dtype)
    shape = () if not like.per_channel else scale.shape
    return Scheme(scale.reshape(shape), zero.astype(kind).reshape(shape), axis)


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
    """Every constant of eight bits or fewer, and biases, which have 32 and the scale of what they are added to."""
    for node in graph.nodes:
        integers = constants.get(node.inputs[0]) if node.op == "DequantizeLinear" else None
        if integers is None or integers.dtype.kind not in "iu" or integers.dtype.itemsize not in (1, 4):
            continue
        scheme = scheme_of(node, constants, integers.dtype)
        if scheme is not None:
            yield Stored(node, integers, scheme)


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
