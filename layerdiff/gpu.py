"""Operators that torch has for GPUs only, computed by plain ones: on the CPU, and attention in double precision."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from layerdiff.operators import base_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_NORMS = frozenset({"aten.cudnn_batch_norm.default", "aten.miopen_batch_norm.default"})


def plainly(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """The first results of such an operator; None for any other, and where its own kernel can compute them."""
    if not args or not isinstance(args[0], torch.Tensor):
        return None
    on_the_cpu, wide = args[0].device.type == "cpu", args[0].dtype is torch.float64
    if on_the_cpu and str(func) in _NORMS:
        return (torch.ops.aten.native_batch_norm.default(*args, **kwargs)[0],)  # the same arguments in the same order
    if (on_the_cpu or wide) and base_name(str(func)) == "scaled_dot_product_attention":
        return (_attention(func, args, kwargs),)
    return None


def _attention(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> torch.Tensor:
    names = [argument.name for argument in func._schema.arguments]  # noqa: SLF001
    given = dict(zip(names, args, strict=False)) | dict(kwargs)
    query, key, value = args[:3]
    causal, scale, mask = bool(given.get("is_causal")), given.get("scale"), given.get("attn_bias")
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale)
