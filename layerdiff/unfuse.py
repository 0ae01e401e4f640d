"""Take a runtime's fused operators apart, so that the layers inside can be compared one by one.

ONNX Runtime's extended optimisations leave operators of the domain com.microsoft in a saved file. Each is defined as a
chain of standard operators (onnxruntime, docs/ContribOperators.md), and that chain is what is examined. The file itself
still runs as it is: if a fused kernel computed something else than its definition, the two runs would differ, and the
report says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    _Parts = Iterator[onnx.NodeProto | onnx.TensorProto]

_DOMAIN = "com.microsoft"


def unfused(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its fused nodes taken apart; the model itself when it has none."""
    if not any(_taken_apart(node, model) for node in model.graph.node):
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    for node in model.graph.node:
        for part in _PARTS[node.op_type](node) if _taken_apart(node, model) else (node,):
            if isinstance(part, onnx.TensorProto):
                result.graph.initializer.append(part)
            else:
                result.graph.node.append(part)
    return result


def _taken_apart(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    if node.domain != _DOMAIN or node.op_type not in _PARTS:
        return False
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    return opset >= (17 if node.op_type == "SkipLayerNormalization" else 11)


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
    total = _sum_output(node)
    bias = _operand(node, 4)
    first = f"{node.output[0]}__skip" if bias else total
    yield _part(node, "Add", [node.input[0], node.input[1]], first)
    if bias:
        yield _part(node, "Add", [first, bias], total)
    scale, shift = _operand(node, 2), _operand(node, 3)
    epsilon = _attributes(node).get("epsilon", 1e-12)
    inputs = [name for name in (total, scale, shift) if name]
    yield _part(node, "LayerNormalization", inputs, node.output[0], axis=-1, epsilon=epsilon)


def _sum_output(node: onnx.NodeProto) -> str:
    """The fused node can also give the sum before the norm, as its fourth output."""
    given = node.output[3] if len(node.output) > 3 else ""
    return str(given) or f"{node.output[0]}__sum"


def _bias_gelu_parts(node: onnx.NodeProto) -> _Parts:
    source = f"{node.output[0]}__sum"
    yield _part(node, "Add", list(node.input), source)
    yield _part(node, "Gelu", [source], node.output[0], domain=_DOMAIN)


_PARTS: dict[str, Callable[[onnx.NodeProto], _Parts]] = {
    "FusedConv": _conv_parts,
    "FusedGemm": _gemm_parts,
    "SkipLayerNormalization": _skip_norm_parts,
    "BiasGelu": _bias_gelu_parts,
}
