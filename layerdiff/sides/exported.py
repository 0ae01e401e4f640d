"""An ExportedProgram as the module it was made from.

`torch.export.unflatten` gives the hierarchy of modules back, under the qualified names of the original. Where it fails,
the flat module of the program runs instead, and every operator belongs to the root.
"""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch

from layerdiff.alone import ALONE
from layerdiff.errors import InputError

if TYPE_CHECKING:
    from torch import nn


def module_of(program: torch.export.ExportedProgram) -> tuple[nn.Module, tuple[str, ...]]:
    """A module that runs an exported program, named as the original was; and what a reader must know about it.

    Raises
    ------
    InputError
        The program cannot be run as a module.

    """
    with ALONE, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals here
        try:
            module: Any = torch.export.unflatten(program)
            notes: tuple[str, ...] = ()
        except Exception as error:  # noqa: BLE001  unflatten raises whatever its passes trip over; ep.module() needs none
            module = _flat(program, error)
            why = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'}"
            notes = (f"torch.export.unflatten could not rebuild the modules ({why}): all operators belong to the root",)
    _give_types(module, program)
    _give_signature(module, program)
    return module, notes


def _flat(program: torch.export.ExportedProgram, cause: Exception) -> nn.Module:
    try:
        return program.module()
    except Exception as error:
        raise InputError(
            f"ExportedProgram: cannot be run as a module ({type(error).__name__}: {error}); unflatten gave "
            f"{type(cause).__name__}. Pass the module that was exported instead"
        ) from error


def _give_types(module: nn.Module, program: torch.export.ExportedProgram) -> None:
    """Write down the class that each rebuilt module stands for; the recorder reads it, as it does a ScriptModule's."""
    types: dict[str, str] = {}
    for node in program.graph.nodes:
        for path, kind in node.meta.get("nn_module_stack", {}).values():
            name = kind if isinstance(kind, str) else kind.__name__
            types.setdefault(path, name.rpartition(".")[2])
    for path, inner in module.named_modules(remove_duplicate=False):
        inner.__dict__["original_name"] = types.get(path, type(inner).__name__)


def _give_signature(module: Any, program: torch.export.ExportedProgram) -> None:
    """Let forward name its arguments as the original did, and call the program the way it was exported."""
    signature = program.module_call_graph[0].signature
    names = list(getattr(signature, "forward_arg_names", None) or program.graph_signature.user_inputs)
    names = [str(name) for name in names]
    in_spec = program.call_spec.in_spec
    positional = in_spec.child(0).num_children if in_spec is not None else len(names)
    if len(names) != positional + (in_spec.child(1).num_children if in_spec is not None else 0):
        return  # *args: the program keeps its own (*args, **kwargs)
    call = module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        given = shape.bind(*args, **kwargs).arguments
        return call(*(given[n] for n in names[:positional]), **{n: given[n] for n in names[positional:]})

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    shape = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    forward.__signature__ = shape  # type: ignore[attr-defined]
    module.forward = forward
