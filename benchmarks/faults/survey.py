"""Which modules and seams a healthy model runs through, and who reads what whom."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Key = tuple[int, int]
"""Identity and version of a tensor: an in-place activation gives the same object in a later version."""


@dataclass(frozen=True)
class Call:
    """One call of a module, or of a seam: a small method of the module's own forward."""

    path: str
    seam: str
    read: frozenset[Key]
    written: frozenset[Key]
    peak: float
    floats_in: bool
    floats_out: bool
    order: int


@dataclass(frozen=True)
class Survey:
    """The calls of one healthy run, in the order in which they began."""

    calls: tuple[Call, ...]
    canonical: dict[str, str] = field(repr=False)

    def paths(self) -> list[str]:
        """The module paths that ran, each once, in order of first call."""
        return list(dict.fromkeys(call.path for call in self.calls if not call.seam))

    def seams(self, name: str) -> list[str]:
        """The paths of the modules that ran this seam."""
        return list(dict.fromkeys(call.path for call in self.calls if call.seam == name))

    def of(self, path: str, seam: str = "") -> list[Call]:
        return [call for call in self.calls if call.path == path and call.seam == seam]

    def consumers(self, path: str, seam: str = "") -> list[Call]:
        """The deepest calls that read what the first call wrote; a seam stands for its module's own forward."""
        written = frozenset[Key]().union(*(call.written for call in self.of(path, seam)[:1]))
        readers = [call for call in self.calls if call.read & written and (call.path, call.seam) != (path, seam)]
        readers = [call for call in readers if not _encloses(call.path, path)]
        return [call for call in readers if not any(_encloses(call.path, other.path) for other in readers)]

    def producers(self, path: str, seam: str = "") -> list[Call]:
        """The deepest calls that wrote what the first call reads."""
        read = frozenset[Key]().union(*(call.read for call in self.of(path, seam)[:1]))
        writers = [call for call in self.calls if call.written & read and (call.path, call.seam) != (path, seam)]
        writers = [call for call in writers if not _encloses(call.path, path)]
        return [call for call in writers if not any(_encloses(call.path, other.path) for other in writers)]


def _encloses(outer: str, inner: str) -> bool:
    return outer != inner and (not outer or inner.startswith(f"{outer}."))


def survey(model: nn.Module, inputs: tuple[Tensor, ...], seams: frozenset[str]) -> Survey:
    """The calls that a copy of the model makes on the inputs."""
    watched = copy.deepcopy(model)
    watcher = _Watcher()
    for module in watched.modules():
        module.register_forward_pre_hook(watcher.enter)
        module.register_forward_hook(watcher.leave, with_kwargs=True)
        for name in seams:
            if hasattr(type(module), name):
                setattr(module, name, watcher.watched_seam(module, name))
    with torch.no_grad():
        watched(*(x.clone() for x in inputs))
    first_names = {id(module): name for name, module in watched.named_modules()}
    aliases = watched.named_modules(remove_duplicate=False)
    calls = tuple(sorted(watcher.calls, key=lambda call: call.order))
    return Survey(calls, {path: first_names[id(module)] for path, module in aliases})


class _Watcher:
    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._stack: list[tuple[nn.Module, str, int, frozenset[Key]]] = []
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._begun = 0

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        path = reached(*self._stack[-1][:2], module) if self._stack else ""
        self._stack.append((module, path, self._tick(), self._keys(args)))

    def leave(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        _, path, order, read = self._stack.pop()
        self._note(_Event(path, "", (args, kwargs), output, order), read | self._keys(kwargs))

    def watched_seam(self, module: nn.Module, name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def call(*args: Any) -> Any:
            order, read = self._tick(), self._keys(args)
            output = original(*args)
            self._note(_Event(self._stack[-1][1], name, args, output, order), read)
            return output

        return call

    def _note(self, event: _Event, read: frozenset[Key]) -> None:
        outputs = list(tensors(event.output))
        peak = max((float(x.abs().max()) for x in outputs if x.is_floating_point() and x.numel()), default=0.0)
        self.calls.append(
            Call(
                event.path,
                event.seam,
                read,
                self._keys(event.output),
                peak,
                any(x.is_floating_point() for x in tensors(event.arguments)),
                isinstance(event.output, Tensor) and event.output.is_floating_point(),
                event.order,
            )
        )

    def _tick(self) -> int:
        self._begun += 1
        return self._begun

    def _keys(self, value: Any) -> frozenset[Key]:
        found = list(tensors(value))
        self._alive.extend(found)
        return frozenset((id(x), x._version) for x in found)  # noqa: SLF001  the only witness of in-place changes


@dataclass(frozen=True)
class _Event:
    path: str
    seam: str
    arguments: Any
    output: Any
    order: int


def tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in arguments or outputs, however nested."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors(item)


def reached(caller: nn.Module, caller_path: str, module: nn.Module) -> str:
    """The path of a module that another one calls: the caller's, and where in it the module hangs."""
    names = [name for name, child in caller.named_modules(remove_duplicate=False) if child is module]
    if not names:
        raise LookupError(f"{type(module).__name__} was called by {caller_path!r}, which does not own it")
    name = min(names, key=lambda text: text.count("."))
    return f"{caller_path}.{name}" if caller_path else name
