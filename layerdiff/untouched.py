"""Leave a model, and torch, as they were."""

from __future__ import annotations

import random
import sys
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from layerdiff.alone import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore buffers, train/eval flags, plain attributes and every random state on exit, also after an exception.

    No other thread is in such a block at the same time.
    """
    with ALONE, _restored(model):
        yield


@contextmanager
def _restored(model: nn.Module) -> Iterator[None]:
    modules = list(model.modules())
    flags = [module.training for module in modules]
    buffers = [(module, dict(module._buffers.items())) for module in modules]  # noqa: SLF001  the registry itself is restored
    contents = [(b, b.detach().clone()) for _, named in buffers for b in named.values() if b is not None]
    attributes = [(module, _Attributes(module)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    with random_states_kept():
        try:
            yield
        finally:
            for module, training in zip(modules, flags, strict=True):
                module.training = training
            for module, named in buffers:
                if isinstance(module, torch.jit.ScriptModule):  # its registry is fixed
                    continue
                module._buffers.clear()  # noqa: SLF001
                module._buffers.update(named)  # noqa: SLF001
            for module, own in attributes:
                own.put_back(module)
            for buffer, content in contents:
                _write_back(buffer, content)


def _write_back(tensor: torch.Tensor, content: torch.Tensor) -> None:
    """Give a tensor its numbers again; one that has them is left alone, as a graph for gradients may need it so."""
    try:
        if torch.equal(tensor, content):
            return
    except (NotImplementedError, RuntimeError):  # some layouts cannot be compared
        pass
    # What was made in inference mode can be written to there only.
    with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
        tensor.copy_(content)


class _Attributes:
    """What a module keeps from call to call besides buffers: counters, hidden states, lists of what it has seen."""

    def __init__(self, module: nn.Module) -> None:
        own = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
        self._values = own
        self._tensors = [(v, v.detach().clone()) for v in own.values() if isinstance(v, torch.Tensor)]
        self._lists = [(v, list(v)) for v in own.values() if isinstance(v, (list, deque))]
        self._others = [(v, v.copy()) for v in own.values() if isinstance(v, (dict, set))]

    def put_back(self, module: nn.Module) -> None:
        """Give the module the attributes that it had, with what was in them."""
        now = vars(module)
        for name in set(now) - set(self._values) - _OF_EVERY_MODULE:
            del now[name]
        now.update(self._values)
        for tensor, content in self._tensors:
            _write_back(tensor, content)
        for items, before in self._lists:
            if len(items) != len(before) or any(one is not other for one, other in zip(items, before, strict=True)):
                items.clear()
                items.extend(before)
        for held, kept in self._others:
            held.clear()
            held.update(kept)


_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Restore every random state on exit."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002  a model may use the old state
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002


@contextmanager
def other_seeds() -> Iterator[None]:
    """Draw other numbers at random; every random state is as before on exit."""
    with ALONE, random_states_kept():
        torch.manual_seed(torch.initial_seed() + 1)
        random.seed(random.getrandbits(32))
        np.random.seed(np.random.randint(1 << 31))  # noqa: NPY002  a model may use the old state
        yield


@contextmanager
def inner_modules_run() -> Iterator[None]:
    """Turn off the fused inference path of nn.TransformerEncoderLayer, which calls none of its submodules."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


def compiler_is_loaded() -> bool:
    """Whether anything in this process has asked for torch's compiler."""
    return "torch._dynamo" in sys.modules


def forget_compiled() -> None:
    """Let torch's compiler forget all that it has seen."""
    torch.compiler.reset()


@contextmanager
def nothing_is_compiled() -> Iterator[None]:
    """Let what torch.compile wraps run as it is written, where the compiler is loaded.

    Control flow operators compile their bodies on their own, and a compiler that sees a frame under a dispatch mode
    remembers to skip it: a later torch.export of the same model would fail.
    """
    set_stance = getattr(torch.compiler, "set_stance", None)  # since torch 2.6
    if set_stance is None or not compiler_is_loaded():
        yield
        return
    with set_stance("force_eager"):
        yield


@contextmanager
def uncompiled(model: nn.Module) -> Iterator[None]:
    """Run what ``Module.compile`` compiled in place as it was before."""
    compiled = [(m, m._compiled_call_impl) for m in model.modules() if getattr(m, "_compiled_call_impl", None)]  # noqa: SLF001
    try:
        for module, _ in compiled:
            module._compiled_call_impl = None  # noqa: SLF001
        yield
    finally:
        for module, call in compiled:
            module._compiled_call_impl = call  # noqa: SLF001
