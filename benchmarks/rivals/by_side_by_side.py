"""onnx-diagnostic's side-by-side: an exported program and a file run in step, paired by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import torch

from benchmarks.rivals.scopes import layers_of_nodes
from benchmarks.rivals.verdict import NotApplicable, Verdict

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.export import ExportedProgram

    from benchmarks.rivals.verdict import Fresh

MAX_ABS = 3e-4
"""The tool lists errors. Its command line has 1e-5 for both, which no export meets; this limit served it best."""


def side_by_side(model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> Verdict:
    """The module of the first result, or weight, whose `err_abs` is above MAX_ABS."""
    program, records = measured(model, proto, inputs, fresh)
    over = [record for record in records if record.err_abs > MAX_ABS]
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


def measured(
    model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh
) -> tuple[ExportedProgram, list[Any]]:
    """The program that was run, and the records with an error in the order in which the tool gives them.

    The program that the exporter itself worked on has the most names in common with the file. The tool cannot run all
    of its operators; then it is given what torch.export makes of the model, as in its documentation.
    """
    if fresh.program is None:
        raise NotApplicable("assumes that names are those of an exported program; TorchScript's are not")
    exported = fresh.program.exported_program
    try:
        return exported, _records(exported, proto, inputs)
    except NotImplementedError:
        with torch.no_grad():  # or the blocks in which a model turns gradients off become subgraphs
            plain = torch.export.export(model, inputs)
        return plain, _records(plain, proto, inputs)


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
