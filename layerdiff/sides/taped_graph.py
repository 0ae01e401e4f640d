"""A tape in the form of an ONNX model, so that everything that works on a candidate's graph works on it.

Its nodes are operators of torch in a domain of our own. Only the runtime of replay.py can run them.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from layerdiff.operators import base_name
from layerdiff.sides import steps
from layerdiff.sides.torch_nodes import DOMAIN, STEP, attributes_of
from layerdiff.tensors import to_array

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.sides.steps import Step
    from layerdiff.sides.tape import Tape

    Array = np.ndarray[Any, Any]

_NARROW = ("float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class TapedGraph:
    """The model, what runs its nodes, its constants, and the number formats that arrays cannot show."""

    model: onnx.ModelProto
    steps: tuple[Step, ...]
    constants: Mapping[str, torch.Tensor]
    formats: Mapping[str, str]
    outputs: Mapping[str, str]
    arguments: tuple[Mapping[str, str], ...]


def graph_of(tape: Tape, given: Mapping[str, torch.Tensor]) -> TapedGraph:
    """A tape as a graph; `given` are the inputs as they came, before they were converted for the candidate."""
    return _Writer(tape, given).graph()


class _Writer:
    def __init__(self, tape: Tape, given: Mapping[str, torch.Tensor]) -> None:
        self._tape, self._given = tape, given
        self._taken: Counter[str] = Counter()
        self._names: dict[int, str] = {}
        self._nodes: list[onnx.NodeProto] = []
        self._steps: list[Step] = []
        self._arguments: list[dict[str, str]] = []
        self._stored: list[TensorProto] = []
        self._constants: dict[str, torch.Tensor] = {}

    def graph(self) -> TapedGraph:
        inputs = [self._input(name, index) for name, index in self._tape.graph.inputs.items()]
        outputs = {name: self._free(name or "output") for name in self._tape.graph.outputs}
        for index, tensor in self._tape.constants.items():
            self._constant(index, tensor)
        for site in self._tape.graph.sites:
            self._site(site.index)
        values = self._tape.graph.values
        ends = []
        for name, index in self._tape.graph.outputs.items():
            self._node("aten.alias", "", steps.passed_on(index), [self._names[index]], [outputs[name]])
            array = np.empty(0, _numpy_type(values[index].dtype))
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            ends.append(helper.make_tensor_value_info(outputs[name], kind, list(values[index].shape)))
        body = helper.make_graph(self._nodes, "torch", inputs, ends, self._stored)
        domains = [helper.make_opsetid("", 17), helper.make_opsetid(DOMAIN, 1)]
        model = helper.make_model(body, opset_imports=domains, ir_version=8)
        formats = {self._names[v.index]: v.dtype for v in values if v.dtype in _NARROW and v.index in self._names}
        return TapedGraph(model, tuple(self._steps), self._constants, formats, outputs, tuple(self._arguments))

    def _free(self, name: str) -> str:
        """A name that nothing has yet."""
        self._taken[name] += 1
        return name if self._taken[name] == 1 else self._free(f"{name}#{self._taken[name]}")

    def _input(self, name: str, index: int) -> onnx.ValueInfoProto:
        tensor = self._given[name]
        array = to_array(tensor)
        port = self._names[index] = self._free(name or "input")
        wanted = self._tape.graph.values[index].dtype
        if wanted != str(tensor.dtype).removeprefix("torch."):
            self._names[index] = self._free(f"{port}/{wanted}")
            self._node("aten._to_copy", "", steps.cast(getattr(torch, wanted), index), [port], [self._names[index]])
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(np.float32) if array is None else array.dtype)
        return helper.make_tensor_value_info(port, kind, list(tensor.shape))

    def _constant(self, index: int, tensor: torch.Tensor) -> None:
        self._names[index] = self._free(self._tape.graph.values[index].parameter or f"constant_{index}")
        self._constants[self._names[index]] = tensor
        array = to_array(tensor)
        self._stored.append(numpy_helper.from_array(np.zeros(0) if array is None else array, self._names[index]))

    def _site(self, index: int) -> None:
        site, step = self._tape.graph.sites[index], self._tape.steps[index]
        layer = self._tape.graph.layer_of(site)
        for slot, value in enumerate(site.outputs):
            label = "/".join(filter(None, (layer, base_name(site.op)))) + (f":{slot}" if slot else "")
            self._names[value] = self._free(label)
        reads = [self._names[value] for value in step.reads]
        for name, array in self._tape.packed.get(index, {}).items():
            reads.append(self._free(name))
            self._stored.append(numpy_helper.from_array(np.ascontiguousarray(array), reads[-1]))
        makes = [self._names[value] for value in site.outputs]
        self._node(site.op, layer, step, reads, makes, attributes_of(site))

    def _node(  # noqa: PLR0913  what a node is made of
        self,
        op: str,
        layer: str,
        step: Step,
        reads: list[str],
        makes: list[str],
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        own: dict[str, Any] = dict(arguments or {})
        node = helper.make_node(op, reads, makes, name=makes[0], domain=DOMAIN, **{**own, STEP: len(self._steps)})
        self._arguments.append(own)
        # The hint that the dynamo exporter leaves: the module path, then the operator itself.
        entry = node.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.name_scopes", repr(["", layer, makes[0]])
        self._nodes.append(node)
        self._steps.append(step)


def _numpy_type(dtype: str) -> str:
    return "float32" if dtype == "bfloat16" else dtype
