"""Run a recorded torch module: untouched, as it ships, or node by node from its tape."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from onnx import numpy_helper

from layerdiff.backends import Optimisation
from layerdiff.errors import BackendError
from layerdiff.fp32 import full_float32
from layerdiff.sides.torch_nodes import STEP, run
from layerdiff.tensors import named_tensors, to_array
from layerdiff.untouched import uncompiled, untouched

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx
    from torch import nn

    from layerdiff.samples import Sample
    from layerdiff.sides.taped_graph import TapedGraph

    Array = np.ndarray[Any, Any]

_ERRORS = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError)


class TorchTrace:
    """The runtime of a torch candidate. Its one optimisation, where there is one, is torch.compile."""

    name = "torch"

    def __init__(
        self, module: nn.Module, compiler: str | None, taped: TapedGraph | None = None, sample: Sample | None = None
    ) -> None:
        self._module, self._compiler = module, compiler
        self._taped, self._sample = taped, sample

    def on(self, taped: TapedGraph, sample: Sample) -> TorchTrace:
        """The same with one sample's tape."""
        return TorchTrace(self._module, self._compiler, taped, sample)

    @property
    def passes(self) -> Sequence[str]:
        """torch.compile, where the module is compiled."""
        return () if self._compiler is None else (self._compiler,)

    def open(
        self, model: str | Path | onnx.ModelProto, optimisation: Optimisation, disabled: Sequence[str] = ()
    ) -> _Shipped | _Replayed:
        """The module itself as shipped, else the nodes of a graph that was made from its tape."""
        assert self._taped is not None
        assert self._sample is not None
        assert not isinstance(model, str)
        if optimisation is Optimisation.AS_SHIPPED:
            return _Shipped(self._module, self._sample, self._taped, compiled=not disabled)
        return _Replayed(model, self._taped)

    def optimised(self, model: str | Path | onnx.ModelProto, optimisation: Optimisation) -> onnx.ModelProto:
        """Nothing: what torch.compile runs is no graph of these operators."""
        del model, optimisation
        raise BackendError("torch does not give the graph that a compiled module runs")

    def without(self, passes: Sequence[str]) -> str:
        """How to run the module without being compiled."""
        return f"call the module that was compiled (model._orig_mod) instead of {', '.join(passes)}"

    def describe(self) -> dict[str, str]:
        """Devices of the parameters, and the compiler."""
        devices = sorted({str(tensor.device) for tensor in self._module.state_dict().values() if _is_tensor(tensor)})
        return {"providers": ", ".join(devices) or "cpu", "compiled": self._compiler or "no"}


class _Shipped:
    """The untouched module."""

    def __init__(self, module: nn.Module, sample: Sample, taped: TapedGraph, *, compiled: bool) -> None:
        self._module, self._sample, self._taped, self._compiled = module, sample, taped, compiled

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array | None]:
        """The outputs for the sample that the module was recorded with; `feeds` are the same numbers."""
        del feeds
        args, kwargs = torch.utils._pytree.tree_map_only(  # noqa: SLF001  a model may write to its inputs
            torch.Tensor, torch.clone, (self._sample.args, dict(self._sample.kwargs))
        )
        module = self._module if self._compiled else getattr(self._module, "_orig_mod", self._module)
        with ExitStack() as stack:
            stack.enter_context(untouched(module))
            stack.enter_context(torch.no_grad())
            stack.enter_context(full_float32())
            if not self._compiled:
                stack.enter_context(uncompiled(module))
            try:
                result = named_tensors(module(*args, **kwargs))
            except Exception as error:
                raise BackendError(f"the candidate module raised {type(error).__name__}: {error}") from error
        named = {self._taped.outputs[name]: to_array(tensor) for name, tensor in result.items()}
        return named if outputs is None else {name: named.get(name) for name in outputs}


class _Replayed:
    """Nodes of a graph, each run by the step that was recorded for it."""

    def __init__(self, model: Any, taped: TapedGraph) -> None:
        self._model, self._taped = model, taped

    def run(self, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array | None]:
        """Named outputs for named inputs."""
        names = list(outputs) if outputs is not None else [output.name for output in self._model.graph.output]
        values: dict[str, torch.Tensor] = {n: torch.from_numpy(a.copy()) for n, a in feeds.items()}
        known = self._taped.constants
        stored = (tensor for tensor in self._model.graph.initializer if tensor.name not in known)
        values |= {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in stored}
        nodes = _needed(self._model.graph.node, set(names))
        last = {name: at for at, node in enumerate(nodes) for name in node.input}
        with torch.no_grad(), full_float32():
            for at, node in enumerate(nodes):
                values |= self._made(node, values)
                for name in set(node.input).difference(names):
                    if last[name] == at:
                        values.pop(name, None)
        return {name: to_array(self._tensor(values, name)) for name in names}

    def _made(self, node: onnx.NodeProto, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The results of one node by name."""
        try:
            return dict(zip(node.output, self._results(node, values), strict=True))
        except _ERRORS as error:
            raise BackendError(f"torch failed while running {node.output[0]}: {error}") from error

    def _results(self, node: onnx.NodeProto, values: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
        """By its recorded step, unless its operator or arguments were changed since."""
        own = {a.name: a.s.decode() for a in node.attribute if a.name != STEP}
        if node.op_type == "Size":  # the one operator that is not of torch: see `Candidate`
            return [torch.tensor(self._tensor(values, node.input[0]).numel())]
        number = next((a.i for a in node.attribute if a.name == STEP), None)
        if number is None or self._taped.arguments[number] != own:
            return run(node.op_type, own, [self._tensor(values, name) for name in node.input])
        step = self._taped.steps[number]
        results: list[torch.Tensor] = step.run([self._tensor(values, name) for name in node.input[: len(step.reads)]])
        return results

    def _tensor(self, values: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
        found = values.get(name, self._taped.constants.get(name))
        if found is None:
            raise BackendError(f"torch failed while running: nothing gives {name}")
        return found


def _needed(nodes: Sequence[onnx.NodeProto], wanted: set[str]) -> list[onnx.NodeProto]:
    """The nodes that lead to some tensors, in their order."""
    kept = []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            kept.append(node)
            wanted |= set(node.input)
    return kept[::-1]


def _is_tensor(value: object) -> bool:
    return isinstance(value, torch.Tensor)
