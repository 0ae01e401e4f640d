"""Which modules and seams a healthy model runs through, and who reads what whom."""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

Key = tuple[int, int]
"""Identity and version of a tensor: an in-place activation gives the same object in a later version."""


@dataclass(frozen=True)
class Call:
    """One call of a module, or of a seam: a small method of the module's own forward."""

    path: str
    seam: str
    read: frozenset[Key]
    written: frozenset[Key]
    operands: tuple[frozenset[Key], ...]
    peak: float
    floats_in: bool
    floats_out: bool
    order: int


@dataclass(frozen=True)
class Operator:
    """One torch function in the own forward of a module, or in a seam of it."""

    path: str
    seam: str
    read: frozenset[Key]
    written: frozenset[Key]


@dataclass(frozen=True)
class Survey:
    """The calls of one healthy run, in the order in which they began.

    A fault is looked for no further than `focus`, the path of the module to stay in, and in the modules `among` alone,
    where that is given.
    """

    calls: tuple[Call, ...]
    operators: tuple[Operator, ...] = field(repr=False)
    results: frozenset[Key]
    canonical: dict[str, str] = field(repr=False)
    inputs: tuple[Tensor, ...] = field(repr=False)
    focus: str = ""
    among: frozenset[str] | None = None

    def paths(self) -> list[str]:
        """The module paths in the focus that ran, each once, in order of first call."""
        return list(dict.fromkeys(call.path for call in self._focused() if not call.seam))

    def seams(self, name: str) -> list[str]:
        """The paths of the modules in the focus that ran this seam."""
        return list(dict.fromkeys(call.path for call in self._focused() if call.seam == name))

    def repeated(self) -> dict[str, int]:
        """How often the modules ran that ran more than once; not those that did because one around them did."""
        times = {path: len(self.of(path)) for path in self.paths()}
        often = {path: number for path, number in times.items() if number > 1}
        return {path: n for path, n in often.items() if not any(_encloses(other, path) for other in often)}

    def focused(self, path: str) -> Survey:
        return dataclasses.replace(self, focus=path)

    def restricted(self, paths: Iterable[str]) -> Survey:
        return dataclasses.replace(self, among=frozenset(paths))

    def leaves(self) -> list[str]:
        """The modules that call no other and that the result depends on, in order of first call."""
        live = self._live()
        paths = self.paths()
        inner = [path for path in paths if not any(_encloses(path, other) for other in paths)]
        return [path for path in inner if any(call.written & live for call in self.of(path))]

    def _live(self) -> frozenset[Key]:
        """The tensors that the result was computed from."""
        live = set(self.results)
        for operator in reversed(self.operators):
            if operator.written & live:
                live |= operator.read
        return frozenset(live)

    def narrowed(self, path: str, number: int) -> Survey:
        """The same run, but of this module only one call, counted from 0, and that in focus."""
        starts = [*(call.order for call in self.of(path)), math.inf]
        calls = tuple(
            call
            for call in self.calls
            if not within(path, call.path) or starts[number] <= call.order < starts[number + 1]
        )
        return dataclasses.replace(self, calls=calls, focus=path)

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

    def sources(self, path: str, seam: str = "", operand: int = 0) -> list[str]:
        """The modules that an operand of the first call comes from, if that call alone reads it.

        That is the deepest module that gives it, and the one in whose own forward the operator is that makes it.
        """
        value = self.of(path, seam)[0].operands[operand]
        if value & self.results or any(op.read & value and not _part(op, path, seam) for op in self.operators):
            return []
        makers = [op.path for op in self.operators if op.written & value and not op.read & value]
        givers = [call.path for call in self.calls if call.written & value and not call.seam]
        givers = [giver for giver in givers if not any(_encloses(giver, other) for other in givers)]
        return list(dict.fromkeys([*makers, *givers]))

    def _focused(self) -> Iterator[Call]:
        among = self.among
        return (c for c in self.calls if within(self.focus, c.path) and (among is None or c.path in among))


def within(outer: str, path: str) -> bool:
    """Whether the path is that module's own or one below it."""
    return path == outer or _encloses(outer, path)


def _encloses(outer: str, inner: str) -> bool:
    return outer != inner and (not outer or inner.startswith(f"{outer}."))


def _part(operator: Operator, path: str, seam: str) -> bool:
    """Whether the operator runs in that module, or in that seam of it."""
    return (operator.path, operator.seam) == (path, seam) if seam else within(path, operator.path)


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
    with torch.no_grad(), watcher:
        result = watched(*(x.clone() for x in inputs))
    first_names = {id(module): name for name, module in watched.named_modules()}
    aliases = watched.named_modules(remove_duplicate=False)
    calls = tuple(sorted(watcher.calls, key=lambda call: call.order))
    canonical = {path: first_names[id(module)] for path, module in aliases}
    return Survey(calls, tuple(watcher.operators), watcher.keys(result), canonical, inputs)


class _Watcher(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self.operators: list[Operator] = []
        self._seams: list[tuple[int, str]] = []  # each with the depth of the module it belongs to
        self._stack: list[tuple[nn.Module, str, int, tuple[frozenset[Key], ...]]] = []
        self._alive: list[Tensor] = []  # so that no identity is used twice
        self._begun = 0

    def enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        path = reached(*self._stack[-1][:2], module) if self._stack else ""
        self._stack.append((module, path, self._tick(), self._operands(args)))

    def leave(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        _, path, order, operands = self._stack.pop()
        self._note(_Event(path, "", (args, kwargs), output, order), (*operands, *self._operands(kwargs.values())))

    def watched_seam(self, module: nn.Module, name: str) -> Callable[..., Any]:
        original = getattr(module, name)

        def call(*args: Any) -> Any:
            order, operands = self._tick(), self._operands(args)
            self._seams.append((len(self._stack), name))
            output = original(*args)
            self._seams.pop()
            self._note(_Event(self._stack[-1][1], name, args, output, order), operands)
            return output

        return call

    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        read = self.keys((args, kwargs))
        output = func(*args, **(kwargs or {}))
        written = self.keys(output)
        if self._stack and written - read:  # not a look at a shape, and not x.contiguous() of what is
            depth, seam = self._seams[-1] if self._seams else (0, "")
            seam = seam if depth == len(self._stack) else ""
            self.operators.append(Operator(self._stack[-1][1], seam, read, written))
        return output

    def _note(self, event: _Event, operands: tuple[frozenset[Key], ...]) -> None:
        outputs = list(tensors(event.output))
        with torch._C.DisableTorchFunction():  # noqa: SLF001  what is measured here is no operator of the model
            peak = max((float(x.abs().max()) for x in outputs if x.is_floating_point() and x.numel()), default=0.0)
        self.calls.append(
            Call(
                event.path,
                event.seam,
                frozenset[Key]().union(*operands),
                self.keys(event.output),
                operands,
                peak,
                any(x.is_floating_point() for x in tensors(event.arguments)),
                isinstance(event.output, Tensor) and event.output.is_floating_point(),
                event.order,
            )
        )

    def _operands(self, values: Iterable[Any]) -> tuple[frozenset[Key], ...]:
        return tuple(self.keys(value) for value in values)

    def _tick(self) -> int:
        self._begun += 1
        return self._begun

    def keys(self, value: Any) -> frozenset[Key]:
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
