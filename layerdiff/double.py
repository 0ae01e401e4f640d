"""A small ONNX graph in double precision, by the evaluator of the onnx package.

Its convolution writes out the whole input once for every position of the kernel, in the same precision: 2 GB for 64
channels at 512 x 512. Here one position of the kernel is added up after the other, some rows at a time.
"""

from __future__ import annotations

import math
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator
from onnx.reference.ops import op_conv

from layerdiff.external import with_weights

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    Array = np.ndarray[Any, Any]

MOST = 64 << 20
"""Bytes of input that are set out at a time."""


def in_double(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array | None:
    """The one output of a small model, computed in double precision; None where that is not possible."""
    fed = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in feeds.items()}
    return _evaluated(_widened(model), fed)


def as_written(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array | None:
    """The same in the precision of the model: what the evaluator makes of it, which need not be what a runtime does."""
    return _evaluated(with_weights(model), feeds)


def _evaluated(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array | None:
    try:
        with np.errstate(all="ignore"):
            result: Any = next(iter(ReferenceEvaluator(model, new_ops=[Conv]).run(None, dict(feeds))))
    except Exception:  # noqa: BLE001  the evaluator raises whatever numpy does
        return None
    return np.asarray(result)


def _widened(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with double precision wherever it has single."""
    wide = onnx.ModelProto()
    wide.CopyFrom(with_weights(model))
    attributes = [(node.op_type, attribute) for node in wide.graph.node for attribute in node.attribute]
    for op, attribute in attributes:
        if op == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
            attribute.i = onnx.TensorProto.DOUBLE
    for tensor in (*wide.graph.initializer, *(a.t for _, a in attributes if a.HasField("t"))):
        if tensor.data_type == onnx.TensorProto.FLOAT:
            array = onnx.numpy_helper.to_array(tensor).astype(np.float64)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for port in wide.graph.input:
        if port.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            port.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    return wide


class Conv(op_conv.Conv):
    """Convolution; padding that is worked out from sizes is left to the evaluator's own. It is found by its name."""

    def _run(  # type: ignore[override]
        self, x: Array, w: Array, b: Array | None = None, **attributes: Any
    ) -> tuple[Array]:
        axes, group = x.ndim - 2, attributes.get("group") or 1
        if attributes.get("auto_pad") not in (None, "NOTSET") or x.shape[1] != w.shape[1] * group:
            found: Any = super()._run(x, w, b, **attributes)  # type: ignore[no-untyped-call]
            return (found[0],)
        jumps, steps, pads = (
            tuple(attributes.get(name) or (plain,) * count)
            for name, plain, count in (("strides", 1, axes), ("dilations", 1, axes), ("pads", 0, 2 * axes))
        )
        result = _convolved(x, w, (jumps, steps, pads), group)
        if b is not None:
            result += b.reshape(-1, *(1,) * axes)
        return (result,)


def _convolved(x: Array, w: Array, geometry: tuple[tuple[int, ...], ...], group: int) -> Array:
    """Every place of the result, without the bias; the geometry is strides, dilations and pads."""
    jumps, steps, pads = geometry
    axes, taps = len(jumps), w.shape[2:]
    spans = [step * (tap - 1) + 1 for step, tap in zip(steps, taps, strict=True)]
    sizes = [(size + pads[i] + pads[i + axes] - spans[i]) // jumps[i] + 1 for i, size in enumerate(x.shape[2:])]
    result = np.zeros((x.shape[0], w.shape[0], *sizes), x.dtype)
    rows = max(1, MOST // max(1, x.shape[1] * math.prod(sizes[1:]) * x.itemsize))
    for sample, (begin, end) in product(range(len(x)), _blocks(sizes[0], rows)):
        piece = _rows(x[sample], (begin * jumps[0] - pads[0], (end - 1) * jumps[0] - pads[0] + spans[0]), pads)
        made = _added_up(piece, w, (jumps, steps, (end - begin, *sizes[1:])), group)
        result[sample, :, begin:end] = made.reshape(w.shape[0], end - begin, *sizes[1:])
    return result


def _added_up(piece: Array, w: Array, geometry: tuple[tuple[int, ...], ...], group: int) -> Array:
    """One position of the kernel after the other, over a padded piece; geometry: strides, dilations and counts."""
    kernel = w.reshape(group, w.shape[0] // group, *w.shape[1:])
    total = np.zeros((group, kernel.shape[1], math.prod(geometry[-1])), piece.dtype)
    for tap in np.ndindex(*w.shape[2:]):
        places = [slice(t * s, t * s + j * (n - 1) + 1, j) for t, j, s, n in zip(tap, *geometry, strict=True)]
        read = piece[(slice(None), *places)].reshape(group, w.shape[1], -1)
        total += kernel[(slice(None), slice(None), slice(None), *tap)] @ read
    return total


def _blocks(count: int, rows: int) -> Iterator[tuple[int, int]]:
    return ((begin, min(begin + rows, count)) for begin in range(0, count, rows))


def _rows(x: Array, span: tuple[int, int], pads: tuple[int, ...]) -> Array:
    """Some rows of a padded input."""
    first, last = span
    axes = x.ndim - 1
    around = [(max(-first, 0), max(last - x.shape[1], 0)), *((pads[i], pads[i + axes]) for i in range(1, axes))]
    return np.pad(x[:, max(first, 0) : max(min(last, x.shape[1]), 0)], [(0, 0), *around])
