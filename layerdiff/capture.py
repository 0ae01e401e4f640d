"""Run a PyTorch module once and write down the dataflow graph of what it computed.

The only file that hooks torch. Module hooks tell which module runs, a dispatch mode sees every operator. Values are
copied when they are made: an in-place operator would overwrite them otherwise. An update through a view makes a new
version of every tensor that shares the memory, so the graph is in single-assignment form.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

from layerdiff.calls import arguments_of, is_composite, mutated_operands, template_of
from layerdiff.control_flow import STEP_BY_STEP
from layerdiff.errors import LayerdiffError, ReferenceFailedError
from layerdiff.fp32 import full_float32
from layerdiff.model import CONTAINER, Call, Operand, Reference, Replay, Site, Value
from layerdiff.shelf import Made
from layerdiff.signature import signature_of
from layerdiff.store import Store
from layerdiff.tensors import as_array, has_numbers, named_tensors, storage_of, tensors_in
from layerdiff.unset import UnsetMemory
from layerdiff.untouched import (
    compiler_is_loaded,
    forget_compiled,
    inner_modules_run,
    nothing_is_compiled,
    uncompiled,
    untouched,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy as np

    from layerdiff.fp32 import Setting
    from layerdiff.store import Held

# One ONNX node computes these whole, while torch takes them apart step by step: they are one site.
ATOMIC = frozenset({"RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell"})

R = TypeVar("R", bound="Recorder")


def capture(model: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any], store: Store | None = None) -> Reference:
    """The dataflow graph of one forward pass, its values kept in a store; the model is left exactly as it was.

    Raises
    ------
    ReferenceFailedError
        The forward pass raised; the model's own exception is the cause.

    """
    return record(lambda: Recorder(model, store), args, kwargs).reference()


def record(make: Callable[[], R], args: Sequence[Any], kwargs: Mapping[str, Any]) -> R:
    """A recorder that has seen one forward pass of its model.

    Loading torch's compiler takes longer than most models run, so that is left to a model that uses it; such a model is
    recorded once more, by then with the compiler told to leave everything as it is written.
    """
    if compiler_is_loaded():
        return _recorded(make(), args, kwargs)
    try:
        recorder = _recorded(make(), args, kwargs)
    except ReferenceFailedError:
        if not compiler_is_loaded():
            raise
    else:
        if not compiler_is_loaded():
            return recorder
    forget_compiled()
    return _recorded(make(), args, kwargs)


def _recorded(recorder: R, args: Sequence[Any], kwargs: Mapping[str, Any]) -> R:
    """The recorder, after one forward pass of its model."""
    model = recorder.model
    args, kwargs = tree_map_only(torch.Tensor, torch.clone, (tuple(args), dict(kwargs)))  # a model may write to them
    with ExitStack() as stack:
        stack.enter_context(untouched(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(full_float32(recorder.as_set))
        stack.enter_context(inner_modules_run())
        stack.enter_context(nothing_is_compiled())
        stack.enter_context(uncompiled(model))
        stack.enter_context(recorder.hooks())
        recorder.register_inputs(args, kwargs)
        stack.enter_context(recorder)
        try:
            output = model(*args, **kwargs)
            recorder.close_root(output)
        except LayerdiffError:
            raise
        except Exception as error:
            where = recorder.where() or "the root module"
            message = f"the reference model raised {type(error).__name__} in {where}: {error}"
            raise ReferenceFailedError(message) from error
    return recorder


@dataclasses.dataclass(slots=True)
class _OpenCall:
    """A module call that has begun and not ended."""

    index: int
    layer: str
    number: int
    type: str
    inputs: tuple[int, ...]
    replay: Replay | None  # only of a module that is one site
    reads: dict[int, None] = dataclasses.field(default_factory=dict)

    @property
    def atomic(self) -> bool:
        """Whether the operators inside are no sites of their own."""
        return self.replay is not None


class Recorder(TorchDispatchMode):
    """Sees every operator and every module call, and keeps a copy of every value."""

    as_set: tuple[Setting, ...] = ()
    """What torch may compute in a narrower format than float32; nothing, for the reference."""

    def __init__(self, model: nn.Module, store: Store | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.model = model
        self._store = store or Store()
        self._paths: dict[int, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(path)
        state = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
        self._parameters = {id(tensor): name for name, tensor in reversed(state)}
        self._state = dict(state)
        weights = (t for t in self._state.values() if isinstance(t, nn.Parameter) and t.device.type == "cpu")
        self._views_of_weights: dict[int, list[int]] = {storage_of(weight): [] for weight in weights}
        self._values: list[Value] = []
        self._sites: list[Site] = []
        self._calls: dict[int, Call] = {}
        self._stack: list[_OpenCall] = []
        self._counts: Counter[str] = Counter()
        self._version_of: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
        self._writes: dict[int, list[tuple[int, str, int]]] = {}
        self._memory = UnsetMemory()
        self._inputs: dict[str, int] = {}
        self._outputs: dict[str, int] = {}
        self._in_hook = False
        self._thread = get_ident()

    # What the twin of noise.py replaces.

    def execute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run one operator."""
        return func(*args, **kwargs)

    def keep(self, index: int, tensor: torch.Tensor) -> Held | None:
        """What is stored for a new value: a copy; a view of a weight is copied when the weight is written to."""
        array = as_array(tensor)
        if array is None:
            return None
        views = self._views_of_weights.get(storage_of(tensor))
        if views is None:
            return self._store.keep_copy(array)
        views.append(index)
        return self._store.refer_to(array)

    def _before_a_write(self, func: Any, operands: list[torch.Tensor]) -> None:
        """Copy the views of a weight that an operator is about to change."""
        for tensor in mutated_operands(func, operands) if func._schema.is_mutable else ():  # noqa: SLF001
            for index in self._views_of_weights.pop(storage_of(tensor), ()):
                value = self._values[index]
                assert value.array is not None
                self._values[index] = dataclasses.replace(value, held=self._store.keep_copy(value.array))

    # Operators.

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """No: it would load the compiler only to tell it so; see `record`."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if self._in_hook:
            return func(*args, **kwargs)
        if func is torch.ops.aten._local_scalar_dense.default and not isinstance(args[0], torch.Tensor):  # noqa: SLF001
            return args[0]  # TorchScript's own numbers arrive as numbers, which the operator does not take
        if isinstance(func, HigherOrderOperator):
            return self._control_flow(func, args, kwargs)
        if is_composite(func):  # where autograd is off altogether, as in a branch, torch leaves this to us
            with self:
                return func.decompose(*args, **kwargs)
        atomic = next((call for call in self._stack if call.atomic), None)
        operands = tensors_in((args, kwargs))
        self._before_a_write(func, operands)
        if atomic is not None:
            known = [t for t in operands if t in self._version_of or id(t) in self._parameters]
            atomic.reads.update(dict.fromkeys(self._read(t) for t in known))
            return self.execute(func, args, kwargs)
        reads = tuple(self._read(t) for t in operands)
        result = self.execute(func, args, kwargs)
        self._note_result(func, (args, kwargs), reads, result)
        return result

    def _control_flow(self, func: HigherOrderOperator, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run what torch.cond, while_loop and scan run, operator by operator; any other such operator as it is."""
        step_by_step = STEP_BY_STEP.get(func.name())
        if step_by_step is None:
            return func(*args, **kwargs)
        with self:
            return step_by_step(*args, **kwargs)

    def _note_result(self, func: Any, call: tuple[Any, Any], reads: tuple[int, ...], result: Any) -> None:
        op = str(func).removesuffix(".default")
        operands = tensors_in(call)
        constant = all(self._values[index].constant for index in reads)
        mutated = mutated_operands(func, operands) if func._schema.is_mutable else []  # noqa: SLF001
        outputs = tensors_in(result)
        outputs += [tensor for tensor in mutated if all(tensor is not other for other in outputs)]
        if not outputs:
            return
        storages = {storage_of(tensor) for tensor in operands}
        site = len(self._sites)
        for tensor in mutated:
            self._memory.write(tensor, operands[1] if op == "aten.copy_" else None)
        for tensor in outputs:
            if storage_of(tensor) not in storages:
                self._memory.made(op, tensor)
        indices = tuple(self._new_value(tensor, site, constant=constant) for tensor in outputs)
        replay = Replay(func, *template_of(call, reads))
        self._sites.append(Site(site, op, self._owner(), reads, indices, arguments_of(func, *call), replay))
        for tensor, index in zip(outputs, indices, strict=True):
            storage = storage_of(tensor)
            if any(tensor is other for other in mutated):
                self._writes.setdefault(storage, []).append((index, op, self._owner()))
            elif storage not in storages:
                self._writes.pop(storage, None)
            self._version_of[tensor] = (index, len(self._writes.get(storage, ())))

    def _read(self, tensor: torch.Tensor) -> int:
        """The value that a tensor holds now; a write through another view since it was made gives a new value."""
        if tensor not in self._version_of:
            name = self._parameters.get(id(tensor))
            index = self._new_value(tensor, None, parameter=name, constant=True)
            self._version_of[tensor] = (index, len(self._writes.get(storage_of(tensor), ())))
            return index
        index, version = self._version_of[tensor]
        writes = self._writes.get(storage_of(tensor), [])
        if version < len(writes):
            _, op, owner = writes[-1]
            site = len(self._sites)
            sources = (index, *(written for written, _, _ in writes[version:]))
            index = self._new_value(tensor, site, constant=False)
            self._sites.append(Site(site, op, owner, sources, (index,)))
            self._version_of[tensor] = (index, len(writes))
        return int(index)

    def _new_value(
        self,
        tensor: torch.Tensor,
        site: int | None,
        *,
        parameter: str | None = None,
        constant: bool,
    ) -> int:
        index = len(self._values)
        dtype = str(tensor.dtype).removeprefix("torch.")
        held = None if parameter or self._memory.reaches(tensor) else self.keep(index, tensor)
        shape = tuple(tensor.shape) + ((2,) if tensor.is_complex() else ())
        self._values.append(Value(index, shape, dtype, held, site, parameter, constant))
        return index

    def _owner(self) -> int:
        return self._stack[-1].index if self._stack else 0

    def where(self) -> str:
        """The module that was running, for an error text."""
        return self._stack[-1].layer if self._stack else ""

    # Modules.

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Hooks on every module, removed on exit."""
        handles = []
        try:
            for module in self.model.modules():
                if isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                    continue
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(self._exit))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def register_inputs(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Name the values that come from outside, by the arguments of forward, before anything runs."""
        try:
            given = signature_of(self.model).bind(*args, **kwargs).arguments
        except (TypeError, ValueError):  # forward says itself what it does not take
            given = {**{str(i): argument for i, argument in enumerate(args)}, **kwargs}
        for name, tensor in named_tensors(dict(given)).items():
            index = self._new_value(tensor, None, constant=False)
            self._version_of[tensor] = (index, 0)
            self._inputs[name] = index

    @contextmanager
    def _hook_body(self) -> Iterator[None]:
        """Operators that a hook needs for its own copies are not the model's."""
        self._in_hook = True
        try:
            yield
        finally:
            self._in_hook = False

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if get_ident() != self._thread:  # somebody else calls the model in the meantime
            return
        with self._hook_body():
            self._begin(module, args, kwargs)

    def _exit(self, module: nn.Module, args: Any, output: Any) -> None:
        del module, args
        if get_ident() != self._thread:
            return
        with self._hook_body():
            self._end(output)

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        layer = self._path(module)
        inside_atomic = any(call.atomic for call in self._stack)
        inputs = () if inside_atomic else tuple(self._read(t) for t in tensors_in((args, kwargs)))
        kind = type_of(module)
        known = isinstance(module, (nn.RNNBase, nn.RNNCellBase)) or (is_rebuilt(module) and kind in ATOMIC)
        replay = Replay(module, *template_of((args, kwargs), inputs)) if known and not inside_atomic else None
        # Calls are numbered as they begin, so that parents come before their children.
        index = self._counts.total()
        self._stack.append(_OpenCall(index, layer, self._counts[layer], kind, inputs, replay))
        self._counts[layer] += 1

    def _end(self, output: Any) -> None:
        call = self._stack.pop()
        outputs = named_tensors(output)
        if call.atomic:
            self._close_atomic(call, list(outputs.values()))
        inside_atomic = any(open_call.atomic for open_call in self._stack)
        values = {} if inside_atomic else {name: self._read(tensor) for name, tensor in outputs.items()}
        parent = self._stack[-1].index if self._stack else None
        self._calls[call.index] = Call(
            call.index, call.layer, call.number, call.type, parent, call.inputs, tuple(values.values())
        )
        if parent is None:
            self._outputs = self._apart(values, outputs)

    def _apart(self, values: Mapping[str, int], tensors: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """The outputs of the model, each a value of its own: a tensor can be returned twice, and so can a parameter."""
        found: dict[str, int] = {}
        for name, index in values.items():
            shared = index in found.values() or self._values[index].parameter is not None
            found[name] = self._alias(tensors[name], index) if shared else index
        return found

    def _alias(self, tensor: torch.Tensor, index: int) -> int:
        """Another value that holds what one holds."""
        site = len(self._sites)
        alias = self._new_value(tensor, site, constant=self._values[index].constant)
        replay = Replay(torch.ops.aten.alias.default, (Operand(index),), {})
        self._sites.append(Site(site, "aten.alias", 0, (index,), (alias,), replay=replay))
        return alias

    def _close_atomic(self, call: _OpenCall, outputs: list[torch.Tensor]) -> None:
        site = len(self._sites)
        indices = tuple(self._new_value(tensor, site, constant=False) for tensor in outputs)
        op = f"nn.{call.type}"
        self._sites.append(Site(site, op, call.index, tuple(call.reads), indices, replay=call.replay))
        for tensor, index in zip(outputs, indices, strict=True):
            self._version_of[tensor] = (index, len(self._writes.get(storage_of(tensor), ())))

    def _path(self, module: nn.Module) -> str:
        """The path by which a module was reached: a shared instance has several, the running parent tells which."""
        paths = self._paths[id(module)]
        parent = self._stack[-1].layer if self._stack else ""
        inside = [path for path in paths if not parent or path.startswith(parent + ".")]
        return min(inside or paths, key=lambda path: path.count("."))

    def close_root(self, output: Any) -> None:
        """Write down the call of a root module that takes no hooks (a ScriptModule)."""
        if 0 in self._calls:
            return
        with self._hook_body():
            tensors = named_tensors(output)
            self._outputs = self._apart({name: self._read(tensor) for name, tensor in tensors.items()}, tensors)
        kind, inputs = type_of(self.model), tuple(self._inputs.values())
        self._calls[0] = Call(0, "", 0, kind, None, inputs, tuple(self._outputs.values()))

    def reference(self) -> Reference:
        """What was recorded."""
        dense = {name: tensor for name, tensor in self._state.items() if has_numbers(tensor)}
        arrays = Made(dense, lambda name: _array_of(dense[name]))  # a large model's weights are there already
        called = {call.layer for call in self._calls.values()}
        users: dict[str, str] = {}
        for site in self._sites:
            for index in site.inputs:
                if (name := self._values[index].parameter) is not None:
                    users.setdefault(name.rpartition(".")[0], self._calls[site.owner].layer)
        uncalled = {
            path: _why_uncalled(module, users.get(path))
            for path, module in self.model.named_modules(remove_duplicate=False)
            if path not in called
        }
        calls = tuple(self._calls[index] for index in sorted(self._calls))
        values, sites = tuple(self._values), tuple(self._sites)
        return Reference(values, sites, calls, self._inputs, self._outputs, arrays, uncalled)


def _array_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    array = as_array(tensor)
    assert array is not None
    return array


def is_rebuilt(module: nn.Module) -> bool:
    """Whether a module stands for another one: compiled by torch.jit, or given back by torch.export.unflatten."""
    return isinstance(module, torch.jit.ScriptModule) or "original_name" in module.__dict__


def type_of(module: nn.Module) -> str:
    """The class of a module, or of the one that it stands for."""
    return str(getattr(module, "original_name", "")) if is_rebuilt(module) else type(module).__name__


def _why_uncalled(module: nn.Module, user: str | None) -> str:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)):
        return CONTAINER
    if user is not None:
        return f"its forward was not called; its parameters are used by {user or 'the root module'}"
    return "its forward was not called with these inputs"
