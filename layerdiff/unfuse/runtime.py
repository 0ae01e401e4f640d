"""Take a runtime's fused operators apart, so that the layers inside can be compared one by one.

ONNX Runtime's extended optimisations leave operators of the domain com.microsoft in a saved file. Each is defined as a
chain of standard operators (onnxruntime, docs/ContribOperators.md), and that chain is what is examined. The file itself
still runs as it is: if a fused kernel computed something else than its definition, the two runs would differ, and the
report says so.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from layerdiff.unfuse.attention import attention_parts, whole_attention
from layerdiff.unfuse.integers import without_integer_products
from layerdiff.unfuse.packed import packed, unpacked_parts
from layerdiff.unfuse.recurrent import recurrent_parts, whole_recurrent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    _Parts = Iterator[onnx.NodeProto | onnx.TensorProto]

_DOMAIN = "com.microsoft"
# What a node raises that lacks an operand or an attribute, or has one of another kind.
_MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError)
# Quantised operators need 13, where scales may be per axis.
_NEEDED_OPSET = {"SkipLayerNormalization": 17} | dict.fromkeys(
    ("DynamicQuantizeMatMul", "MatMulIntegerToFloat", "MatMulNBits", "Attention", "DynamicQuantizeLSTM"), 13
)


def unfused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its fused nodes taken apart; the model itself when it has none.

    A node that is not made as its definition says stays as it is: the runtime has the word on it.
    """
    model = without_integer_products(model)
    if not any(_taken_apart(node, model) for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        parts: list[onnx.NodeProto | onnx.TensorProto] = [node]
        if _taken_apart(node, model):
            with suppress(*_MALFORMED):
                parts = list(_parts(node, weights, model))
        for part in parts:
            if isinstance(part, onnx.TensorProto):
                result.graph.initializer.append(part)
            else:
                result.graph.node.append(part)
    return result


def _taken_apart(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    standard = node.op_type in ("QLinearConv", "QLinearMatMul")
    if node.domain not in ((_DOMAIN, "", "ai.onnx") if standard else (_DOMAIN,)):
        return False
    if node.op_type in _WITH_WEIGHTS:
        if not _WITH_WEIGHTS[node.op_type](node, model):
            return False
    elif node.op_type not in _PARTS or (node.op_type == "FastGelu" and not _operand(node, 1)):
        return False
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    return opset >= _NEEDED_OPSET.get(node.op_type, 13 if node.op_type.startswith("Q") else 11)


def _parts(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto], model: onnx.ModelProto) -> _Parts:
    if node.op_type in ("Attention", "QAttention"):
        return attention_parts(node, weights, model)
    if node.op_type == "DynamicQuantizeLSTM":
        return recurrent_parts(node, weights)
    return unpacked_parts(node, weights) if node.op_type == "MatMulNBits" else _PARTS[node.op_type](node)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def _operand(node: onnx.NodeProto, index: int) -> str:
    return str(node.input[index]) if index < len(node.input) else ""


def _part(node: onnx.NodeProto, op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    """One operator of the chain; it keeps the name of the fused node."""
    domain = attributes.pop("domain", "")
    part = helper.make_node(op, inputs, [output], name=node.name, domain=domain, **attributes)
    part.metadata_props.extend(node.metadata_props)
    return part


def _activated(node: onnx.NodeProto, name: str, parameters: list[float], source: str) -> _Parts:
    """The activation at the end of a fused node."""
    output = node.output[0]
    if name == "Clip":
        bounds = [f"{output}__clip_min", f"{output}__clip_max"]
        for bound, value in zip(bounds, parameters, strict=True):
            yield numpy_helper.from_array(np.array(value, np.float32), bound)
        yield _part(node, "Clip", [source, *bounds], output)
        return
    keys = {"LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"), "Elu": ("alpha",)}.get(name, ())
    yield _part(node, name, [source], output, **dict(zip(keys, parameters, strict=False)))


def _conv_parts(node: onnx.NodeProto) -> _Parts:
    attributes = _attributes(node)
    activation = attributes.pop("activation", b"").decode()
    parameters = list(attributes.pop("activation_params", []))
    addend = _operand(node, 3)
    source = f"{node.output[0]}__conv" if activation or addend else node.output[0]
    yield _part(node, "Conv", [name for name in node.input[:3] if name], source, **attributes)
    if addend:
        before, source = source, f"{node.output[0]}__sum" if activation else node.output[0]
        yield _part(node, "Add", [before, addend], source)
    if activation:
        yield from _activated(node, activation, parameters, source)


def _gemm_parts(node: onnx.NodeProto) -> _Parts:
    attributes = _attributes(node)
    activation = attributes.pop("activation", b"").decode()
    found = (attributes.pop(f"activation_{key}", None) for key in ("alpha", "beta", "gamma"))
    parameters = [value for value in found if value is not None]
    source = f"{node.output[0]}__gemm"
    yield _part(node, "Gemm", [name for name in node.input if name], source, **attributes)
    yield from _activated(node, activation, parameters, source)


def _skip_norm_parts(node: onnx.NodeProto) -> _Parts:
    scale, shift = _operand(node, 2), _operand(node, 3)
    yield from _skip_parts(node, _operand(node, 4))
    inputs = [name for name in (_sum_output(node), scale, shift) if name]
    epsilon = _attributes(node).get("epsilon", 1e-12)
    yield _part(node, "LayerNormalization", inputs, node.output[0], axis=-1, epsilon=epsilon)


def _skip_simplified_norm_parts(node: onnx.NodeProto) -> _Parts:
    """ONNX Runtime keeps the norm itself in the standard domain, under a name of its own (root mean square only)."""
    yield from _skip_parts(node, _operand(node, 3))
    inputs, epsilon = [_sum_output(node), node.input[2]], _attributes(node).get("epsilon", 1e-12)
    yield _part(node, "SimplifiedLayerNormalization", inputs, node.output[0], axis=-1, epsilon=epsilon)


def _skip_parts(node: onnx.NodeProto, bias: str) -> _Parts:
    """The sum before a norm; a bias belongs to the product that is the first operand."""
    total, first = _sum_output(node), str(node.input[0])
    if bias:
        first = f"{node.output[0]}__biased"
        yield _part(node, "Add", [node.input[0], bias], first)
    yield _part(node, "Add", [first, node.input[1]], total)


def _sum_output(node: onnx.NodeProto) -> str:
    """The fused node can also give the sum before the norm, as its fourth output."""
    given = node.output[3] if len(node.output) > 3 else ""
    return str(given) or f"{node.output[0]}__sum"


def _bias_gelu_parts(node: onnx.NodeProto) -> _Parts:
    source = f"{node.output[0]}__sum"
    yield _part(node, "Add", list(node.input), source)
    yield _part(node, "Gelu", [source], node.output[0], domain=_DOMAIN)


def _fast_gelu_parts(node: onnx.NodeProto) -> _Parts:
    """The bias apart from the function, which stays the runtime's own: it has the type of its input."""
    source = f"{node.output[0]}__sum"
    yield _part(node, "Add", list(node.input), source)
    yield _part(node, "FastGelu", [source], node.output[0], domain=_DOMAIN)


def _dequantised(node: onnx.NodeProto, names: tuple[str, str, str], output: str, **attributes: Any) -> onnx.NodeProto:
    return _part(node, "DequantizeLinear", [name for name in names if name], output, **attributes)


def _requantised(node: onnx.NodeProto, source: str, scale: str, zero: str) -> onnx.NodeProto:
    return _part(node, "QuantizeLinear", [name for name in (source, scale, zero) if name], node.output[0])


def _bias_parts(node: onnx.NodeProto, bias: str, scales: tuple[str, str], output: str) -> _Parts:
    """A bias of int32 in units of the product of both scales, dequantised as a QDQ file writes it."""
    yield _part(node, "Mul", list(scales), f"{output}_scale")
    yield _dequantised(node, (bias, f"{output}_scale", ""), output, axis=-1)


def _qlinear_conv_parts(node: onnx.NodeProto) -> _Parts:
    x, xs, xz, w, ws, wz, ys, yz = node.input[:8]
    mark = node.output[0]
    yield _dequantised(node, (x, xs, xz), f"{mark}__x")
    yield _dequantised(node, (w, ws, wz), f"{mark}__w", axis=0)
    inputs = [f"{mark}__x", f"{mark}__w"]
    if _operand(node, 8):
        yield from _bias_parts(node, node.input[8], (xs, ws), f"{mark}__b")
        inputs.append(f"{mark}__b")
    yield _part(node, "Conv", inputs, f"{mark}__y", **_attributes(node))
    yield _requantised(node, f"{mark}__y", ys, yz)


def _qlinear_matmul_parts(node: onnx.NodeProto) -> _Parts:
    mark = node.output[0]
    yield _dequantised(node, tuple(node.input[0:3]), f"{mark}__a")
    yield _dequantised(node, tuple(node.input[3:6]), f"{mark}__b")
    yield _part(node, "MatMul", [f"{mark}__a", f"{mark}__b"], f"{mark}__y")
    yield _requantised(node, f"{mark}__y", node.input[6], node.input[7])


def _qgemm_parts(node: onnx.NodeProto) -> _Parts:
    """A (scale, zero), B (scale, zero), C in units of the product of both scales, then the output's scale and zero."""
    mark, attributes = node.output[0], _attributes(node)
    axis = 0 if attributes.get("transB", 0) else 1
    yield _dequantised(node, tuple(node.input[0:3]), f"{mark}__a")
    yield _dequantised(node, tuple(node.input[3:6]), f"{mark}__b", axis=axis)
    inputs = [f"{mark}__a", f"{mark}__b"]
    if _operand(node, 6):
        yield from _bias_parts(node, node.input[6], (node.input[1], node.input[4]), f"{mark}__c")
        inputs.append(f"{mark}__c")
    quantised = bool(_operand(node, 7))
    yield _part(node, "Gemm", inputs, f"{mark}__y" if quantised else mark, **attributes)
    if quantised:
        yield _requantised(node, f"{mark}__y", node.input[7], _operand(node, 8))


def _qlinear_pair_parts(node: onnx.NodeProto) -> _Parts:
    mark, op = node.output[0], node.op_type.removeprefix("QLinear")
    yield _dequantised(node, tuple(node.input[0:3]), f"{mark}__a")
    yield _dequantised(node, tuple(node.input[3:6]), f"{mark}__b")
    yield _part(node, op, [f"{mark}__a", f"{mark}__b"], f"{mark}__y")
    yield _requantised(node, f"{mark}__y", node.input[6], _operand(node, 7))


def _qlinear_single_parts(node: onnx.NodeProto) -> _Parts:
    mark, op = node.output[0], node.op_type.removeprefix("QLinear")
    attributes = _attributes(node)
    for name in ("channels_last", "opset"):
        attributes.pop(name, None)
    yield _dequantised(node, tuple(node.input[0:3]), f"{mark}__x")
    yield _part(node, op, [f"{mark}__x"], f"{mark}__y", **attributes)
    yield _requantised(node, f"{mark}__y", node.input[3], _operand(node, 4))


def _qlinear_concat_parts(node: onnx.NodeProto) -> _Parts:
    mark, inputs = node.output[0], []
    for i in range(2, len(node.input), 3):
        inputs.append(f"{mark}__{i}")
        yield _dequantised(node, tuple(node.input[i : i + 3]), inputs[-1])
    yield _part(node, "Concat", inputs, f"{mark}__y", **_attributes(node))
    yield _requantised(node, f"{mark}__y", node.input[0], node.input[1])


def _dynamic_product_parts(node: onnx.NodeProto) -> _Parts:
    """A, which is quantised on the way, then B with its scale and zero point, and a bias."""
    mark = node.output[0]
    steps = [f"{mark}__int", f"{mark}__scale", f"{mark}__zero"]
    yield helper.make_node("DynamicQuantizeLinear", [node.input[0]], steps, name=node.name)
    yield from _product_parts(node, tuple(steps), (node.input[1], node.input[2], _operand(node, 3)), _operand(node, 4))


def _scaled_product_parts(node: onnx.NodeProto) -> _Parts:
    """A and B, then their scales, their zero points, and a bias."""
    a, b, a_scale, b_scale = node.input[:4]
    yield from _product_parts(node, (a, a_scale, _operand(node, 4)), (b, b_scale, _operand(node, 5)), _operand(node, 6))


def _product_parts(node: onnx.NodeProto, a: tuple[str, ...], b: tuple[str, str, str], bias: str) -> _Parts:
    mark = node.output[0]
    yield _dequantised(node, (a[0], a[1], a[2]), f"{mark}__a")
    yield _dequantised(node, b, f"{mark}__b", axis=1)  # B is a matrix, its columns have the scales
    yield _part(node, "MatMul", [f"{mark}__a", f"{mark}__b"], f"{mark}__y" if bias else mark)
    if bias:
        yield _part(node, "Add", [f"{mark}__y", bias], mark)


_WITH_WEIGHTS: dict[str, Callable[[onnx.NodeProto, onnx.ModelProto], bool]] = {
    "Attention": whole_attention,
    "QAttention": whole_attention,
    "MatMulNBits": packed,
    "DynamicQuantizeLSTM": whole_recurrent,
}
"""What is taken apart only where its weights are in the file, and how that is told."""

_PARTS: dict[str, Callable[[onnx.NodeProto], _Parts]] = {
    "FusedConv": _conv_parts,
    "FusedGemm": _gemm_parts,
    "SkipLayerNormalization": _skip_norm_parts,
    "SkipSimplifiedLayerNormalization": _skip_simplified_norm_parts,
    "BiasGelu": _bias_gelu_parts,
    "FastGelu": _fast_gelu_parts,
    "QLinearConv": _qlinear_conv_parts,
    "QLinearMatMul": _qlinear_matmul_parts,
    "QGemm": _qgemm_parts,
    "DynamicQuantizeMatMul": _dynamic_product_parts,
    "MatMulIntegerToFloat": _scaled_product_parts,
    "QLinearAdd": _qlinear_pair_parts,
    "QLinearMul": _qlinear_pair_parts,
    "QLinearSigmoid": _qlinear_single_parts,
    "QLinearLeakyRelu": _qlinear_single_parts,
    "QLinearGlobalAveragePool": _qlinear_single_parts,
    "QLinearAveragePool": _qlinear_single_parts,
    "QLinearSoftmax": _qlinear_single_parts,
    "QLinearConcat": _qlinear_concat_parts,
}
