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
    if len(wanted) < 2 or not all(int(given.get(name, 0)) > 0 for name in ("K", "N", "block_size")):
        return False
    ordered = len(node.input) < 5 or not node.input[4]
    return ordered and given.get("bits", 4) in _BITS and inside.issuperset(wanted)


def unpacked_parts(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> _Parts:
    """The operators of such a node, in order.

    Raises
    ------
    ValueError
        There are not as many weights as its attributes say.

    """
    output, bias = node.output[0], node.input[5] if len(node.input) > 5 else ""

    def part(op: str, inputs: list[str], made_to: str, **attributes: Any) -> onnx.NodeProto:
        made = helper.make_node(op, inputs, [made_to], name=node.name, **attributes)
        made.metadata_props.extend(node.metadata_props)
        return made

    for name, values in _tensors(node, weights).items():
        tensor = numpy_helper.from_array(np.ascontiguousarray(values), f"{output}__{name}")
        tensor.doc_string = _format(node) if name == "int" else ""  # a byte each, for runtimes without such a type
        yield tensor
    integers = [f"{output}__{name}" for name in ("int", "scales", "zeros")]
    yield part("DequantizeLinear", integers, f"{output}__blocks", axis=0)
    yield part("Reshape", [f"{output}__blocks", f"{output}__shape"], f"{output}__padded")
    bounds = [f"{output}__{name}" for name in ("from", "to", "axis")]
    yield part("Slice", [f"{output}__padded", *bounds], f"{output}__columns")
    yield part("Transpose", [f"{output}__columns"], f"{output}__turned", perm=[1, 0])
    kind = helper.np_dtype_to_tensor_dtype(numpy_helper.to_array(weights[node.input[2]]).dtype)
    yield part("Cast", [f"{output}__turned"], f"{output}__weight", to=kind)
    yield part("MatMul", [node.input[0], f"{output}__weight"], f"{output}__product" if bias else output)
    if bias:
        yield part("Add", [f"{output}__product", bias], output)


def _format(node: onnx.NodeProto) -> str:
    """How many bits the numbers of a node have."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return f"int{given.get('bits', 4)}"


def _tensors(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> dict[str, NDArray[np.generic]]:
    """The integers, a block a row; their scales and zero points; and what brings them into the shape of the weight."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    bits, block, rows, columns = (int(given.get(name, 4)) for name in ("bits", "block_size", "K", "N"))
    blocks = -(-rows // block)
    stored, scales = (numpy_helper.to_array(weights[name]) for name in node.input[1:3])
    if stored.dtype != np.uint8 or stored.size * 8 < columns * blocks * block * bits or scales.size != columns * blocks:
        raise ValueError("not as many weights as its attributes say")
    zero = node.input[3] if len(node.input) > 3 else ""
    return {
        "int": _unpacked(stored, bits).reshape(columns * blocks, -1)[:, :block],
        "scales": scales.reshape(-1).astype(np.float32),  # half precision only from opset 19 on
        "zeros": _zeros(numpy_helper.to_array(weights[zero]) if zero else None, bits, (columns, blocks)),
        "shape": np.array([columns, blocks * block]),
        "from": np.array([0]),
        "to": np.array([rows]),
        "axis": np.array([1]),
    }


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
