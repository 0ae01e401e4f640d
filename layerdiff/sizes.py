"""How large the tensors of a graph are: by their shapes, or by a run that counts their elements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.graph import Graph

_SMALL = 1 << 12  # bytes of a constant that may say something about shapes


def counting(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, changed so that each output gives the number of its elements only."""
    wanted = {port.name for port in model.graph.output}
    nodes = list(model.graph.node)
    del model.graph.node[:]
    for node in nodes:  # counted where it is made, a tensor need not wait for the end
        counts = [onnx.helper.make_node("Size", [name], [f"{name}__size"]) for name in node.output if name in wanted]
        model.graph.node.extend([node, *counts])
    for port in model.graph.output:
        port.CopyFrom(onnx.helper.make_tensor_value_info(f"{port.name}__size", onnx.TensorProto.INT64, []))
    return model


def shapes_by_inference(graph: Graph, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor of which that can be told without a run, for inputs of the given shapes."""
    source = graph.model
    model = onnx.ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
    model.graph.name = "sizes"
    model.graph.node.extend(source.graph.node)
    model.graph.output.extend(onnx.ValueInfoProto(name=port.name) for port in source.graph.output)
    for port in source.graph.input:
        known = shapes.get(port.name)
        kind = port.type.tensor_type.elem_type
        model.graph.input.append(port if known is None else onnx.helper.make_tensor_value_info(port.name, kind, known))
    for tensor in source.graph.initializer:  # large weights count by their shapes only
        if tensor.ByteSize() <= _SMALL:
            model.graph.initializer.append(tensor)
        else:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            model.graph.input.append(info)
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):
        return {}
    found = {}
    for info in (*inferred.graph.value_info, *inferred.graph.output):
        tensor_type = info.type.tensor_type
        if tensor_type.HasField("shape") and all(d.HasField("dim_value") for d in tensor_type.shape.dim):
            found[info.name] = tuple(d.dim_value for d in tensor_type.shape.dim)
    return found
