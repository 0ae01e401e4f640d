"""Record a torch module as a graph that can be run again, cut open and fed other values.

The recorder that writes down a reference gives the graph: single-assignment, so that in-place updates and views are
operators like all others. Here each of its sites also becomes a step that runs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from layerdiff.capture import Recorder, record
from layerdiff.sides import steps
from layerdiff.sides.steps import Geometry, RandomStates, Step, random_states
from layerdiff.tensors import to_array

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import nn

    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]


@dataclass(slots=True)
class Tape:
    """A recorded forward pass: its graph, a step for each site, its constants and the packed weights of its sites."""

    graph: Reference
    steps: dict[int, Step]
    constants: dict[int, torch.Tensor]
    packed: dict[int, dict[str, Array]] = field(default_factory=dict)


def record_tape(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tape:
    """One forward pass of a module as a tape; the module is left exactly as it was."""
    recorder = record(lambda: _TapeRecorder(model), args, kwargs)
    return Tape(recorder.reference(), recorder.steps, recorder.constants, recorder.packed)


class _TapeRecorder(Recorder):
    """Keeps what is needed to run each site again, and no values but constants."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.steps: dict[int, Step] = {}
        self.constants: dict[int, torch.Tensor] = {}
        self.packed: dict[int, dict[str, Array]] = {}
        self._geometry: dict[int, Geometry | None] = {}
        self._modules: dict[int, tuple[nn.Module, Any, Any, RandomStates]] = {}
        self._rng: RandomStates | None = None

    def keep(self, index: int, tensor: torch.Tensor) -> None:
        """Nothing: a replay gives all values."""
        del index, tensor

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._rng = random_states() if torch.Tag.nondeterministic_seeded in func.tags else None
        return func(*args, **kwargs)

    def _new_value(
        self,
        tensor: torch.Tensor,
        site: int | None,
        *,
        parameter: str | None = None,
        constant: bool,
    ) -> int:
        index = super()._new_value(tensor, site, parameter=parameter, constant=constant)
        self._geometry[index] = Geometry.of(tensor)
        if site is None and constant:
            fixed = isinstance(tensor, torch.nn.Parameter)  # a buffer may be written to later on
            self.constants[index] = tensor.detach() if fixed else tensor.detach().clone()
        return index

    def _read(self, tensor: torch.Tensor) -> int:
        before = len(self._sites)
        index = super()._read(tensor)
        for site in self._sites[before:]:  # another view of the same memory was written to
            old, *written = (self._geometry[i] for i in site.inputs)
            self.steps[site.index] = steps.update(site.inputs, old, written)
        return index

    def _note_result(self, func: Any, call: tuple[Any, Any], reads: tuple[int, ...], result: Any) -> None:
        before = len(self._sites)
        # The arguments are read before an in-place operator's result is written down: only their form is kept.
        step = steps.operator(func, *call, reads, self._rng)
        super()._note_result(func, call, reads, result)
        for site in self._sites[before:]:
            self.steps[site.index] = step
            if any(isinstance(leaf, torch.ScriptObject) for leaf in (*call[0], *call[1].values())):
                self.packed[site.index] = _packed_weights(self.model, self.where())

    def _alias(self, tensor: torch.Tensor, index: int) -> int:
        site = len(self._sites)
        alias = super()._alias(tensor, index)
        self.steps[site] = steps.operator(torch.ops.aten.clone.default, (tensor,), {}, (index,), None)
        return alias

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        super()._begin(module, args, kwargs)
        call = self._stack[-1]
        if call.atomic:
            self._modules[call.index] = (module, args, kwargs, random_states())

    def _close_atomic(self, call: Any, outputs: list[torch.Tensor]) -> None:
        site = len(self._sites)
        super()._close_atomic(call, outputs)
        module, args, kwargs, rng = self._modules.pop(call.index)
        reads = (*call.inputs, *(index for index in call.reads if index not in call.inputs))
        self.steps[site] = steps.module(module, args, kwargs, reads, rng)


def _packed_weights(model: nn.Module, path: str) -> dict[str, Array]:
    """The weights that a quantised module keeps in an object of its own, as integers where they are."""
    try:
        module: Any = model.get_submodule(path)
        weight = module.weight()
    except (
        AttributeError,
        TypeError,
        RuntimeError,
    ):  # no such method, a weight that is a plain tensor, a scripted module
        return {}
    array = weight.detach().int_repr().cpu().numpy() if weight.is_quantized else to_array(weight)
    return {} if array is None else {f"{path}.weight": array}
