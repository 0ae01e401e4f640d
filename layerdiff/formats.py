"""Number formats narrower than float32: where a graph has them, and what rounding to them explains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerdiff.candidate import Candidate

    Array = np.ndarray[Any, Any]

# Relative L2 error that a layer may introduce: some units in the last place for floats; for eight bits what per-tensor
# quantisation of a well-calibrated layer shows (a signal-to-noise ratio of 12 dB is the worst that is still usual).
ALLOWED = {"float16": 16 * 2.0**-11, "bfloat16": 16 * 2.0**-8, "float8": 0.25, "int8": 0.25}
# What eight bits cost most layers: what is off by more may be right, and may lack a bias.
USUAL = {"float8": 0.1, "int8": 0.05}
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


def format_of(candidate: Candidate, nodes: Iterable[int]) -> str | None:
    """The coarsest number format that some nodes compute or store in, when it is coarser than float32."""
    graph, tapped, constants = candidate.graph, candidate.tapped, candidate.constants
    found: set[str] = set()
    for index in nodes:
        node = graph.nodes[index]
        if node.op in _INTEGER_OPS or "quantized" in node.op:
            return "int8"
        for name in (*node.inputs, *node.outputs):
            array = tapped.get(name, constants.get(name))
            if array is not None:
                found.add(candidate.formats.get(name, array.dtype.name))
            found.add(graph.format_of(name))
    return next((name for name in ("float8", "bfloat16", "float16") if name in found), None)


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
