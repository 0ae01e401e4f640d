"""A device made of Python: its tensors are on "toy:0", and operators that meet one of the CPU's refuse, as CUDA does.

Only what a trace does to a model on a GPU can be tested with it: where tensors go, not what a GPU computes. Views do
not share memory there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_flatten, tree_map_only

try:
    from torch.utils.backend_registration import _DummyBackendModule, _DummyPrivateUse1Hook
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as _set_up
except ImportError:  # an older torch
    _DummyBackendModule, _DummyPrivateUse1Hook, _set_up = object, object, None

HERE = _set_up is not None
# What takes operands of several devices, in torch, too.
_ANYWHERE = ("aten.copy_", "aten._to_copy")
_kept: list[torch.library.Library] = []


class _Unasked:
    """Nobody is given the device who does not ask for it: other tests run in this process."""

    def is_available(self) -> bool:
        return False


class _Module(_Unasked, _DummyBackendModule):
    pass


class _Hook(_Unasked, _DummyPrivateUse1Hook):
    pass


def device() -> torch.device:
    """The device, which torch is told of once in a process."""
    if not _kept:
        _set_up("toy", _Module(), _Hook())
        _kept.append(torch.library.Library("_", "IMPL"))
        _kept[0].fallback(_made_there, "PrivateUse1")
    return torch.device("toy:0")


class ToyTensor(torch.Tensor):
    """A tensor whose numbers are on the CPU, and that says that it is elsewhere."""

    numbers: torch.Tensor

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> ToyTensor:  # noqa: PYI034
        made = torch.Tensor._make_wrapper_subclass(
            cls, numbers.shape, strides=numbers.stride(), dtype=numbers.dtype, device=device()
        )
        made.numbers = numbers
        return made

    def __init__(self, numbers: torch.Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    bound = (args[0], *args[2:]) if str(func).startswith("aten.index") else args  # positions may be anywhere
    leaves = tree_flatten((bound, kwargs))[0]
    here = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, ToyTensor) and leaf.ndim]
    if here and not str(func).startswith(_ANYWHERE) and any(isinstance(leaf, ToyTensor) for leaf in leaves):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found toy:0 and cpu, in {func}")
    wanted = next((leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, torch.device)), device())
    plain = tree_map_only(ToyTensor, lambda tensor: tensor.numbers, (args, kwargs))
    given, named = tree_map_only(torch.device, lambda _: torch.device("cpu"), plain)
    made = _lstm_cell(*given) if str(func) == "aten._thnn_fused_lstm_cell.default" else func(*given, **named)
    if func._schema.is_mutable and isinstance(args[0], torch.Tensor):
        return args[0]
    if wanted.type != "toy":
        return made.clone() if made is given[0] else made
    return tree_map_only(torch.Tensor, ToyTensor, made)


def _lstm_cell(x: torch.Tensor, h: torch.Tensor, c: torch.Tensor, *biases: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What torch calls on every device but the CPU."""
    gates = x + h + sum(biases)
    i, f, g, o = gates.chunk(4, 1)
    cell = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell, gates


def _made_there(func: Any, *args: Any, **kwargs: Any) -> Any:
    return _run(func, args, kwargs)


def moved_there(model: nn.Module) -> nn.Module:
    """The model, its parameters and buffers on the device."""
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[name] = nn.Parameter(ToyTensor(parameter.detach()), requires_grad=False)
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else ToyTensor(buffer)
    return model
