"""Recorded torch operators as nodes of a graph: their arguments as attributes, in words that can be read back.

So two recordings compare as two ONNX graphs do, and a node whose arguments or operator were changed can still be run.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_leaves

from layerdiff.errors import BackendError
from layerdiff.model import Operand
from layerdiff.sides import steps

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.model import Site

DOMAIN, STEP, OPERANDS = "layerdiff.torch", "recorded_step", "operands"  # names that no argument has
# Where a result is made and how it lies in memory changes no number.
_PLACEMENT = frozenset({"device", "layout", "pin_memory", "memory_format", "generator", "non_blocking"})


def attributes_of(site: Site) -> dict[str, str]:
    """The arguments of a recorded operator besides tensors, and which of its arguments its operands are."""
    if site.replay is None or not isinstance(site.replay.function, torch._ops.OpOverload):  # noqa: SLF001
        return {}
    schema = site.replay.function._schema  # noqa: SLF001
    given = dict(zip((a.name for a in schema.arguments), site.replay.args, strict=False)) | dict(site.replay.kwargs)
    found, operands = {}, []
    for name, value in given.items():
        count = sum(isinstance(leaf, Operand) for leaf in tree_leaves(value))
        operands += [name] * count
        if not count and name not in _PLACEMENT and value is not None:
            found[name] = repr(value)
    return {**found, OPERANDS: ",".join(operands)}


def run(op: str, attributes: Mapping[str, str], tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The results of an operator that no step was recorded for.

    Raises
    ------
    BackendError
        The operator is none of torch, or what it was called with cannot be read back.

    """
    function = _function(op)
    names = attributes[OPERANDS].split(",") if attributes.get(OPERANDS) else []
    if function is None or len(names) != len(tensors):
        raise BackendError(f"torch cannot run {op} with {len(tensors)} operands from its name alone")
    tensors = _together(tensors)
    given: dict[str, Any] = {n: _read(text) for n, text in attributes.items() if n not in (STEP, OPERANDS)}
    for argument in function._schema.arguments:  # noqa: SLF001
        own = [t for name, t in zip(names, tensors, strict=True) if name == argument.name]
        if own:
            given[argument.name] = own if "List" in str(argument.type) else own[0]
    args, kwargs = _call(function, given)
    return steps.operator(function, args, kwargs, (), None).run(tensors)


def _together(tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
    """Tensors on one device: what was put in from outside is on the CPU."""
    device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), None)
    return tensors if device is None else [tensor.to(device) for tensor in tensors]


def _call(function: Any, given: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    arguments = function._schema.arguments  # noqa: SLF001
    positional = [a for a in arguments if not a.kwarg_only]
    args = [given.get(a.name, a.default_value if a.has_default_value() else None) for a in positional]
    return args, {a.name: given[a.name] for a in arguments if a.kwarg_only and a.name in given}


def _function(op: str) -> Any:
    namespace, _, rest = op.partition(".")
    packet, _, overload = rest.partition(".")
    found = getattr(getattr(torch.ops, namespace, None), packet, None) if packet and namespace != "nn" else None
    return None if found is None else getattr(found, overload or "default", None)


def _read(text: str) -> Any:
    if text.startswith("torch."):
        return getattr(torch, text.removeprefix("torch."))
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError) as error:
        raise BackendError(f"torch cannot take {text} as an argument") from error
