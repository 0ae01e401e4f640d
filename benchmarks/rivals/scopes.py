"""Which module a tensor of an ONNX file, or a node of an exported program, comes from, going by names alone."""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx
    from torch import nn
    from torch.export import ExportedProgram

_SCOPES = "pkg.torch.onnx.name_scopes"


def layers_of_tensors(model: nn.Module, *protos: onnx.ModelProto) -> dict[str, str]:
    """The module path of every tensor whose name or metadata tells; earlier files come before later ones."""
    paths = frozenset(name for name, _ in model.named_modules(remove_duplicate=False))
    layers: dict[str, str] = {}
    for proto in protos:
        for node in proto.graph.node:
            for name in node.output:
                layer = _from_metadata(node, paths)
                layer = _from_name(node, name, paths) if layer is None else layer
                if name and layer is not None:
                    layers.setdefault(name, layer)
    return layers


def layers_of_nodes(program: ExportedProgram) -> dict[str, str]:
    """The module path of every operator of an exported program, and of every parameter it reads."""
    layers: dict[str, str] = {}
    for node in program.graph.nodes:
        stack = node.meta.get("nn_module_stack") or {}
        if stack:
            layers[node.name] = _without_call(list(stack.values())[-1][0])
    signature = program.graph_signature
    for placeholder, name in {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.items():
        layers[placeholder] = name.rpartition(".")[0]
    return layers


def _from_metadata(node: onnx.NodeProto, paths: frozenset[str]) -> str | None:
    """The deepest module in the scopes that the dynamo exporter writes; the last of them is the operator."""
    for entry in node.metadata_props:
        if entry.key == _SCOPES:
            scopes = [_without_call(scope) for scope in ast.literal_eval(entry.value)[:-1]]
            return next((scope for scope in reversed(scopes) if scope in paths), None)
    return None


def _from_name(node: onnx.NodeProto, tensor: str, paths: frozenset[str]) -> str | None:
    """The module in a name of the TorchScript exporter, such as `/layer1/layer1.0/conv1/Conv_output_0`."""
    name = next((text for text in (tensor, node.name) if text.startswith("/")), None)
    if name is None:
        return None
    path = ""
    for part in name.split("/")[1:-1]:
        below = next(iter(_below(path, part, paths)), None)
        if below is None:
            break
        path = below
    return path


def _below(path: str, part: str, paths: frozenset[str]) -> Iterator[str]:
    """What one part of a TorchScript name may stand for inside a module, best first.

    It is an attribute, or `layer1.0` inside of `layer1`, or a member of a container that has no part of its own; a
    second call of a module has `_1` at the end.
    """
    inside = f"{path}." if path else ""
    for text in dict.fromkeys((part, re.sub(r"_\d+$", "", part))):
        parent = path.rpartition(".")[0]
        for candidate in (f"{inside}{text}", f"{parent}.{text}" if parent else text):
            if candidate in paths and candidate.startswith(inside):
                yield candidate
        members = [name for name in paths if name.startswith(inside) and name.endswith(f".{text}")]
        yield from sorted(members, key=lambda name: (name.count("."), name))


def _without_call(scope: str) -> str:
    return scope.partition("@")[0]
