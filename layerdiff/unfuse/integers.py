"""Products of integers, as dynamic quantisation writes them, in numbers that mean something.

``DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul`` by the product of both scales, and behind a convolution the
``Add`` of its bias, hold nothing between their ends that a layer computes. What they stand for, the product of both
operands dequantised, is what is examined; sums of products of eight-bit integers are exact in either form, up to
float32's rounding.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx
from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Iterator


_PRODUCTS = {"MatMulInteger": ("MatMul", -1), "ConvInteger": ("Conv", 0)}
"""What each is without integers, and the axis of the weight that scales belong to."""
_NEEDED_OPSET = 13  # where scales may be per axis


@dataclass(frozen=True, slots=True)
class _Chain:
    """A product of integers, the nodes behind it up to the one that ends it, the scales of both operands, a bias."""

    product: onnx.NodeProto
    behind: tuple[onnx.NodeProto, ...]
    scales: tuple[str, str]
    bias: str = ""

    @property
    def end(self) -> str:
        """What comes out of it."""
        return str(self.behind[-1].output[0])


def without_integer_products(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with such chains as products of what is dequantised; the model itself where it has none."""
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
    if opset < _NEEDED_OPSET or not any(node.op_type in _PRODUCTS for node in model.graph.node):
        return model
    chains = list(_chains(model.graph))
    if not chains:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    ends = {chain.end: chain for chain in chains}
    gone = {node.output[0] for chain in chains for node in (chain.product, *chain.behind[:-1])}
    ranks = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    del result.graph.node[:]
    for node in model.graph.node:
        chain = ends.get(node.output[0]) if node.output else None
        if chain is not None:
            result.graph.node.extend(_real(chain, ranks))
        elif not node.output or node.output[0] not in gone:
            result.graph.node.append(node)
    return result


def _chains(graph: onnx.GraphProto) -> Iterator[_Chain]:
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    makers = {name: node for node in graph.node for name in node.output}
    given = {port.name for port in graph.output}
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            readers[name].append(node)
        for name in _read_inside(node):
            given.add(name)

    def only_reader(node: onnx.NodeProto, op: str) -> onnx.NodeProto | None:
        found = readers[node.output[0]]
        alone = len(found) == 1 and found[0].op_type == op and node.output[0] not in given
        return found[0] if alone else None

    for product in graph.node:
        if product.op_type not in _PRODUCTS or len(product.input) < 2 or not product.output:
            continue
        cast = only_reader(product, "Cast")
        cast = cast if cast is not None and _is_float(cast) else None
        scaled = None if cast is None else only_reader(cast, "Mul")
        if cast is None or scaled is None:
            continue
        other = next((name for name in scaled.input if name != cast.output[0]), "")
        scales = _scales(makers, product, makers.get(other))
        if scales is None:
            continue
        added = only_reader(scaled, "Add") if product.op_type == "ConvInteger" else None
        other = "" if added is None else next((name for name in added.input if name != scaled.output[0]), "")
        bias = _bias(makers.get(other), vectors)
        if added is not None and bias:
            yield _Chain(product, (cast, scaled, added), scales, bias)
        else:
            yield _Chain(product, (cast, scaled), scales)


def _is_float(cast: onnx.NodeProto) -> bool:
    """Whether a Cast gives float32, as the scales are."""
    return any(attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT for attribute in cast.attribute)


def _bias(maker: onnx.NodeProto | None, vectors: set[str]) -> str:
    """The bias of a convolution, where that was reshaped to be added; else nothing."""
    reshaped = maker is not None and maker.op_type == "Reshape" and maker.input[0] in vectors
    return str(maker.input[0]) if maker is not None and reshaped else ""


def _scales(
    makers: dict[str, onnx.NodeProto], product: onnx.NodeProto, factor: onnx.NodeProto | None
) -> tuple[str, str] | None:
    """The scales of the first operand and of the second, of which the factor is the product."""
    if factor is None or factor.op_type != "Mul" or len(factor.input) != 2:
        return None
    quantisers = [makers.get(name) for name in product.input[:2]]
    dynamic = [q is not None and q.op_type == "DynamicQuantizeLinear" and len(q.output) == 3 for q in quantisers]
    own = [q.output[1] if q is not None and made else None for q, made in zip(quantisers, dynamic, strict=True)]
    first, second = factor.input
    for one, other in ((first, second), (second, first)):
        if own[0] == one and own[1] in (None, other):
            return one, other
    return None


def _real(chain: _Chain, ranks: dict[str, int]) -> Iterator[onnx.NodeProto]:
    """Both operands dequantised, and their product, under the name that the chain ended with."""
    product, end = chain.product, chain.end
    op, axis = _PRODUCTS[product.op_type]
    zeros = [*product.input[2:4], "", ""][:2]
    axes = (1, axis % ranks.get(product.input[1], 1) if axis < 0 else axis)
    for operand, scale, zero, along, mark in zip(product.input, chain.scales, zeros, axes, "ab", strict=False):
        yield helper.make_node(
            "DequantizeLinear", [name for name in (operand, scale, zero) if name], [f"{end}__{mark}"], axis=along
        )
    operands = [f"{end}__a", f"{end}__b", *([chain.bias] if chain.bias else [])]
    real = helper.make_node(op, operands, [end], name=product.name.removesuffix("_quant"))
    real.attribute.extend(product.attribute)
    real.metadata_props.extend(product.metadata_props)
    yield real


def _read_inside(node: onnx.NodeProto) -> Iterator[str]:
    """What the bodies of a node read, from wherever it is."""
    for attribute in node.attribute:
        for body in (*attribute.graphs, *((attribute.g,) if attribute.HasField("g") else ())):
            for inner in body.node:
                yield from inner.input
                yield from _read_inside(inner)
