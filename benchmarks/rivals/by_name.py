"""The script that everybody writes: forward hooks, every ONNX value an output, tensors matched by name."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from benchmarks.faults.survey import reached, tensors
from benchmarks.rivals.scopes import layers_of_tensors
from benchmarks.rivals.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

    from benchmarks.rivals.verdict import Fresh

RTOL, ATOL = 1e-3, 1e-5
"""The usual numbers of such scripts, and of the tutorials of PyTorch."""


@dataclass(frozen=True)
class _Call:
    """One call of a module, and the first tensor that it gave."""

    layer: str
    type: str
    output: np.ndarray


def hook_and_name(model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh) -> Verdict:
    """The first module, in the order in which they finish, whose tensor of the same scope is not close."""
    return _verdict(_recorded(model, inputs), model, proto, inputs, fresh)


def hook_and_name_folding(
    model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh
) -> Verdict:
    """As `hook_and_name`, by an author who knows that exporters fold BatchNorm.

    Where the file has nothing under the name of a BatchNorm, the convolution before it is expected to hold what the
    BatchNorm gave.
    """
    named = set(layers_of_tensors(model, proto, fresh.proto).values())
    calls: list[_Call] = []
    for call in _recorded(model, inputs):
        before = calls[-1] if calls else None
        if before is not None and call.type.startswith("BatchNorm") and call.layer not in named:
            calls[-1] = _Call(before.layer, before.type, call.output)
        else:
            calls.append(call)
    return _verdict(calls, model, proto, inputs, fresh)


def _verdict(
    calls: Sequence[_Call], model: nn.Module, proto: onnx.ModelProto, inputs: tuple[Tensor, ...], fresh: Fresh
) -> Verdict:
    values = _every_value(proto, inputs)
    pairs = _paired(calls, values, layers_of_tensors(model, proto, fresh.proto))
    final = proto.graph.output[0].name
    pairs.append(("", calls[-1].output, final))
    layer = next((layer for layer, expected, name in pairs if not _close(values[name], expected)), None)
    if layer is None:
        return Verdict(agrees=True)
    return Verdict(agrees=False, layer=layer if any(name != final for *_, name in pairs) else None)


def _close(actual: np.ndarray, expected: np.ndarray) -> bool:
    return actual.shape == expected.shape and np.allclose(actual, expected, rtol=RTOL, atol=ATOL)


def _recorded(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[_Call]:
    """Every call of every module, in the order in which they finish; the last is the root's."""
    watched = copy.deepcopy(model)
    calls: list[_Call] = []
    stack: list[tuple[nn.Module, str]] = []

    def enter(module: nn.Module, _args: Any) -> None:
        stack.append((module, reached(*stack[-1], module) if stack else ""))

    def leave(module: nn.Module, _args: Any, output: Any) -> None:
        _, path = stack.pop()
        found = list(tensors(output))
        if found and all(other.shape != found[0].shape for other in found[1:]):  # or names do not tell them apart
            # Cloned, or the next in-place operator overwrites it.
            calls.append(_Call(path, type(module).__name__, found[0].detach().clone().numpy()))

    for module in watched.modules():
        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)
    with torch.no_grad():
        watched(*(x.clone() for x in inputs))
    return calls


def _every_value(proto: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> dict[str, np.ndarray]:
    """What the file computes everywhere, in the order of its nodes."""
    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    names = [name for node in proto.graph.node if node.op_type != "Constant" for name in node.output if name]
    already = {value.name for value in proto.graph.output}
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in already)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(exposed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    feeds = {value.name: x.numpy() for value, x in zip(session.get_inputs(), inputs, strict=True)}
    arrays = dict(zip((value.name for value in session.get_outputs()), session.run(None, feeds), strict=True))
    return {name: arrays[name] for name in names}


def _paired(
    calls: Sequence[_Call], values: Mapping[str, np.ndarray], layers: Mapping[str, str]
) -> list[tuple[str, np.ndarray, str]]:
    """Layer, expected value and tensor of every call but the root's that has a tensor of its shape in its scope."""
    times = Counter(call.layer for call in calls)
    met: Counter[str] = Counter()
    pairs = []
    for call in calls[:-1]:
        scope = [name for name in values if _in_scope(layers.get(name), call.layer)]
        share = _share(scope, met[call.layer], times[call.layer])
        met[call.layer] += 1
        fitting = [name for name in share if values[name].shape == call.output.shape]
        if fitting and layers[fitting[-1]] == call.layer:  # what a child of it gave is compared there
            pairs.append((call.layer, call.output, fitting[-1]))
    return pairs


def _share(scope: list[str], number: int, times: int) -> list[str]:
    """The tensors of one call among those of all the module's calls: each has as many, or nobody can tell."""
    size, rest = divmod(len(scope), times)
    return [] if rest else scope[number * size : (number + 1) * size]


def _in_scope(layer: str | None, path: str) -> bool:
    return layer is not None and (layer == path or layer.startswith(f"{path}."))
