"""What one call of a torch operator is, by the operator's own schema: arguments, operands, what it writes to."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import tree_map_only

from layerdiff.model import Operand
from layerdiff.tensors import LEAVES, tensors_in

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


@lru_cache(maxsize=1024)
def is_composite(func: Any) -> bool:
    """Whether an operator is only a name for others; torch takes it apart before a dispatch mode sees it, as a rule."""
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"))  # noqa: SLF001


def arguments_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """What an operator was called with besides tensors, by the argument names of its schema."""
    given = dict(zip(_argument_names(func), args, strict=False)) | kwargs
    return {name: value for name, value in given.items() if not tensors_in(value) and value is not None}


@lru_cache(maxsize=1024)
def _argument_names(func: Any) -> tuple[str, ...]:
    return tuple(argument.name for argument in func._schema.arguments)  # noqa: SLF001


def leaves_memory_unset(func: Any) -> bool:
    """Whether an operator gives memory that nobody has written to, which is no value."""
    return str(func).removeprefix("aten.").startswith(("empty", "new_empty"))


def template_of(call: tuple[Any, Any], reads: Sequence[int]) -> tuple[Any, Any]:
    """The arguments of a call with every tensor replaced by the value that it held."""
    values = iter(reads)
    args, kwargs = _with_operands(call, values)
    return args, kwargs


def _with_operands(tree: Any, values: Iterator[int]) -> Any:
    """A tree with the next values for its tensors; torch walks what is neither a plain sequence nor a dict."""
    if isinstance(tree, torch.Tensor):
        return Operand(next(values))
    kind = type(tree)
    if kind in LEAVES:
        return tree
    if kind is tuple or kind is list:
        return kind(_with_operands(part, values) for part in tree)
    if kind is dict:
        return {name: _with_operands(part, values) for name, part in tree.items()}
    return tree_map_only(torch.Tensor, lambda _: Operand(next(values)), tree)


def mutated_operands(func: Any, operands: list[torch.Tensor]) -> list[torch.Tensor]:
    """The operands that an operator writes to, by its schema (``self`` comes first in every in-place operator)."""
    written = sum(1 for argument in func._schema.arguments if argument.alias_info and argument.alias_info.is_write)  # noqa: SLF001
    first_is_self = bool(func._schema.arguments) and func._schema.arguments[0].alias_info is not None  # noqa: SLF001
    return operands[:1] if first_is_self else operands[-written:]
