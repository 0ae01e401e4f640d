"""A torch module as the candidate: half precision, quantised, compiled, scripted, exported, or edited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from layerdiff.candidate import Candidate
from layerdiff.errors import BackendError, ReferenceFailedError
from layerdiff.graph import Graph
from layerdiff.samples import Sample, named_arguments
from layerdiff.sides.replay import TorchTrace
from layerdiff.sides.tape import record_tape
from layerdiff.sides.taped_graph import graph_of
from layerdiff.signature import signature_of
from layerdiff.tensors import to_array

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import nn

    from layerdiff.sides.tape import Tape
    from layerdiff.store import Store

    Array = np.ndarray[Any, Any]


class TorchCandidate:
    """A module that is recorded with each sample. It runs untouched, and compiled if it is, for the final outputs."""

    kind = "PyTorch"

    def __init__(self, module: nn.Module, label: str, store: Store | None = None) -> None:
        self._store = store
        self.label = label
        self.backend = TorchTrace(module, compiler_of(module))
        self._plain: Any = plain(module)

    def fed(self, sample: Sample, feeds: Mapping[str, Array]) -> Candidate:
        """The candidate with one sample."""
        given = _fitted(sample, feeds, self._plain)
        tensors = named_arguments(given, self._plain)
        tape, used = self._recorded(given)
        taped = graph_of(tape, dict(zip(tape.graph.inputs, tensors.values(), strict=True)))
        arrays = {
            port.name: a for port, a in zip(taped.model.graph.input, map(to_array, tensors.values()), strict=True)
        }
        fed = {name: array for name, array in arrays.items() if array is not None}
        backend = self.backend.on(taped, used)
        graph = Graph(taped.model)
        return Candidate(taped.model, graph, backend, fed, formats=taped.formats, store=self._store)

    def _recorded(self, given: Sample) -> tuple[Tape, Sample]:
        """The tape, and the sample as the module took it: in its own float type and on its device where need be."""
        try:
            return record_tape(self._plain, given.args, given.kwargs), given
        except ReferenceFailedError as error:
            converted = _converted(given, self._plain)
            if converted is None:
                raise _failed(error) from error
        try:
            return record_tape(self._plain, converted.args, converted.kwargs), converted
        except ReferenceFailedError as error:
            raise _failed(error) from error


def plain(module: Any) -> Any:
    """The module inside of one that torch.compile made."""
    return getattr(module, "_orig_mod", module)


def compiler_of(module: nn.Module) -> str | None:
    """The torch.compile that a module goes through, with its backend where that can be told; None for a plain one."""
    if not hasattr(module, "_orig_mod"):
        compiled = any(getattr(inner, "_compiled_call_impl", None) is not None for inner in module.modules())
        return "torch.compile" if compiled else None
    callback: Any = getattr(getattr(module, "dynamo_ctx", None), "callback", None)
    while (inner := getattr(callback, "_torchdynamo_orig_backend", None)) is not None:
        callback = inner
    name = getattr(callback, "compiler_name", getattr(callback, "__name__", None))
    return f"torch.compile(backend={name!r})" if name else "torch.compile"


def _fitted(sample: Sample, feeds: Mapping[str, Array], module: nn.Module) -> Sample:
    """The sample as the module is called: as it is, or its tensors by position where it has other names for them."""
    signature = signature_of(module)
    arrays = [torch.from_numpy(array.copy()) for array in feeds.values()]
    for attempt in (sample, Sample(args=tuple(arrays))):
        try:
            signature.bind(*attempt.args, **attempt.kwargs)
        except TypeError:
            continue
        return attempt
    return sample  # named_arguments says what forward does not take


def _converted(sample: Sample, module: nn.Module) -> Sample | None:
    """The sample on the one device of the module's parameters, its floats in their one type; None if there are more."""
    state = [*module.parameters(), *module.buffers()]
    types, devices = {t.dtype for t in state if t.is_floating_point()}, {t.device for t in state}
    if len(types) != 1 or len(devices) != 1:
        return None
    wanted, device = types.pop(), devices.pop()

    def convert(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.to(device, wanted) if tensor.is_floating_point() else tensor.to(device)

    args, kwargs = tree_map_only(torch.Tensor, convert, (sample.args, dict(sample.kwargs)))
    return Sample(args, kwargs)


def _failed(error: ReferenceFailedError) -> BackendError:
    return BackendError(str(error).replace("the reference model", "the candidate module", 1))
