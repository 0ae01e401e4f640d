"""ONNX Runtime's fused self-attention, taken apart: three projections, scores, a mask, a softmax, and their product.

``com.microsoft.Attention`` keeps the weights of query, key and value side by side in one matrix (onnxruntime,
docs/ContribOperators.md). Without a cache of earlier keys its definition is a dozen standard operators. ``QAttention``
is the same of integers: input and weights are dequantised first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    _Parts = Iterator[onnx.NodeProto | onnx.TensorProto]

_FILTER = -10_000.0  # what is added where the mask is zero, unless the node says otherwise
_PASSED_ON = ("Cast", "Identity")
_COUNTING = ("EmbedLayerNormalization", "ReduceSum")  # they give the length of each sequence as its mask


def whole_attention(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    """Whether such a node has no cache, no rotation, equal sizes, and a mask of (batch, length), lengths, or none."""
    stored = len(node.input) > 1 and any(tensor.name == node.input[1] for tensor in model.graph.initializer)
    node = _in_floats(node)
    given = _attributes(node)
    if len(node.input) < 2 or not int(given.get("num_heads", 0)) > 0:
        return False
    if any(_operand(node, slot) for slot in (4, 6)) or given.get("do_rotary") or given.get("qkv_hidden_sizes"):
        return False
    mask = _operand(node, 3)
    return stored and len(node.output) == 1 and (not mask or _rank(model.graph, mask) is not None)


def attention_parts(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], model: onnx.ModelProto) -> _Parts:
    """The operators of such a node, in order."""
    stored = weights[node.input[1]]
    kind = helper.tensor_dtype_to_np_dtype(stored.data_type)
    if node.op_type == "QAttention":
        yield from _dequantised(node)
        node = _in_floats(node)
    mask = _operand(node, 3)
    yield from _Attention(node, stored.dims[1] // 3, kind).parts(_rank(model.graph, mask) if mask else None)


def _in_floats(node: onnx.NodeProto) -> onnx.NodeProto:
    """An Attention of integers as that of what they stand for; any other node as it is."""
    if node.op_type != "QAttention":
        return node
    plain = onnx.NodeProto()
    plain.CopyFrom(node)
    del plain.input[:]
    output = node.output[0] if node.output else ""
    plain.input.extend([f"{output}__x", f"{output}__w", *(_operand(node, slot) for slot in (2, 5, 8))])
    return plain


def _dequantised(node: onnx.NodeProto) -> _Parts:
    """The input and the weights of an Attention of integers; columns of the weights may have a scale each."""
    for mark, slots, axis in (("x", (0, 3, 6), -1), ("w", (1, 4, 7), 1)):
        operands = [name for slot in slots if (name := _operand(node, slot))]
        made = helper.make_node("DequantizeLinear", operands, [f"{node.output[0]}__{mark}"], name=node.name, axis=axis)
        made.metadata_props.extend(node.metadata_props)
        yield made


class _Attention:
    """Makes the operators; what lies between them is named after the node's output."""

    def __init__(self, node: onnx.NodeProto, width: int, kind: Any) -> None:
        self._node, self._given, self._output = node, _attributes(node), node.output[0]
        self._kind = np.dtype(kind if np.dtype(kind).kind == "f" else np.float32)
        self._heads = int(self._given["num_heads"])
        self._size = width // self._heads

    def parts(self, mask_rank: int | None) -> _Parts:
        """All of them, for a mask of that rank."""
        yield from self._projected()
        yield self._tensor("scale", float(self._given.get("scale", 0.0)) or self._size**-0.5, self._kind)
        yield self._part("MatMul", ["q_heads", "k_heads"], "products")
        yield self._part("Mul", ["products", "scale"], "scores")
        scores = "scores"
        if mask_rank is not None:
            yield from self._masked(mask_rank)
            scores = "masked"
        if added := _operand(self._node, 5):
            yield self._part("Add", [scores, f"={added}"], "biased")
            scores = "biased"
        if self._given.get("unidirectional"):
            yield from self._causal(scores)
            scores = "causal"
        yield self._part("Softmax", [scores], "weights", axis=-1)
        yield self._part("MatMul", ["weights", "v_heads"], "heads")
        yield self._part("Transpose", ["heads"], "behind", perm=[0, 2, 1, 3])
        yield self._tensor("join_heads", [0, 0, self._heads * self._size])
        yield self._part("Reshape", ["behind", "join_heads"], f"={self._output}")

    def _projected(self) -> _Parts:
        source, weight, bias = (f"={self._node.input[0]}", f"={self._node.input[1]}", _operand(self._node, 2))
        yield self._tensor("widths", [self._heads * self._size] * 3)
        yield self._part("Split", [weight, "widths"], "wq", "wk", "wv", axis=1)
        if bias:
            yield self._part("Split", [f"={bias}", "widths"], "bq", "bk", "bv", axis=0)
        yield self._tensor("split_heads", [0, 0, self._heads, self._size])
        for letter in "qkv":
            yield self._part("MatMul", [source, f"w{letter}"], f"{letter}_product" if bias else letter)
            if bias:
                yield self._part("Add", [f"{letter}_product", f"b{letter}"], letter)
            yield self._part("Reshape", [letter, "split_heads"], f"{letter}_split")
            order = [0, 2, 3, 1] if letter == "k" else [0, 2, 1, 3]
            yield self._part("Transpose", [f"{letter}_split"], f"{letter}_heads", perm=order)

    def _masked(self, rank: int) -> _Parts:
        """What is added where a mask is zero, or behind the length of a sequence."""
        yield self._part("Cast", [f"={self._node.input[3]}"], "mask_int", to=onnx.TensorProto.INT64)
        if rank == 1:
            yield from self._lengths()
        else:
            yield self._tensor("zero", 0)
            yield self._part("Greater", ["mask_int", "zero"], "kept")
        yield self._tensor("filter", self._given.get("mask_filter_value", _FILTER), self._kind)
        yield self._tensor("nothing", 0, self._kind)
        yield self._tensor("axes", [1, 2])
        yield self._part("Where", ["kept", "nothing", "filter"], "mask")
        yield self._part("Unsqueeze", ["mask", "axes"], "wide_mask")
        yield self._part("Add", ["scores", "wide_mask"], "masked")

    def _lengths(self) -> _Parts:
        """The positions ahead of the end of each sequence."""
        yield self._part("Shape", ["scores"], "sizes")
        for name, number in (("begin", 0), ("last", 3), ("step", 1)):
            yield self._tensor(name, number)
        yield self._tensor("inner", [1])
        yield self._part("Gather", ["sizes", "last"], "length")
        yield self._part("Range", ["begin", "length", "step"], "positions")
        yield self._part("Unsqueeze", ["mask_int", "inner"], "ends")
        yield self._part("Less", ["positions", "ends"], "kept")

    def _causal(self, scores: str) -> _Parts:
        """The scores with what lies ahead taken out."""
        lowest = numpy_helper.from_array(np.array([np.finfo(self._kind).min]), "lowest")
        yield self._tensor("from", [2])
        yield self._tensor("to", [4])
        yield self._tensor("ahead", 1)
        yield self._part("Shape", [scores], "shape")
        yield self._part("Slice", ["shape", "from", "to"], "square")
        yield self._part("ConstantOfShape", ["square"], "full", value=lowest)
        yield self._part("Trilu", ["full", "ahead"], "upper", upper=1)
        yield self._part("Add", [scores, "upper"], "causal")

    def _part(self, op: str, inputs: list[str], *outputs: str, **attributes: Any) -> onnx.NodeProto:
        names = [self._named(name) for name in inputs], [self._named(name) for name in outputs]
        made = helper.make_node(op, *names, name=f"{self._node.name}/{op}", **attributes)
        made.metadata_props.extend(self._node.metadata_props)
        return made

    def _tensor(self, name: str, values: Any, kind: Any = np.int64) -> onnx.TensorProto:
        return numpy_helper.from_array(np.array(values, kind), self._named(name))

    def _named(self, name: str) -> str:
        """A name inside; one that begins with = is the file's."""
        return name[1:] if name.startswith("=") else f"{self._output}__{name}"


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _operand(node: onnx.NodeProto, slot: int) -> str:
    return str(node.input[slot]) if slot < len(node.input) else ""


def _rank(graph: onnx.GraphProto, name: str) -> int | None:
    """1 for lengths, 2 for a mask of (batch, length); None for another, or one of which that cannot be told."""
    maker = next((node for node in graph.node if name in node.output), None)
    if maker is not None and maker.op_type in _COUNTING:
        return 1
    if maker is not None and maker.op_type in _PASSED_ON:
        return _rank(graph, maker.input[0])
    known = {port.name: port.type.tensor_type for port in (*graph.input, *graph.value_info)}
    rank = len(known[name].shape.dim) if name in known and known[name].HasField("shape") else None
    return rank if rank == 2 else None
