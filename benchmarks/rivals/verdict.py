"""What a rival is given besides the case, and what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.zoo import exports
from tests.zoo.exports import Exporter

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn
    from torch.onnx import ONNXProgram


MAX_ABS, MAX_REL = 1e-4, 1e-3
"""For tools that list differences and judge none. Of eleven limits on either or both, tried on other cases than those
that are published, these served such tools best."""


class NotApplicable(Exception):  # noqa: N818  an outcome of its own, not an error
    """The tool does not take such a file; the text says why."""


@dataclass(frozen=True)
class Verdict:
    """`layer` is the module the tool points at first; None where it sees a difference and points at none."""

    agrees: bool
    layer: str | None = None


@dataclass(frozen=True)
class Fresh:
    """A new export of the healthy model by the exporter that made the file in question, untreated.

    `program` is what the dynamo exporter returned; None for TorchScript. Rivals share it and leave it as it is.
    """

    proto: onnx.ModelProto
    program: ONNXProgram | None


def beyond(max_abs: float, max_rel: float) -> bool:
    """Whether a difference counts where a tool leaves that to its reader; NaN, as from equal infinities, does not."""
    return max_abs > MAX_ABS and max_rel > MAX_REL


def fresh_export(model: nn.Module, inputs: tuple[Tensor, ...], exporter: Exporter) -> Fresh:
    """The model as it is now, exported."""
    if exporter is Exporter.TORCHSCRIPT:
        return Fresh(exports.export(model, inputs, exporter), None)
    program = exports.program(model, inputs)
    return Fresh(program.model_proto, program)
