"""Leave a model, and torch, as they were."""

from __future__ import annotations

import random
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from layerdiff.alone import ALONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restore buffers, train/eval flags and every random state on exit, also after an exception.

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
            for buffer, content in contents:
                # What was made in inference mode can be written to there only.
                with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
                    buffer.copy_(content)


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
