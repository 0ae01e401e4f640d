"""Exports with model-local functions: one for each class of module, as `export_modules_as_functions` writes them.

The dynamo exporter writes none. From its files they are made here: the nodes of each call of such a module, by the
module path in their metadata, become the body of a function, and equal bodies one function.
"""

from __future__ import annotations

import ast
import itertools
import multiprocessing
from typing import TYPE_CHECKING, Any

import onnx
from onnx import helper

from tests.zoo import exports
from tests.zoo.exports import Exporter

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

FUNCTION_MODELS: dict[str, frozenset[str]] = {
    "resnet": frozenset({"BasicBlock"}),
    "mobilenet": frozenset({"InvertedResidual"}),
    "yolo": frozenset({"C3", "SPPF", "Detect"}),
    "unet": frozenset({"DoubleConv", "Up"}),
    "vit": frozenset({"Block", "PatchEmbed", "FusedAttention"}),
    "gpt": frozenset({"Block", "Mlp"}),
    "densenet": frozenset({"DenseLayer", "Transition"}),
    "refiner": frozenset({"Step"}),
}
"""The classes whose calls become functions."""

DOMAIN = "zoo"
_SCOPES = "pkg.torch.onnx.name_scopes"


def export(model: nn.Module, inputs: tuple[Tensor, ...], exporter: Exporter) -> onnx.ModelProto:
    """As `exports.export`, with a function for each of the classes that FUNCTION_MODELS names."""
    names = frozenset().union(*FUNCTION_MODELS.values())
    modules = {path: module for path, module in model.named_modules() if type(module).__name__ in names}
    if exporter is Exporter.TORCHSCRIPT:
        return _in_a_child(model, inputs, {type(module) for module in modules.values()})
    return outlined(exports.export(model, inputs, exporter), modules)


def _in_a_child(model: nn.Module, inputs: tuple[Tensor, ...], classes: set[type]) -> onnx.ModelProto:
    """TorchScript's own functions. A second such export in one process can end in a segmentation fault."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(sender, model, inputs, classes))
    child.start()
    sender.close()
    try:
        failure, content = receiver.recv()
    except EOFError as died:
        raise RuntimeError("the exporter's process died") from died
    finally:
        child.join()
    if failure:
        raise RuntimeError(failure)
    return onnx.load_from_string(content)


def _send(sender: Any, model: nn.Module, inputs: tuple[Tensor, ...], classes: set[type]) -> None:
    try:
        proto = exports.export(model, inputs, Exporter.TORCHSCRIPT, export_modules_as_functions=classes)
    except Exception as error:  # noqa: BLE001  whatever it is, the parent raises it
        sender.send((f"{type(error).__name__}: {error}", b""))
    else:
        sender.send(("", proto.SerializeToString()))


def outlined(proto: onnx.ModelProto, modules: Mapping[str, nn.Module]) -> onnx.ModelProto:
    """A copy in which the nodes of each of these modules are one call of a local function."""
    model = onnx.ModelProto()
    model.CopyFrom(proto)
    # A constant has no inputs, so it may come first, where it interrupts no module.
    nodes = sorted(model.graph.node, key=lambda node: bool(node.input))
    read_by = _reads(nodes, model.graph.output)
    del model.graph.node[:]
    library: dict[bytes, onnx.FunctionProto] = {}
    for path, run in itertools.groupby(nodes, key=lambda node: _module_of(node, modules)):
        group = list(run)
        if path is None or len(group) < 2 or any(_holds_graph(node) for node in group):
            model.graph.node.extend(group)
            continue
        call, function = _function(group, read_by, type(modules[path]).__name__, model.opset_import)
        content = b"".join(node.SerializeToString(deterministic=True) for node in function.node)
        known = library.setdefault(content, function)
        if known is function:
            function.name = f"{function.name}_{len(library)}"
        call.op_type = known.name
        model.graph.node.append(call)
    model.functions.extend(library.values())
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    _forget_inner_types(model.graph)
    return model


def _module_of(node: onnx.NodeProto, modules: Mapping[str, nn.Module]) -> str | None:
    """The outermost of the modules that the node belongs to."""
    scopes = next((entry.value for entry in node.metadata_props if entry.key == _SCOPES), "[]")
    return next((path for path in ast.literal_eval(scopes)[:-1] if path in modules), None)


def _reads(nodes: Iterable[onnx.NodeProto], outputs: Iterable[onnx.ValueInfoProto]) -> dict[str, set[int]]:
    """Who reads each value: the identities of nodes, and 0 for the model's caller."""
    readers: dict[str, set[int]] = {value.name: {0} for value in outputs}
    for node in nodes:
        for name in _read(node):
            readers.setdefault(name, set()).add(id(node))
    return readers


def _read(node: onnx.NodeProto) -> Iterator[str]:
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)


def _holds_graph(node: onnx.NodeProto) -> bool:
    kinds = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    return any(attribute.type in kinds for attribute in node.attribute)


def _function(
    group: Sequence[onnx.NodeProto],
    read_by: Mapping[str, set[int]],
    name: str,
    opsets: Sequence[onnx.OperatorSetIdProto],
) -> tuple[onnx.NodeProto, onnx.FunctionProto]:
    """The call, and the function with names of its own: bodies that compute the same are equal."""
    made = [output for node in group for output in node.output if output]
    given = list(dict.fromkeys(name for node in group for name in node.input if name and name not in made))
    inside = {id(node) for node in group}
    results = [output for output in made if read_by.get(output, set()) - inside]
    names = {"": ""} | {value: f"v{number}" for number, value in enumerate((*given, *made))}
    body = []
    for number, node in enumerate(group):
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"n{number}"
        copy.input[:] = [names[value] for value in node.input]
        copy.output[:] = [names[value] for value in node.output]
        copy.doc_string = ""
        del copy.metadata_props[:]
        body.append(copy)
    ends = ([names[value] for value in given], [names[value] for value in results])
    function = helper.make_function(DOMAIN, name, *ends, body, list(opsets))
    call = helper.make_node(name, given, results, name=f"{name}_call_{made[0]}", domain=DOMAIN)
    return call, function


def _forget_inner_types(graph: onnx.GraphProto) -> None:
    """Without the types of values that have gone into functions."""
    alive = {output for node in graph.node for output in node.output}
    kept = [value for value in graph.value_info if value.name in alive]
    del graph.value_info[:]
    graph.value_info.extend(kept)
