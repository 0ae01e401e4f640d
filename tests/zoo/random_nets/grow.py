"""Growing a random network, one step at a time, each tried on real tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tests.zoo.random_nets.functions import FINALS, FUNCTIONS
from tests.zoo.random_nets.layers import LAYERS
from tests.zoo.random_nets.program import Form, Program, Step, tensors
from tests.zoo.sample import Sample
from tests.zoo.weights import fill, settle

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

LARGEST = 3000
"""Elements of a value."""
ATTEMPTS = 12
"""Draws of a step until one fits."""
VOCABULARY = 11


def random_net(rng: random.Random) -> Sample:
    """A network of two to ten steps (stages have steps of their own), with the inputs it was grown on."""
    inputs = _inputs(rng)
    with torch.no_grad():
        grower = _Grower(rng, inputs)
        for _ in range(rng.randint(2, 10)):
            grower.grow()
        return Sample(grower.finished().eval(), inputs)


def _inputs(rng: random.Random) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(rng.getrandbits(31))
    batch = rng.choice([2, 1, 3])
    image = (batch, rng.choice([4, 3, 2, 6]), rng.choice([6, 5, 8]), rng.choice([6, 7, 8]))
    shape = rng.choice([image, (batch, rng.choice([4, 5, 6]), rng.choice([4, 6, 8])), (batch, rng.choice([4, 6, 8]))])
    if len(shape) == 3 and rng.random() < 0.3:
        return (torch.randint(0, VOCABULARY, shape[:2], generator=generator),)
    count = rng.choice([1, 1, 2])
    return tuple(torch.randn(shape, generator=generator) for _ in range(count))


@dataclass
class _Grower:
    """A program, and the values that it has when it runs on the inputs."""

    rng: random.Random
    inputs: tuple[Tensor, ...]
    depth: int = 0

    def __post_init__(self) -> None:
        self.program = Program()
        self.values: list[Tensor] = [x.clone() for x in self.inputs]
        self.program.makers = [-1] * len(self.inputs)
        self._shapes_read: dict[str, torch.Size] = {}
        if not self.values[0].is_floating_point():
            self._add_layer(nn.Embedding(VOCABULARY, self.rng.choice([4, 6, 8])), 0)

    def grow(self) -> None:
        """One more step, if one can be found that fits."""
        ways: list[Callable[[int], bool]] = [self._layer] * 6 + [self._function] * 3 + [self._join] * 3 + [self._again]
        if self.depth < 2:
            ways += [self._stage, self._sequence]
        for _ in range(ATTEMPTS):
            usable = [n for n, value in enumerate(self.values) if value.is_floating_point()]
            number = usable[-1] if self.rng.random() < 0.75 else self.rng.choice(usable)
            if self.rng.choice(ways)(number):
                return

    def finished(self) -> Program:
        """The program with its results. They depend on all inputs: exporters drop those that nothing reads."""
        rng, first = self.rng, len(self.inputs)
        while len(self.values) == first:
            self.grow()
        if rng.random() < 0.25:
            self._call_function(rng.choice(list(FINALS)), (len(self.values) - 1,))
        last = len(self.values) - 1
        read = {number for step in self.program.steps for number in step.reads}
        unread = [number for number in range(first, last) if number not in read]
        more = [number for number in range(first, last) if rng.random() < (0.6 if number in unread else 0.1)]
        self.program.results = (last, *more[-3:])
        for number in sorted(set(range(first)) - self.program.used()):
            self._take(Step((number,), function="tanh"))
            self.program.results += (len(self.values) - 1,)
        self._drop_results_that_leave_twice()
        several = [Form.TUPLE, Form.DICT, Form.LIST, Form.NESTED]
        alone = [Form.TENSOR, Form.TENSOR, *several[:2]]
        self.program.form = rng.choice(several if len(self.program.results) > 1 else alone)
        return self.program

    def _drop_results_that_leave_twice(self) -> None:
        """A Dropout gives what it got, and an in-place layer changes it."""
        self.program.form = Form.TUPLE
        leaving = tensors(self.program.eval()(*(x.clone() for x in self.inputs)))
        again = [any(torch.equal(leaving[n], other) for other in leaving[:n]) for n in range(len(leaving))]
        self.program.results = tuple(n for n, twice in zip(self.program.results, again, strict=True) if not twice)

    # Steps.

    def _layer(self, number: int) -> bool:
        layer = self._drawn(self.values[number])
        return layer is not None and self._add_layer(layer, number)

    def _sequence(self, number: int) -> bool:
        parts: list[nn.Module] = []
        value = self.values[number].clone()
        for _ in range(self.rng.randint(2, 4)):
            layer = self._drawn(value)
            if layer is None or isinstance(layer, (nn.RNNBase, nn.MultiheadAttention)):
                continue
            parts.append(layer)
            value = layer(value.clone())
        return bool(parts) and self._add_layer(nn.Sequential(*parts), number)

    def _stage(self, number: int) -> bool:
        inner = _Grower(self.rng, (self.values[number],), self.depth + 1)
        for _ in range(self.rng.randint(1, 4)):
            inner.grow()
        if len(inner.values) == 1:
            return False
        inner.program.results = (len(inner.values) - 1,)
        return self._add_layer(inner.program, number)

    def _again(self, number: int) -> bool:
        """A layer that has been called before is called once more."""
        shape = self.values[number].shape
        fitting = [name for name, read in self._shapes_read.items() if read == shape]
        if not fitting:
            return False
        name = self.rng.choice(fitting)
        return self._take(Step(self._reads(name, number), name))

    def _function(self, number: int) -> bool:
        rank = self.values[number].dim()
        fitting = [n for n, f in FUNCTIONS.items() if rank in f.ranks and f.operands == 1 and n not in FINALS]
        return bool(fitting) and self._call_function(self.rng.choice(fitting), (number,))

    def _join(self, number: int) -> bool:
        """A function of several values of one shape."""
        value = self.values[number]
        others = [n for n, v in enumerate(self.values) if v.shape == value.shape and v.dtype == value.dtype]
        fitting = [n for n, f in FUNCTIONS.items() if value.dim() in f.ranks and 1 < f.operands <= len(others)]
        if not fitting:
            return False
        name = self.rng.choice(fitting)
        others.remove(number)
        operands = [number, *self.rng.sample(others, FUNCTIONS[name].operands - 1)]
        return self._call_function(name, tuple(self.rng.sample(operands, len(operands))))

    def _call_function(self, name: str, reads: tuple[int, ...]) -> bool:
        if not all(self.values[n].is_floating_point() for n in reads):
            return False
        options = FUNCTIONS[name].options(self.rng, self.values[reads[0]])
        return self._take(Step(reads, function=name, options=options))

    # Taking a step.

    def _drawn(self, value: Tensor) -> nn.Module | None:
        """A random layer with weights and statistics, which takes the value and gives another."""
        if value.dim() not in LAYERS:
            return None
        try:
            layer = self.rng.choice(LAYERS[value.dim()])(self.rng, value)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.rng.getrandbits(31))
                weighted(layer, self.rng.getrandbits(31))
                if "BatchNorm" in type(layer).__name__:
                    settle(layer, value.clone())
            accepted = all(_acceptable(t) for t in tensors(_call(layer, value.clone())))
        except (RuntimeError, ValueError, IndexError, KeyError, AttributeError):  # it does not fit the shape
            return None
        return layer if accepted else None

    def _add_layer(self, layer: nn.Module, number: int) -> bool:
        name = self._registered(layer)
        if self._take(Step(self._reads(name, number), name)):
            self._shapes_read[name] = self.values[number].shape
            return True
        parent, _, own = name.rpartition(".")
        del self.program.get_submodule(parent)._modules[own]
        return False

    def _reads(self, name: str, number: int) -> tuple[int, ...]:
        attends = isinstance(self.program.get_submodule(name), nn.MultiheadAttention)
        return (number,) * 3 if attends else (number,)

    def _registered(self, layer: nn.Module) -> str:
        """The path at which the program now holds the layer: an attribute, in a ModuleList or in a ModuleDict."""
        kind = type(layer).__name__.lower()
        home = self.rng.choice(["", "", "layers", "parts"])
        if home == "layers":
            if not hasattr(self.program, home):
                self.program.layers = nn.ModuleList()
            self.program.layers.append(layer)
            return f"layers.{len(self.program.layers) - 1}"
        own = f"{kind}_{len(self.program.steps)}"
        if home == "parts":
            if not hasattr(self.program, home):
                self.program.parts = nn.ModuleDict()
            self.program.parts[own] = layer
            return f"parts.{own}"
        self.program.add_module(own, layer)
        return own

    def _take(self, step: Step) -> bool:
        """Append the step if it runs and gives values that a real network could have."""
        self.program.eval()
        copies = [value.clone() for value in self.values]
        try:
            results = tensors(self.program.run(step, copies))
        except (RuntimeError, ValueError, IndexError):  # it does not fit the shapes
            return False
        if not results or not all(_acceptable(result) for result in results):
            return False
        if any(not torch.equal(copies[n], self.values[n]) for n in range(len(self.inputs))):
            return False  # a model that writes to its inputs
        self.program.makers += [len(self.program.steps)] * len(results)
        self.program.steps.append(step)
        self.values = [*copies, *(r.clone() for r in results)]
        return True


def weighted(layer: nn.Module, seed: int) -> nn.Module:
    """The layer with random weights of its own."""
    fill(nn.ModuleDict({f"seed_{seed}": layer}))
    for part in layer.modules():
        if isinstance(part, nn.PReLU):
            part.weight.mul_(0.25)
    return layer


def _call(layer: nn.Module, value: Tensor) -> object:
    return layer(value, value, value) if isinstance(layer, nn.MultiheadAttention) else layer(value)


def _acceptable(value: Tensor) -> bool:
    if value.numel() == 0 or value.numel() > LARGEST or value.dim() > 4 or value.dim() < 1:
        return False
    if not value.is_floating_point():
        return True
    largest = float(value.abs().max())
    return math.isfinite(largest) and 1e-2 < largest < 1e3 and (value.numel() == 1 or float(value.std()) > 1e-3)
