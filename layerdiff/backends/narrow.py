"""Tensors of types that numpy cannot hold, in and out of ONNX Runtime: the runtime itself casts them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

NARROW = {
    "tensor(bfloat16)": TensorProto.BFLOAT16,
    "tensor(float8e4m3fn)": 17,
    "tensor(float8e4m3fnuz)": 18,
    "tensor(float8e5m2)": 19,
    "tensor(float8e5m2fnuz)": 20,
}
"""ONNX element types by the runtime's own names."""


def narrowed(array: Array, kind: str) -> ort.OrtValue:
    """A value of the runtime in a narrow type, from numbers in a wide one."""
    wide = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    found: ort.OrtValue = _cast(TensorProto.FLOAT, NARROW[kind]).run_with_ort_values(["y"], {"x": wide})[0]
    return found


def widened(value: ort.OrtValue) -> Array:
    """The numbers of a narrow value, as float32."""
    found = _cast(NARROW[value.data_type()], TensorProto.FLOAT).run_with_ort_values(["y"], {"x": value})[0]
    return np.asarray(found.numpy())


@cache
def _cast(source: int, target: int) -> ort.InferenceSession:
    ports = (helper.make_tensor_value_info(name, kind, None) for name, kind in (("x", source), ("y", target)))
    x, y = ports
    graph = helper.make_graph([helper.make_node("Cast", ["x"], ["y"], to=target)], "cast", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
