"""A network as a list of steps, so that it can be drawn at random, printed, and broken in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tests.zoo.exports import Exporter
from tests.zoo.random_nets.functions import FUNCTIONS

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Step:
    """A call of a layer, or of a function in the program's own forward; `reads` are numbers of earlier values."""

    reads: tuple[int, ...]
    layer: str = ""
    function: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


class Form(str, Enum):
    """In what a program returns its results."""

    TENSOR = "tensor"
    TUPLE = "tuple"
    LIST = "list"
    DICT = "dict"
    NESTED = "nested"


class Program(nn.Module):
    """Runs steps in order. Every tensor a step returns gets the next number; the inputs are the first."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self.makers: list[int] = []  # the number of the step that makes each value; -1 for inputs
        self.results: tuple[int, ...] = ()
        self.form = Form.TENSOR

    def forward(self, first: Tensor, second: Tensor | None = None) -> Any:
        values = [first] if second is None else [first, second]
        for step in self.steps:
            values += tensors(self.run(step, values))
        return self._packed([values[number] for number in self.results])

    def run(self, step: Step, values: list[Tensor]) -> Any:
        """What one step makes of the values so far."""
        operands = [values[number] for number in step.reads]
        if step.function:
            return FUNCTIONS[step.function].call(*operands, **step.options)
        layer = self.get_submodule(step.layer)
        if isinstance(layer, nn.MultiheadAttention):
            return layer(*operands, need_weights=False, **step.options)
        return layer(*operands, **step.options)

    def used(self) -> set[int]:
        """The values that a result depends on."""
        found: set[int] = set()
        todo = list(self.results)
        while todo:
            number = todo.pop()
            if number not in found:
                found.add(number)
                maker = self.makers[number]
                todo += self.steps[maker].reads if maker >= 0 else ()
        return found

    def _packed(self, results: list[Tensor]) -> Any:
        if self.form is Form.TENSOR:
            return results[0]
        if self.form is Form.DICT:
            return {f"result_{number}": result for number, result in enumerate(results)}
        if self.form is Form.NESTED:
            return {"main": results[0], "more": tuple(results[1:])}
        return results if self.form is Form.LIST else tuple(results)

    def extra_repr(self) -> str:
        lines = [f"{step.reads} -> {step.layer or step.function} {dict(step.options) or ''}" for step in self.steps]
        return "\n".join([*lines, f"returns {self.form.value} of {self.results}"])


def faithful(program: nn.Module, exporter: Exporter) -> bool:
    """Whether an exporter is known to write down all that the program's functions do."""
    steps = [step for part in program.modules() if isinstance(part, Program) for step in part.steps]
    lossy = any(step.function and not FUNCTIONS[step.function].torchscript for step in steps)
    return exporter is not Exporter.TORCHSCRIPT or not lossy


def tensors(result: Any) -> list[Tensor]:
    """The tensors of a result, however nested."""
    return list(_tensors(result))


def _tensors(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, Mapping):
        for part in result.values():
            yield from _tensors(part)
    elif isinstance(result, (list, tuple)):
        for part in result:
            yield from _tensors(part)
