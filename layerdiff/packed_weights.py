"""Weights of four bits and other few, packed in blocks, as ``com.microsoft.MatMulNBits`` keeps them: unpacked.

A block of a column of the weight matrix shares a scale and a zero point; two numbers of four bits lie in a byte, the
first in its lower half (onnxruntime, docs/ContribOperators.md). What is examined is the product with the weights
dequantised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    _Parts = Iterator[onnx.NodeProto | onnx.TensorProto]

_BITS = (2, 4, 8)


def packed(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether such a node has all its weights in the file, in the order of their columns."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    inside = {tensor.name for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL}
    wanted = [name for name in node.input[1:4] if name]
    ordered = len(node.input) < 5 or not node.input[4]
    return ordered and given.get("bits", 4) in _BITS and inside.issuperset(wanted)


def unpacked_parts(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> _Parts:
    """The operators of such a node, in order."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    bits, block = int(given.get("bits", 4)), int(given["block_size"])
    rows, columns = int(given["K"]), int(given["N"])
    blocks, output = -(-rows // block), node.output[0]
    integers = _unpacked(numpy_helper.to_array(weights[node.input[1]]), bits).reshape(columns * blocks, -1)[:, :block]
    scales = numpy_helper.to_array(weights[node.input[2]]).reshape(-1)
    zero = node.input[3] if len(node.input) > 3 else ""
    bias = node.input[5] if len(node.input) > 5 else ""

    def tensor(name: str, values: NDArray[np.generic]) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(values), f"{output}__{name}")

    def part(op: str, inputs: list[str], to: str, **attributes: Any) -> onnx.NodeProto:
        made = helper.make_node(op, inputs, [to], name=node.name, **attributes)
        made.metadata_props.extend(node.metadata_props)
        return made

    yield tensor("int", integers)
    yield tensor("scales", scales)
    yield tensor("zeros", _zeros(None if not zero else numpy_helper.to_array(weights[zero]), bits, (columns, blocks)))
    yield part(
        "DequantizeLinear", [f"{output}__{name}" for name in ("int", "scales", "zeros")], f"{output}__blocks", axis=0
    )
    yield tensor("shape", np.array([columns, blocks * block]))
    yield part("Reshape", [f"{output}__blocks", f"{output}__shape"], f"{output}__columns")
    columns_of = f"{output}__columns"
    if rows != blocks * block:
        for name, number in (("from", 0), ("to", rows), ("axis", 1)):
            yield tensor(name, np.array([number]))
        marks = [f"{output}__{name}" for name in ("from", "to", "axis")]
        yield part("Slice", [columns_of, *marks], f"{output}__cut")
        columns_of = f"{output}__cut"
    yield part("Transpose", [columns_of], f"{output}__weight", perm=[1, 0])
    yield part("MatMul", [node.input[0], f"{output}__weight"], f"{output}__product" if bias else output)
    if bias:
        yield part("Add", [f"{output}__product", bias], output)


def _unpacked(array: NDArray[np.generic], bits: int) -> NDArray[np.uint8]:
    """The numbers in the bytes of the last axis, those in the lower bits first."""
    data = np.asarray(array).view(np.uint8)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    found = (data[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return np.asarray(found.reshape(*data.shape[:-1], -1), np.uint8)


def _zeros(stored: NDArray[np.generic] | None, bits: int, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """One zero point a block: packed column by column where they are stored, else the middle of the range."""
    columns, blocks = shape
    if stored is None:
        return np.full(columns * blocks, 1 << (bits - 1), np.uint8)
    if stored.dtype == np.uint8:
        return np.ascontiguousarray(_unpacked(stored.reshape(columns, -1), bits)[:, :blocks]).reshape(-1)
    return np.asarray(np.rint(stored.reshape(-1).astype(np.float64)), np.uint8)
