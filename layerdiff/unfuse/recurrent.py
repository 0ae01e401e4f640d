"""ONNX Runtime's LSTM with weights of eight bits (``DynamicQuantizeLSTM``) as a standard one of what they stand for.

Its weights lie with their gates in columns, as products read them, and each direction, or each column, has a scale
(onnxruntime, docs/ContribOperators.md). The kernel quantises the input as a whole, and at each step what the step
before gave. The second is left out here, so that the layer stays one node; it is the rounding of the state alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    _Parts = Iterator[onnx.NodeProto | onnx.TensorProto]

_PACKED = {"w": (1, 8, 9), "r": (2, 10, 11)}
"""The slots of the weights of the input and of the state, with those of their scales and zero points."""


def whole_recurrent(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether all weights of such a node are in the file."""
    inside = {tensor.name for tensor in model.graph.initializer if tensor.data_location != onnx.TensorProto.EXTERNAL}
    names = [_operand(node, slot) for slots in _PACKED.values() for slot in slots]
    return bool(node.output) and inside.issuperset(names)


def recurrent_parts(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> _Parts:
    """The operators of such a node, in order.

    Raises
    ------
    ValueError
        Its scales are not one for each direction, or for each column.

    """
    mark = next(name for name in node.output if name)
    steps = [f"{mark}__{part}" for part in ("int", "scale", "zero")]
    yield _part(node, "DynamicQuantizeLinear", [node.input[0]], steps)
    yield _part(node, "DequantizeLinear", steps, [f"{mark}__x"])
    yield numpy_helper.from_array(np.array([0]), f"{mark}__first")
    for letter, slots in _PACKED.items():
        packed = [numpy_helper.to_array(weights[_operand(node, slot)]) for slot in slots]
        yield from _dequantised(node, f"{mark}__{letter}", packed)
    whole = _part(node, "LSTM", [f"{mark}__x", f"{mark}__w", f"{mark}__r", *node.input[3:8]], list(node.output))
    whole.attribute.extend(node.attribute)
    yield whole


def _dequantised(node: onnx.NodeProto, mark: str, packed: Sequence[NDArray[np.generic]]) -> _Parts:
    """A weight of both directions, its gates in rows as a standard LSTM has them, each direction dequantised."""
    stored, scales, zeros = packed
    directions, _, columns = stored.shape
    rows = []
    for index in range(directions):
        name = f"{mark}{index}"
        yield numpy_helper.from_array(np.ascontiguousarray(stored[index].T), f"{name}_int")
        for part, array in (("scales", scales), ("zeros", zeros)):
            own = np.broadcast_to(array.reshape(directions, -1)[index], (columns,))
            yield numpy_helper.from_array(np.ascontiguousarray(own), f"{name}_{part}")
        yield _part(node, "DequantizeLinear", [f"{name}_{part}" for part in ("int", "scales", "zeros")], [name], axis=0)
        yield _part(node, "Unsqueeze", [name, f"{mark.rpartition('__')[0]}__first"], [f"{name}_row"])
        rows.append(f"{name}_row")
    yield _part(node, "Concat", rows, [mark], axis=0)


def _part(node: onnx.NodeProto, op: str, inputs: list[str], outputs: list[str], **attributes: int) -> onnx.NodeProto:
    """One operator; it keeps the name of the whole node."""
    name = node.name if op == "LSTM" else f"{node.name}/{outputs[0].rpartition('__')[2]}"
    made = helper.make_node(op, inputs, outputs, name=name)
    made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    made.metadata_props.extend(node.metadata_props)
    return made


def _operand(node: onnx.NodeProto, slot: int) -> str:
    return str(node.input[slot]) if slot < len(node.input) else ""
