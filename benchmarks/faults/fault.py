"""What was planted and where, and the export that carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from tests.zoo.exports import Exporter, Treatment


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    `layer` is the deepest module that holds it, by the path it is reached through: a name in
    `named_modules(remove_duplicate=False)`, "" for the root's own forward. `also_ok` are neighbours that nothing in
    the file tells apart from it.
    """

    kind: str
    layer: str
    also_ok: tuple[str, ...]
    detail: str

    def accepts(self, layer: str | None) -> bool:
        """Whether a tool that names this layer is right."""
        return layer == self.layer or layer in self.also_ok


@dataclass(frozen=True)
class FaultyCase:
    """A healthy model, its inputs, and an export that computes something else."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    proto: onnx.ModelProto
    fault: Fault
    exporter: Exporter
    treatment: Treatment
