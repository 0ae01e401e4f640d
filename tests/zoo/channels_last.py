"""An export rewritten the way TensorFlow-style converters do: activations have their channels last.

Channels-first operators stand between two Transposes; what works element by element stays in the layout it gets.
"""

from __future__ import annotations

import onnx
from onnx import helper, shape_inference

ELEMENTWISE = frozenset(
    {
        "Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "HardSwish", "HardSigmoid", "Gelu",
        "Erf", "Elu", "Softplus", "Pow", "Sqrt", "Exp", "Identity",
    }
)  # fmt: skip
LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def channels_last(model: onnx.ModelProto, *, inputs: bool = False) -> onnx.ModelProto:
    """A copy whose four-dimensional tensors have their channels last; with `inputs` also those of the graph."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    inferred = shape_inference.infer_shapes(model).graph
    ports = (*inferred.value_info, *inferred.input, *inferred.output)
    rewriting = _Rewriting({v.name for v in ports if len(v.type.tensor_type.shape.dim) == 4})
    for port in result.graph.input:
        if port.name in rewriting.images:
            rewriting.input(port, turned=inputs)
    for node in model.graph.node:
        rewriting.add(node)
    rewriting.restore([port.name for port in model.graph.output])
    del result.graph.node[:], result.graph.value_info[:]
    result.graph.node.extend(rewriting.nodes)
    return result


class _Rewriting:
    def __init__(self, images: set[str]) -> None:
        self.images = images
        self.nodes: list[onnx.NodeProto] = []
        self._last: dict[str, str] = {}

    def _transpose(self, source: str, target: str, axes: tuple[int, ...]) -> str:
        self.nodes.append(helper.make_node("Transpose", [source], [target], perm=axes))
        return target

    def input(self, port: onnx.ValueInfoProto, *, turned: bool) -> None:
        """An input of the graph, fed as it was or with its channels last."""
        if turned:
            sizes = [port.type.tensor_type.shape.dim[axis].dim_value for axis in LAST]
            port.CopyFrom(helper.make_tensor_value_info(port.name, port.type.tensor_type.elem_type, sizes))
            self._last[port.name] = port.name
        else:
            self._last[port.name] = self._transpose(port.name, f"{port.name}_last", LAST)

    def add(self, node: onnx.NodeProto) -> None:
        """A node, with Transposes around it where it needs its channels second."""
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        stays = node.op_type in ELEMENTWISE and any(name in self._last for name in node.input)
        if stays and all(name in self._last or name not in self.images for name in node.input):
            copy.input[:] = [self._last.get(name, name) for name in node.input]
            copy.output[:] = [f"{name}_last" for name in node.output]
            self._last |= dict(zip(node.output, copy.output, strict=True))
            self.nodes.append(copy)
            return
        copy.input[:] = [self._first(name, node.output[0]) for name in node.input]
        self.nodes.append(copy)
        for name in node.output:
            if name in self.images:
                self._last[name] = self._transpose(name, f"{name}_last", LAST)

    def _first(self, name: str, reader: str) -> str:
        return self._transpose(self._last[name], f"{name}_for_{reader}", FIRST) if name in self._last else name

    def restore(self, outputs: list[str]) -> None:
        """The graph's outputs under their names, channels second."""
        made = {name for node in self.nodes for name in node.output}
        for name in outputs:
            if name not in made:
                self._transpose(self._last[name], name, FIRST)
