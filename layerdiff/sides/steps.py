"""One recorded operator, ready to run again on other operands, without touching them."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from layerdiff.calls import leaves_memory_unset, mutated_operands
from layerdiff.tensors import named_tensors, tensors_in

RandomStates = tuple[torch.Tensor, list[torch.Tensor]]  # of the CPU, and of every GPU

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class Step:
    """What runs in place of a node: a function of the tensors that it reads (by value number), in that order."""

    run: Run
    reads: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where the elements of a tensor lie in its memory."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Geometry | None:
        """The geometry of a tensor; None for one without strides."""
        if tensor.layout is not torch.strided:
            return None
        return cls(tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), tensor.dtype)

    def positions(self) -> torch.Tensor:
        """The place in memory of every element, in their order."""
        return torch.arange(self.extent()).as_strided(self.size, self.stride, self.offset).reshape(-1)

    def extent(self) -> int:
        """How much memory, in elements, is needed to hold it."""
        return self.offset + 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True) if n)


@dataclass(frozen=True, slots=True)
class _Operand:
    """How an operator got a tensor: an injected value arrives as plain numbers and is put into that form."""

    dtype: torch.dtype
    device: torch.device
    format: torch.memory_format | None
    quantised: tuple[float, int] | None

    @classmethod
    def of(cls, tensor: torch.Tensor) -> _Operand:
        if tensor.is_quantized:
            per_tensor = tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric)
            scale = (tensor.q_scale(), tensor.q_zero_point()) if per_tensor else None
            return cls(tensor.dtype, tensor.device, None, scale)
        layout = None
        if tensor.layout is torch.strided:
            formats = (torch.contiguous_format, *((torch.channels_last,) if tensor.ndim == 4 else ()))
            layout = next((f for f in formats if tensor.is_contiguous(memory_format=f)), None)
        return cls(tensor.dtype, tensor.device, layout, None)

    def fitted(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.is_quantized or tensor.layout is not torch.strided:
            return tensor
        if self.quantised is not None:
            return torch.quantize_per_tensor(tensor.float(), *self.quantised, self.dtype)
        moved = tensor.to(device=self.device, dtype=self.dtype)
        channels_last = self.format is torch.channels_last and tensor.ndim == 4
        if self.format is None or (self.format is torch.channels_last and not channels_last):
            return moved
        return moved.contiguous(memory_format=self.format)


class _Call:
    """Arguments in which tensors are left open."""

    def __init__(self, args: Any, kwargs: Any) -> None:
        leaves, self._spec = tree_flatten((args, kwargs))
        self._places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]
        self._operands = [_Operand.of(leaves[i]) for i in self._places]
        self._leaves = [None if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]

    _spec: TreeSpec

    def filled(self, tensors: Sequence[torch.Tensor]) -> tuple[Any, Any, list[torch.Tensor]]:
        """Arguments, keyword arguments and the tensors among them."""
        leaves = list(self._leaves)
        fitted = [o.fitted(t) for o, t in zip(self._operands, tensors, strict=False)]
        for place, tensor in zip(self._places, fitted, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._spec)
        return args, kwargs, fitted


def operator(func: Any, args: Any, kwargs: Any, reads: tuple[int, ...], rng: RandomStates | None) -> Step:
    """An operator; one that writes to its operands gets copies, one that draws at random draws what it drew."""
    call = _Call(args, kwargs)
    # BatchNorm in train mode writes to its statistics, and its schema does not say so.
    secret = "batch_norm" in str(func)
    writes = func._schema.is_mutable or secret  # noqa: SLF001
    unset = leaves_memory_unset(func)

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with _random_state(rng):
            given, named, operands = call.filled([t.clone() for t in tensors] if writes else tensors)
            result = func(*given, **named)
        outputs = [torch.zeros_like(t) for t in tensors_in(result)] if unset else tensors_in(result)
        mutated = mutated_operands(func, operands) if func._schema.is_mutable else []  # noqa: SLF001
        return outputs + [t for t in mutated if all(t is not other for other in outputs)]

    return Step(run, reads)


def module(inner: nn.Module, args: Any, kwargs: Any, reads: tuple[int, ...], rng: RandomStates) -> Step:
    """A module that counts as one operator."""
    call = _Call(args, kwargs)

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        with _random_state(rng):
            given, named, _ = call.filled(tensors)
            return list(named_tensors(inner(*given, **named)).values())

    return Step(run, reads)


def update(reads: tuple[int, ...], old: Geometry | None, written: Sequence[Geometry | None]) -> Step:
    """What a tensor holds after other views of its memory were written to."""
    places = [_overlap(old, geometry) for geometry in written]

    def run(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        base = tensors[0].reshape(-1).clone()
        for place, tensor in zip(places, tensors[1:], strict=True):
            if place is None:
                raise RuntimeError("a view of another type was written to; what it changed cannot be traced")
            to, of = place
            base[to] = tensor.reshape(-1)[of].to(base)
        return [base.reshape(tensors[0].shape)]

    return Step(run, reads)


def cast(dtype: torch.dtype, read: int) -> Step:
    """A conversion of an input to the type that the candidate computes in."""
    return Step(lambda tensors: [tensors[0].to(dtype)], (read,))


def passed_on(read: int) -> Step:
    """Nothing but another name."""
    return Step(lambda tensors: [tensors[0]], (read,))


def _overlap(old: Geometry | None, written: Geometry | None) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Which elements of the one tensor are which of the other; None where their memory cannot be compared."""
    if old is None or written is None or old.dtype != written.dtype:
        return None
    holder = torch.full((max(old.extent(), written.extent()),), -1)
    source = written.positions()
    holder[source] = torch.arange(len(source))
    found = holder[old.positions()]
    to = torch.nonzero(found >= 0).reshape(-1)
    return to, found[to]


def random_states() -> RandomStates:
    """What the generators of the CPU and of every GPU in use will draw from."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def _restore(states: RandomStates) -> None:
    host, devices = states
    torch.set_rng_state(host)
    if devices:
        torch.cuda.set_rng_state_all(devices)


def _random_state(rng: RandomStates | None) -> Any:
    return nullcontext() if rng is None else _Forked(rng)


class _Forked:
    """Draw from a recorded state, and leave the present one alone."""

    def __init__(self, states: RandomStates) -> None:
        self._states = states

    def __enter__(self) -> None:
        self._before = random_states()
        _restore(self._states)

    def __exit__(self, *_: object) -> None:
        _restore(self._before)
