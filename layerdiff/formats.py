"""Number formats narrower than float32: where a graph has them, and what rounding to them explains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Node

    Array = np.ndarray[Any, Any]

INTEGERS = ("int2", "int4", "int8", "int16")
"""The coarsest first."""
# Relative L2 error that a layer may introduce: some units in the last place for floats; for eight bits what per-tensor
# quantisation of a well-calibrated layer shows (a signal-to-noise ratio of 12 dB is the worst that is still usual).
# Fewer are used for weights in small blocks; sixteen have 256 times as many steps, of which a few are lost on the way.
ALLOWED = {
    "float16": 16 * 2.0**-11, "bfloat16": 16 * 2.0**-8, "float8": 0.25,
    "int2": 0.5, "int4": 0.25, "int8": 0.25, "int16": 4 * 2.0**-10,
}  # fmt: skip
# What so many bits cost most layers: what is off by more may be right, and may lack a bias.
USUAL = {"float8": 0.1, "int2": 0.4, "int4": 0.12, "int8": 0.05, "int16": 2.0**-10}
# One scale for a whole weight can leave few of the steps to most of its numbers. What the step then does to the weights
# it does to the result, and more where the products cancel.
_CANCELLED = 3.0
# A mask constant beyond half precision is written as its smallest number, or as -1e4, and added to scores.
LARGEST_HALF, LARGEST_MASK = 65504.0, 5_000.0
# By so much of its size four bits change a weight; eight change a tenth of that.
QUANTISED = 0.12
# Below its smallest normal number a format has a fixed spacing: a factor of 1e-6 keeps one digit in half precision.
SPARED = {"float16": 16 * 2.0**-24}
_INTEGER_OPS = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "QLinearConv",
        "QLinearMatMul", "QGemm", "QLinearAdd", "QLinearMul", "QLinearConcat", "QLinearGlobalAveragePool",
        "QLinearAveragePool", "QLinearSigmoid", "QLinearLeakyRelu", "QLinearSoftmax", "DynamicQuantizeMatMul",
        "MatMulNBits", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QAttention", "QEmbedLayerNormalization",
        "QLinearReduceMean", "QLinearWhere", "GatherBlockQuantized", "MatMulBnb4", "QMoE",
    }
)  # fmt: skip


# Operators with weights of fewer bits, with the attribute that says how many; four where it does not.
_FEW_BITS = {"MatMulNBits": "bits", "GatherBlockQuantized": "bits", "QMoE": "expert_weight_bits", "MatMulBnb4": ""}
_BIAS = "int32"  # as fine as the products that it is added to: their format tells
_BITS_OF = {1: "int8", 2: "int16"}


def format_of(candidate: Candidate, nodes: Iterable[int]) -> str | None:
    """The coarsest number format that some nodes compute or store in, when it is coarser than float32."""
    graph, tapped, constants = candidate.graph, candidate.tapped, candidate.constants
    found: set[str] = set()
    for index in nodes:
        node = graph.nodes[index]
        if node.op in _INTEGER_OPS or "quantized" in node.op:
            found.add(_integers_of(candidate, node))
        for name in (*node.inputs, *node.outputs):
            array = tapped.get(name, constants.get(name))
            if array is not None:
                found.add(candidate.formats.get(name, array.dtype.name))
            found.add(graph.format_of(name))
    found = found - {_BIAS} or ({"int8"} if _BIAS in found else set())
    order = (*INTEGERS[:-1], "float8", "bfloat16", "float16", INTEGERS[-1])
    return next((name for name in order if name in found), None)


def _integers_of(candidate: Candidate, node: Node) -> str:
    """The format of the integers that a node reads or writes."""
    if node.op in _FEW_BITS:
        return f"int{node.attributes.get(_FEW_BITS[node.op], 4)}"
    if node.op not in ("QuantizeLinear", "DequantizeLinear"):
        return "int8"
    name = node.outputs[0] if node.op == "QuantizeLinear" else node.inputs[0]
    array = candidate.tapped.get(name, candidate.constants.get(name))
    known = candidate.graph.format_of(name)
    return known or ("int8" if array is None else _BITS_OF.get(array.dtype.itemsize, _BIAS))


def coarseness(candidate: Candidate, nodes: Iterable[int]) -> float:
    """The share of its size by which the step of stored weights moves what some nodes compute, at most; 0 without any.

    Numbers that are spread evenly over a step are off by its twelfth root (Widrow and Kollár, Quantization Noise).
    """
    graph, constants, found = candidate.graph, candidate.constants, 0.0
    readers = (graph.nodes[index] for index in nodes if graph.nodes[index].op == "DequantizeLinear")
    for node in (node for node in readers if node.outputs[0] in constants and node.inputs[1] in constants):
        weight, step = constants[node.outputs[0]], constants[node.inputs[1]]
        size = _root_mean_square(weight)
        if weight.ndim > 1 and size > 0:
            found = max(found, _root_mean_square(step) / 12**0.5 / size)
    return _CANCELLED * found


def _root_mean_square(array: Array) -> float:
    return float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) if array.size else 0.0


def rounds_to(kind: str, expected: Array, actual: Array) -> bool:
    """Whether a layer that computes in a number format gives what is expected, as near as is usual for the format."""
    error = relative(expected, actual, SPARED.get(kind, 0.0))
    return error is not None and error <= USUAL.get(kind, ALLOWED[kind])


def relative(expected: Array, actual: Array, spared: float = 0.0) -> float | None:
    """The relative L2 error of an array; None where it is not finite wherever the expected one is.

    So much of each element's absolute error is left out as `spared` says.
    """
    if expected.size != actual.size or expected.dtype.kind != "f":
        return None
    e, a = expected.reshape(-1).astype(np.float64), actual.reshape(-1).astype(np.float64)
    e = np.where((e < -LARGEST_HALF) & (a <= -LARGEST_MASK), a, e)
    if not np.array_equal(np.isfinite(e), np.isfinite(a)):
        return None
    finite = np.isfinite(e)
    size = float(np.linalg.norm(e[finite]))
    error = np.maximum(np.abs(a[finite] - e[finite]) - spared, 0.0)
    return float(np.linalg.norm(error)) / size if size > 0 else 0.0
