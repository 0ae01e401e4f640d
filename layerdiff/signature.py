"""The arguments of a module's forward."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


def signature_of(module: nn.Module) -> inspect.Signature:
    """The signature of forward; a ScriptModule's is read from its schema."""
    try:
        return inspect.signature(module.forward)
    except ValueError:
        schema: Any = getattr(module.forward, "schema", None)
        if schema is None:
            raise
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        empty = inspect.Parameter.empty
        return inspect.Signature(
            [
                inspect.Parameter(a.name, kind, default=a.default_value if a.has_default_value() else empty)
                for a in schema.arguments[1:]  # the first is the module itself
            ]
        )
