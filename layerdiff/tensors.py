"""Torch tensors as arrays, and the tensors inside nested arguments and results."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

if TYPE_CHECKING:
    import numpy as np

# torch dtypes that numpy lacks are widened without loss.
_WIDENED = {torch.bfloat16: torch.float32, torch.complex32: torch.complex64} | {
    getattr(torch, name): torch.float32
    for name in ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
}

LEAVES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})
"""Arguments of operators that hold no tensor."""


def has_numbers(tensor: torch.Tensor) -> bool:
    """Whether a tensor can be an array; sparse, nested and meta tensors cannot."""
    return tensor.layout is torch.strided and tensor.device.type != "meta" and not tensor.is_nested


def to_array(tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """A copy of a tensor as an array; None for what has no dense numbers (sparse, nested, meta).

    Complex numbers become pairs of real ones along a new last axis, which is how ONNX graphs hold them.
    """
    array = as_array(tensor)
    return None if array is None else array.copy()


def as_array(tensor: torch.Tensor) -> np.ndarray[Any, Any] | None:
    """A tensor as an array that may share its memory, else as `to_array` gives it."""
    if not has_numbers(tensor):
        return None
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    tensor = tensor.detach().resolve_conj().resolve_neg()
    tensor = tensor.to(_WIDENED.get(tensor.dtype, tensor.dtype))
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    array: np.ndarray[Any, Any] = tensor.cpu().numpy()
    return array


def named_tensors(tree: Any) -> dict[str, torch.Tensor]:
    """Every tensor in nested tuples, lists, dicts and dataclasses, under its path such as ``0`` or ``boxes.1``."""
    if isinstance(tree, torch.Tensor):
        return {"": tree}
    leaves, _ = tree_flatten_with_path(tree)
    found: dict[str, torch.Tensor] = {}
    for path, leaf in leaves:
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", key)))) for key in path)
        if isinstance(leaf, torch.Tensor):
            found[name] = leaf
        elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            inner = {f.name: getattr(leaf, f.name) for f in dataclasses.fields(leaf)}
            found |= {".".join(filter(None, (name, key))): tensor for key, tensor in named_tensors(inner).items()}
    return found


def tensors_in(tree: Any) -> list[torch.Tensor]:
    """The tensors among the leaves of an argument list, in order."""
    found: list[torch.Tensor] = []
    _gather(tree, found)
    return found


def _gather(tree: Any, found: list[torch.Tensor]) -> None:
    """Add the tensors of a tree; torch's own walk of it, which knows every container, takes ten times as long."""
    if isinstance(tree, torch.Tensor):
        found.append(tree)
    elif type(tree) in (tuple, list):
        for part in tree:
            _gather(part, found)
    elif type(tree) not in LEAVES:
        found += [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage_of(tensor: torch.Tensor) -> int:
    """The identity of the memory that a tensor and its views share."""
    try:
        return int(tensor.untyped_storage()._cdata)  # noqa: SLF001  the identity of the memory, not its address
    except (NotImplementedError, RuntimeError):
        return id(tensor)
