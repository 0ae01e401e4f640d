"""What was planted and where, and the export that carries it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

    from benchmarks.faults.category import Category
    from tests.zoo.exports import Exporter, Treatment


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    `layer` is the deepest module that holds it, by the path it is reached through: a name in
    `named_modules(remove_duplicate=False)`, "" for the root's own forward. `also_ok` are neighbours that nothing in
    the file tells apart from it. `call`, counted from 0, is the only one of the layer's calls that is wrong; None says
    that they all are.
    """

    kind: str
    layer: str
    also_ok: tuple[str, ...]
    detail: str
    call: int | None = None

    def accepts(self, layer: str | None, call: int | None = None) -> bool:
        """Whether a tool that names this layer, and perhaps which call of it, is right."""
        if layer == self.layer and None not in (call, self.call) and call != self.call:
            return False
        return layer == self.layer or layer in self.also_ok


@dataclass(frozen=True)
class FaultyCase:
    """A healthy model, its inputs, and an export that computes something else. `subject` is the model's name."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    proto: onnx.ModelProto
    fault: Fault
    exporter: Exporter
    treatment: Treatment
    category: Category
    subject: str


@dataclass(frozen=True)
class FaultyPair:
    """A healthy model, its inputs, and an export with two faults, in the order in which torch runs into them.

    No layer is a right answer for both, each fault is wrong in one call, and each matters with and without the other.
    """

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    proto: onnx.ModelProto
    faults: tuple[Fault, Fault]
    exporter: Exporter
    treatment: Treatment
    category: Category
    subject: str


def joined(*groups: tuple[str, ...], but: str) -> tuple[str, ...]:
    """All the names, each once, without that one."""
    return tuple(dict.fromkeys(name for group in groups for name in group if name != but))
