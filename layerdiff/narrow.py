"""Number formats of ONNX that numpy cannot hold."""

from __future__ import annotations

import onnx

# Types that runtimes compute with and numpy cannot hold, each with one that holds the same numbers: they are fetched
# and fed through Casts. None where ONNX Runtime has no such Cast.
_T = onnx.TensorProto
NARROW: dict[int, int | None] = {
    _T.BFLOAT16: _T.FLOAT,
    17: _T.FLOAT,  # float8e4m3fn
    18: _T.FLOAT,  # float8e4m3fnuz
    19: _T.FLOAT,  # float8e5m2
    20: _T.FLOAT,  # float8e5m2fnuz
    21: _T.UINT8,  # uint4
    22: _T.INT8,  # int4
    23: None,  # float4e2m1
    24: _T.FLOAT,  # float8e8m0
    25: _T.UINT8,  # uint2
    26: _T.INT8,  # int2
}
FORMATS = {_T.BFLOAT16: "bfloat16"} | dict.fromkeys((17, 18, 19, 20), "float8")
FEW_BITS = {21: "int4", 22: "int4", 25: "int2", 26: "int2"}
FORMATS |= FEW_BITS

UNPACKED = frozenset({"int2", "int4"})
"""What an initializer may say (`doc_string`) of numbers that have a byte each and need fewer bits."""


def has_narrow_types(model: onnx.ModelProto) -> bool:
    """Whether an initializer, a constant, a port or an operator that names a type has one that numpy cannot hold."""
    ports = (v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output))
    attributes = [a for node in model.graph.node for a in node.attribute]
    named = (a.i for a in attributes if a.name in ("to", "dtype", "output_dtype"))
    held = (a.t.data_type for a in attributes if a.HasField("t"))
    stored = (tensor.data_type for tensor in model.graph.initializer)
    return not NARROW.keys().isdisjoint({*ports, *named, *held, *stored})
