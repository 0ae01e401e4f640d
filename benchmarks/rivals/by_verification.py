"""PyTorch's own `verify_onnx_program`: every operator of the exported program against the value of its name."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from benchmarks.rivals.scopes import layers_of_nodes
from benchmarks.rivals.verdict import NotApplicable, Verdict, beyond

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from benchmarks.rivals.verdict import Fresh


def verify_onnx_program(_model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> Verdict:
    """The module of the first operator whose largest absolute and largest relative difference are above the limits.

    The tool takes what the dynamo exporter returned. The file is put into such a program, next to the operators of a
    new export of the model.
    """
    infos, outputs = measured(proto, inputs, fresh)
    over = [info for info in infos if beyond(info.max_abs_diff, info.max_rel_diff)]
    if not over and not any(beyond(info.max_abs_diff, info.max_rel_diff) for info in outputs):
        return Verdict(agrees=True)
    ends = {value.name for value in proto.graph.output}
    if all(info.name in ends for info in infos):
        return Verdict(agrees=False)
    layers = layers_of_nodes(fresh.program.exported_program)
    return Verdict(agrees=False, layer=next((layers[info.name] for info in over if info.name in layers), ""))


def measured(proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> tuple[list, list]:
    """What the tool says of the intermediate values it found, and of the outputs."""
    import onnx_ir
    from torch.onnx.verification import verify_onnx_program as verify

    if fresh.program is None:
        raise NotApplicable("takes an ONNXProgram, which only the dynamo exporter gives")
    program = torch.onnx.ONNXProgram(onnx_ir.from_proto(proto), fresh.program.exported_program)
    gc.freeze()  # the program collects garbage twice for each value: not that of this whole process
    try:
        return verify(program, inputs, compare_intermediates=True), verify(program, inputs)
    finally:
        gc.unfreeze()
        program.release()
