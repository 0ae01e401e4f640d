"""What a stretch of the reference is as it stands: nodes out of its own graph, or torch operators as recorded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper, numpy_helper

from layerdiff.lowering import Lowered
from layerdiff.sides.onnx_reference import OnnxNode
from layerdiff.sides.torch_nodes import DOMAIN, attributes_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]


def is_onnx(sites: Sequence[Site]) -> bool:
    """Whether operators are nodes of a graph."""
    return bool(sites) and all(s.replay is not None and isinstance(s.replay.function, OnnxNode) for s in sites)


def taken(
    reference: Reference, sites: Sequence[Site], inputs: Sequence[int], output: int, opset: int
) -> Lowered | None:
    """The nodes of some sites as a small model at an opset; None where they cannot be expressed in it."""
    found = _with_constants(reference, sites, inputs)
    names: dict[int, str] = {}
    nodes = [site.replay.function for site in found if site.replay is not None]
    for site, node in zip(found, nodes, strict=True):
        names |= zip(site.inputs, node.reads, strict=True)
        names |= zip(site.outputs, node.makes, strict=True)
    made = {value for site in found for value in site.outputs}
    if output not in made or any(value not in names or _array(reference, value) is None for value in inputs):
        return None
    outside = {value for site in found for value in site.inputs} - made - set(inputs)
    stored = {value: _array(reference, value) for value in sorted(outside)}
    if any(array is None for array in stored.values()):
        return None
    body = helper.make_graph(
        [node.proto for node in nodes],
        "stretch",
        [_port(names[value], _array(reference, value)) for value in inputs],
        [helper.make_empty_tensor_value_info(names[output])],
        [numpy_helper.from_array(array, names[value]) for value, array in stored.items() if array is not None],
    )
    opsets = {domain: version for node in nodes for domain, version in node.opsets}
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    model = helper.make_model(body, opset_imports=imports, ir_version=8)
    if opsets.get("", opset) != opset:
        try:
            model = onnx.version_converter.convert_version(model, opset)
        except (RuntimeError, ValueError, onnx.checker.ValidationError):  # an operator that has no adapter
            return None
    return Lowered(model, {names[value]: value for value in inputs}, names[output], None)


def recorded(reference: Reference, sites: Sequence[Site], inputs: Sequence[int], output: int) -> Lowered | None:
    """Recorded torch operators as a small model of such nodes; None where one of them was not recorded as a call."""
    found = _with_constants(reference, sites, inputs)
    made = {value for site in found for value in site.outputs}
    outside = {value for site in found for value in site.inputs} - made - set(inputs)
    stored = {value: _array(reference, value) for value in sorted(outside)}
    arrays = [*stored.values(), *(_array(reference, value) for value in inputs)]
    if output not in made or any(site.replay is None for site in found) or any(array is None for array in arrays):
        return None
    names = {value: reference.values[value].parameter or f"value_{value}" for value in (*made, *outside, *inputs)}
    nodes = [
        helper.make_node(
            site.op,
            [names[value] for value in site.inputs],
            [names[value] for value in site.outputs],
            domain=DOMAIN,
            **attributes_of(site),
        )
        for site in found
    ]
    body = helper.make_graph(
        nodes,
        "stretch",
        [_port(names[value], _array(reference, value)) for value in inputs],
        [helper.make_empty_tensor_value_info(names[output])],
        [numpy_helper.from_array(array, names[value]) for value, array in stored.items() if array is not None],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)])
    model.ir_version = 8
    return Lowered(model, {names[value]: value for value in inputs}, names[output], None)


def _with_constants(reference: Reference, sites: Sequence[Site], inputs: Sequence[int]) -> list[Site]:
    """The sites with those that only compute what they read from constants, in order."""
    found = {site.index: site for site in sites}
    todo = [value for site in sites for value in site.inputs]
    while todo:
        known = reference.values[todo.pop()]
        if not known.constant or known.index in inputs or known.site is None or known.site in found:
            continue
        site = reference.sites[known.site]
        if known.array is None and site.replay is not None:
            found[site.index] = site
            todo += site.inputs
    return [found[index] for index in sorted(found)]


def _array(reference: Reference, value: int) -> Array | None:
    known = reference.values[value]
    return known.array if known.parameter is None else reference.parameters[known.parameter]


def _port(name: str, array: Array | None) -> onnx.ValueInfoProto:
    assert array is not None
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
