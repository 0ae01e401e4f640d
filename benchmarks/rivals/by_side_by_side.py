"""onnx-diagnostic's side-by-side: an exported program and a file run in step, paired by name."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import onnx
import torch

from benchmarks.rivals.scopes import layers_of_nodes
from benchmarks.rivals.verdict import NotApplicable, Verdict, beyond

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from benchmarks.rivals.verdict import Fresh


def side_by_side(_model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> Verdict:
    """The module of the first result, or weight, whose `err_abs` and `err_rel` are above the limits.

    The tool lists errors; its command line has 1e-5 for each of the two, which no export meets.
    """
    program, records = measured(proto, inputs, fresh)
    over = [record for record in records if beyond(record.err_abs, record.err_rel)]
    if not over:
        return Verdict(agrees=True)
    ends = {value.name for value in proto.graph.output}
    if all(record.onnx_name in ends for record in records):
        return Verdict(agrees=False)
    layers = layers_of_nodes(program)
    return Verdict(agrees=False, layer=next((layers[r.ep_name] for r in over if r.ep_name in layers), None))


def side_by_side_own_weights(
    model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh
) -> Verdict:
    """As `side_by_side`, by a user who knows what it does to weights and keeps it from that.

    The tool runs the file with the weights of the model wherever names and shapes are the same: a wrong weight is not
    seen, and a folded bias is undone. Under other names the weights stay those of the file.
    """
    return side_by_side(model, _renamed(proto), inputs, fresh)


def _renamed(proto: onnx.ModelProto) -> onnx.ModelProto:
    renamed = onnx.ModelProto()
    renamed.CopyFrom(proto)
    names = {tensor.name: f"of the file: {tensor.name}" for tensor in renamed.graph.initializer}
    for tensor in renamed.graph.initializer:
        tensor.name = names[tensor.name]
    for node in renamed.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    return renamed


def measured(proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> tuple[ExportedProgram, list[Any]]:
    """The program that was run, and the records with an error in the order in which the tool gives them.

    The program that the exporter itself worked on has the most names in common with the file. The tool does not know
    memory formats, so what makes a tensor contiguous is written without one.
    """
    if fresh.program is None:
        raise NotApplicable("assumes that names are those of an exported program; TorchScript's are not")
    program = copy.deepcopy(fresh.program.exported_program)
    for node in program.graph.nodes:
        if node.kwargs.get("memory_format") is torch.contiguous_format and node.target is torch.ops.aten.clone.default:
            node.target = torch.ops.aten.contiguous.default
        node.kwargs = {name: value for name, value in node.kwargs.items() if name != "memory_format"}
    return program, _records(program, proto, inputs)


def _records(program: ExportedProgram, proto: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> list[Any]:
    from onnx_diagnostic.reference import OnnxruntimeEvaluator
    from onnx_diagnostic.torch_onnx.sbs import run_aligned

    records = run_aligned(
        program,
        proto,
        run_cls=OnnxruntimeEvaluator,
        args=tuple(x.clone() for x in inputs),
        use_tensor=True,
        exc=False,
    )
    return [record for record in records if record.err_abs is not None]
