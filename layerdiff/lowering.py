"""What a stretch of the reference is in ONNX: the recorded operators, exported afresh by PyTorch's own exporters.

The result is not compared with the user's file as a whole; it says what this one stretch should have become, node by
node, so that a difference can be named, and so that something right can be put in its place.
"""

from __future__ import annotations

import copy
import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812  the name everybody uses
from torch import fx, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from layerdiff.exporting import Exporter, exported
from layerdiff.model import Operand
from layerdiff.operators import only_moves

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnx

    from layerdiff.model import Reference, Site


@dataclass(frozen=True, slots=True)
class Lowered:
    """A small ONNX model of a stretch: its inputs stand for reference values, its one output for another."""

    model: onnx.ModelProto
    inputs: Mapping[str, int]
    output: str
    exporter: Exporter | None  # None for what was taken from an ONNX reference as it is


def lowered(
    reference: Reference, sites: Sequence[int], inputs: Sequence[int], output: int, way: tuple[Exporter, int]
) -> Lowered | None:
    """The stretch in ONNX by one exporter at one opset; None where that exporter cannot express it."""
    exporter, opset = way
    module = replayed(reference, sites, inputs, output)
    if module is None:
        return None
    arrays = [reference.values[index].array for index in inputs]
    if any(array is None for array in arrays):
        return None
    args = tuple(torch.from_numpy(array.copy()) for array in arrays if array is not None)
    model = exported(module, args, exporter, opset)
    if model is None:
        return None
    names = [port.name for port in model.graph.input if port.name not in {t.name for t in model.graph.initializer}]
    if len(names) != len(inputs):  # an input that is only looked at for its shape is dropped
        return None
    return Lowered(model, dict(zip(names, inputs, strict=True)), model.graph.output[0].name, exporter)


def replayed(
    reference: Reference,
    sites: Sequence[int],
    inputs: Sequence[int],
    output: int,
    spelled: Callable[[Any], Any] | None = None,
) -> fx.GraphModule | None:
    """The recorded operators as a module of their own; None where one of them cannot be called again.

    `spelled` gives what is called for a recorded operator: what exporters know, unless something else is wanted.
    """
    graph, root = fx.Graph(), nn.Module()
    made: dict[int, fx.Node] = {index: graph.placeholder(f"value_{index}") for index in inputs}

    def node_of(operand: Operand) -> fx.Node:
        value = reference.values[operand.value]
        if value.index not in made:
            array = reference.parameters[value.parameter] if value.parameter is not None else value.array
            if array is None:
                raise _NotReplayableError
            root.register_buffer(f"constant_{value.index}", torch.from_numpy(array.copy()))
            made[value.index] = graph.get_attr(f"constant_{value.index}")
        return made[value.index]

    try:
        for site in sorted({*sites, *_constant_sites(reference, sites, inputs)}):
            _replay(graph, root, (reference.sites[site], spelled or _for_exporters), node_of, made)
        if output not in made:
            return None
    except _NotReplayableError:
        return None
    graph.output(made[output])
    module = fx.GraphModule(root, graph).eval()
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


class _NotReplayableError(Exception):
    """A site has no recorded call, or a value no numbers."""


def _constant_sites(reference: Reference, sites: Sequence[int], inputs: Sequence[int]) -> set[int]:
    """The sites that move a parameter on its way into the stretch (a transposed weight): exporters see through them.

    What else does not depend on the inputs (a position table) goes in as the numbers that were recorded.
    """
    found: set[int] = set()
    todo = [value for site in sites for value in reference.sites[site].inputs]
    while todo:
        value = reference.values[todo.pop()]
        if not value.constant or value.index in inputs or value.site is None or value.site in found:
            continue
        site = reference.sites[value.site]
        if site.replay is not None and site.inputs and only_moves(site.op):
            found.add(value.site)
            todo += site.inputs
    return found


def _replay(
    graph: fx.Graph,
    root: nn.Module,
    call: tuple[Site, Callable[[Any], Any]],
    node_of: Callable[[Operand], fx.Node],
    made: dict[int, fx.Node],
) -> None:
    site, spelled = call
    if site.replay is None:
        raise _NotReplayableError
    function = site.replay.function
    args, kwargs = tree_map_only(Operand, node_of, (site.replay.args, dict(site.replay.kwargs)))
    args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs))  # exporters run it there
    if any(isinstance(leaf, torch.ScriptObject) for leaf in tree_leaves((args, kwargs))):  # no code can spell it
        raise _NotReplayableError
    if isinstance(function, nn.Module):
        name = f"module_{site.index}"
        root.add_module(name, copy.deepcopy(function).cpu())  # the caller's stays in the mode that it is in
        node = graph.call_module(name, args, kwargs)
        count = 2
    else:
        node = graph.call_function(spelled(function), args, kwargs)
        count = len(function._schema.returns)  # noqa: SLF001
    if count == 1 and len(site.outputs) == 1 and not _returns_list(function):
        made[site.outputs[0]] = node
        return
    if isinstance(function, nn.RNNBase):
        made.update(_rnn_outputs(graph, node, site, function))
        return
    for position, value in enumerate(site.outputs):
        made[value] = graph.call_function(operator.getitem, (node, position))


def _for_exporters(function: Any) -> Any:
    return _RAISED.get(function) or out_of_place(function)


def out_of_place(function: Any) -> Any:
    """The operator that computes the same without writing to its operands: values are in single-assignment form."""
    name, _, overload = function.name().removeprefix("aten::").partition(".")
    if not name.endswith("_") or name.startswith("_"):
        return function
    return getattr(getattr(torch.ops.aten, name.rstrip("_"), None), overload or "default", function)


def _rnn_outputs(graph: fx.Graph, node: fx.Node, site: Site, module: nn.RNNBase) -> dict[int, fx.Node]:
    first = graph.call_function(operator.getitem, (node, 0))
    state = graph.call_function(operator.getitem, (node, 1))
    if not isinstance(module, nn.LSTM):
        return dict(zip(site.outputs, (first, state), strict=False))
    parts = [graph.call_function(operator.getitem, (state, i)) for i in range(2)]
    return dict(zip(site.outputs, (first, *parts), strict=False))


def _returns_list(function: Any) -> bool:
    returns: list[Any] = list(getattr(getattr(function, "_schema", None), "returns", ()))
    return bool(returns) and "List" in str(returns[0].type)


# Raised to the public function: below autograd torch calls names that exporters do not know.


def _batch_norm(x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Any, ...]:
    training, momentum, eps = rest[-3:]
    return (F.batch_norm(x, mean, var, weight, bias, training, momentum, eps),)


def _batch_norm_without_training(x: Any, weight: Any, bias: Any, mean: Any, var: Any, *rest: Any) -> tuple[Any, ...]:
    return (F.batch_norm(x, mean, var, weight, bias, False, *rest),)  # noqa: FBT003


def _layer_norm(x: Any, shape: Any, weight: Any, bias: Any, eps: float) -> tuple[Any, ...]:
    return (F.layer_norm(x, shape, weight, bias, eps),)


def _group_norm(x: Any, weight: Any, bias: Any, *sizes: Any) -> tuple[Any, ...]:
    groups, eps = sizes[-2:]  # behind batch, channels and area
    return (F.group_norm(x, groups, weight, bias, eps),)


def _softmax(x: Any, dim: int, _half_to_float: bool) -> Any:  # noqa: FBT001  torch's own signature
    return F.softmax(x, dim)


def _log_softmax(x: Any, dim: int, _half_to_float: bool) -> Any:  # noqa: FBT001  torch's own signature
    return F.log_softmax(x, dim)


def _attention(q: Any, k: Any, v: Any, dropout: float = 0.0, *flags: Any, **rest: Any) -> tuple[Any, ...]:
    del dropout
    causal = bool(flags[0]) if flags else bool(rest.get("is_causal"))
    mask, scale = rest.get("attn_mask"), rest.get("scale")
    k, v = _shared_heads(q, k, v)
    return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale),)


def _masked_attention(q: Any, k: Any, v: Any, mask: Any, *rest: Any, **more: Any) -> tuple[Any, ...]:
    """With a mask, whether sums are wanted (left out), and the dropout, as on CUDA."""
    return _attention(q, k, v, *rest[1:3], attn_mask=mask, **more)


def _math_attention(q: Any, k: Any, v: Any, mask: Any = None, *rest: Any, **more: Any) -> tuple[Any, ...]:
    causal = bool(rest[1]) if len(rest) > 1 else bool(more.get("is_causal"))
    k, v = _shared_heads(q, k, v)
    return (F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=more.get("scale")),)


def _shared_heads(q: Any, k: Any, v: Any) -> tuple[Any, Any]:
    """Keys and values for each head, where several heads share them (grouped-query attention)."""
    groups = q.shape[-3] // k.shape[-3] if q.ndim >= 4 else 1
    return (k, v) if groups == 1 else (k.repeat_interleave(groups, -3), v.repeat_interleave(groups, -3))


def _resized(mode: str) -> Callable[..., Any]:
    """The interpolation of a mode, by scale factors where the call had them and they give the size."""

    def resize(x: Any, size: Any, *rest: Any) -> Any:
        corners = rest[0] if mode != "nearest" and rest else None
        scales = [s for s in (rest[1:] if mode != "nearest" else rest) if s is not None]
        if scales and len(scales) == len(size):
            return F.interpolate(x, scale_factor=list(map(float, scales)), mode=mode, align_corners=corners)
        return F.interpolate(x, size=list(size), mode=mode, align_corners=corners)

    return resize


def _max_pool(dims: int) -> Callable[..., tuple[Any, ...]]:
    pool = {2: F.max_pool2d, 3: F.max_pool3d}[dims]

    def run(x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> tuple[Any, ...]:
        return (pool(x, kernel, list(stride) or None, padding, *rest),)

    return run


def _log_sigmoid(x: Any) -> tuple[Any, ...]:
    """``log(sigmoid(x)) = -softplus(-x)``; as exporters write it, it is -inf where the sigmoid underflows."""
    return (-F.softplus(-x),)


def _average_pool(dims: int) -> Callable[..., Any]:
    """Average pooling; ONNX has no divisor of one's own, so the average over the whole window is scaled to it."""
    pool = {2: F.avg_pool2d, 3: F.avg_pool3d}[dims]

    def run(x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *rest: Any) -> Any:
        given = [*rest, *[False, True, None][len(rest) :]]
        ceil, include, divisor = given[0], given[1], given[2]
        size = list(kernel) if len(kernel) == dims else list(kernel) * dims
        if divisor is None:
            return pool(x, size, list(stride) or None, padding, ceil, include)
        return pool(x, size, list(stride) or None, padding, ceil, True) * (math.prod(size) / divisor)  # noqa: FBT003

    return run


def _operators(table: Mapping[str, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    """By overload, for those that this torch has."""
    found = {}
    for name, function in table.items():
        packet, _, overload = name.partition(".")
        overloads = getattr(torch.ops.aten, packet, None)
        known = getattr(overloads, overload or "default", None) if overloads is not None else None
        if known is not None:
            found[known] = function
    return found


_RAISED = _operators(
    {
        "native_batch_norm": _batch_norm,
        "_native_batch_norm_legit": _batch_norm,
        "cudnn_batch_norm": _batch_norm,
        "miopen_batch_norm": _batch_norm,
        "_native_batch_norm_legit_no_training": _batch_norm_without_training,
        "native_layer_norm": _layer_norm,
        "native_group_norm": _group_norm,
        "_softmax": _softmax,
        "log_sigmoid_forward": _log_sigmoid,
        "avg_pool2d": _average_pool(2),
        "avg_pool3d": _average_pool(3),
        "_unsafe_view": lambda x, size: x.reshape(size),
        "_reshape_alias": lambda x, size, _stride: x.reshape(size),
        "_prelu_kernel": lambda x, weight: F.prelu(x, weight.reshape(-1)),
        "_adaptive_avg_pool2d": F.adaptive_avg_pool2d,
        "_adaptive_avg_pool3d": F.adaptive_avg_pool3d,
        "_to_copy": lambda x, dtype=None, **_: x.to(dtype or x.dtype),
        "_safe_softmax": lambda x, dim, *_: F.softmax(x, dim),
        "_log_softmax": _log_softmax,
        "_scaled_dot_product_flash_attention_for_cpu": _attention,
        "_scaled_dot_product_flash_attention": _attention,
        "_scaled_dot_product_efficient_attention": _masked_attention,
        "_scaled_dot_product_cudnn_attention": _masked_attention,
        "_scaled_dot_product_attention_math": _math_attention,
        "upsample_nearest1d": _resized("nearest"),
        "upsample_nearest2d": _resized("nearest"),
        "upsample_nearest3d": _resized("nearest"),
        "upsample_linear1d": _resized("linear"),
        "upsample_bilinear2d": _resized("bilinear"),
        "upsample_bicubic2d": _resized("bicubic"),
        "upsample_trilinear3d": _resized("trilinear"),
        "max_pool2d_with_indices": _max_pool(2),
        "max_pool3d_with_indices": _max_pool(3),
    }
)
