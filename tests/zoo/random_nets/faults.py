"""One fault in a copy of a random network, where it shows in the outputs."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tests.zoo.random_nets.functions import FUNCTIONS
from tests.zoo.random_nets.grow import weighted
from tests.zoo.random_nets.layers import (
    ACTIVATIONS,
    activation,
    avg_pool,
    layer_norm,
    max_pool,
    pad,
    rms_norm,
    upsample,
)
from tests.zoo.random_nets.program import Program, tensors

if TYPE_CHECKING:
    from tests.zoo.sample import Sample

ATTEMPTS = 40
VISIBLE = 1e-2
"""The least change of an output, relative to its size, that counts as a fault."""

Change = Callable[[random.Random, nn.Module], "str | None"]


@dataclass(frozen=True)
class Planted:
    """A broken copy of a network, and the path of the deepest module that holds the fault."""

    model: nn.Module
    layer: str
    detail: str


def with_fault(net: Sample, rng: random.Random) -> Planted | None:
    """A broken copy of the network; None if no fault was found that changes an output and no shape."""
    with torch.no_grad():
        right = _outputs(net.model, net.inputs)
        seen = _seen(net)
        places = [path for path, module in net.model.named_modules() if path in seen and _can_break(module)]
        for _ in range(ATTEMPTS):
            broken = copy.deepcopy(net.model)
            path = rng.choice(places)
            detail = _broken(rng, broken, path, seen[path])
            if detail is None:
                continue
            try:
                wrong = _outputs(broken, net.inputs)
            except (
                RuntimeError,
                ValueError,
                IndexError,
                TypeError,
                AttributeError,
                AssertionError,
            ):  # what next cannot take it
                continue
            if _differ(right, wrong):
                return Planted(broken, path, detail)
    return None


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return tensors(model(*(x.clone() for x in inputs)))


def _seen(net: Sample) -> dict[str, Tensor]:
    """What each module that ran was given at first."""
    found: dict[str, Tensor] = {}

    def noting(path: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def note(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            if args:
                found.setdefault(path, args[0].clone())

        return note

    modules = [(path, m) for path, m in net.model.named_modules() if not isinstance(m, nn.Sequential)]
    handles = [module.register_forward_pre_hook(noting(path)) for path, module in modules]
    _outputs(net.model, net.inputs)
    for handle in handles:
        handle.remove()
    return found


def _can_break(module: nn.Module) -> bool:
    return not isinstance(module, (nn.Identity, nn.Dropout, nn.Dropout1d))


def _differ(right: list[Tensor], wrong: list[Tensor]) -> bool:
    if any(r.shape != w.shape or r.dtype != w.dtype for r, w in zip(right, wrong, strict=True)):
        return False
    if not all(torch.isfinite(w).all() and float(w.abs().max()) < 1e4 for w in wrong):
        return False
    apart = [
        float((r - w).norm()) > VISIBLE * float(r.norm()) if r.is_floating_point() else bool((r != w).any())
        for r, w in zip(right, wrong, strict=True)
    ]
    return any(apart)


def _broken(rng: random.Random, model: nn.Module, path: str, seen: Tensor) -> str | None:
    """What was done to the module at the path; None if nothing could be."""
    module = model.get_submodule(path)
    if isinstance(module, Program):
        return _other_step(rng, module)
    if list(module.parameters(recurse=False)) and rng.random() < 0.6:
        return _other_weights(rng, module)
    return _other_attribute(rng, module) or _other_layer(rng, model, path, seen)


# Steps.


def _other_step(rng: random.Random, program: Program) -> str | None:
    own = [number for number, step in enumerate(program.steps) if step.function]
    if not own:
        return None
    number = rng.choice(own)
    step = program.steps[number]
    possible = {
        "kin": bool(FUNCTIONS[step.function].kin), "options": bool(step.options), "operands": len(set(step.reads)) > 1,
    }  # fmt: skip
    if not any(possible.values()):
        return None
    way = rng.choice([name for name, yes in possible.items() if yes])
    if way == "kin":
        other = replace(step, function=rng.choice(FUNCTIONS[step.function].kin))
    elif way == "operands":
        other = replace(step, reads=step.reads[::-1])
    else:
        other = replace(step, options=_nudged(rng, dict(step.options)))
    program.steps[number] = other
    return f"step {number}: {step} became {other}" if other != step else None


def _nudged(rng: random.Random, options: dict[str, object]) -> dict[str, object]:
    name = rng.choice(list(options))
    value = options[name]
    if isinstance(value, bool):
        options[name] = not value
    elif isinstance(value, int):
        options[name] = value + rng.choice([-1, 1])
    elif isinstance(value, float) and abs(value) < 1e3:
        options[name] = value * 1.3 + 0.1
    elif isinstance(value, tuple):
        options[name] = tuple(rng.sample(value, len(value)))
    elif value in _MODES:
        options[name] = rng.choice(_MODES[value])
    return options


_MODES: dict[object, list[object]] = {
    None: [0.3], "constant": ["reflect", "replicate"], "reflect": ["constant", "replicate"],
    "replicate": ["constant", "reflect"], "bilinear": ["bicubic"], "bicubic": ["bilinear"],
}  # fmt: skip


# Weights.


def _other_weights(rng: random.Random, module: nn.Module) -> str | None:
    name, parameter = rng.choice(list(module.named_parameters(recurse=False)))
    way = rng.choice(["scaled", "channel", "noise", "zero", "rolled"])
    if way == "scaled":
        parameter.mul_(1.3)
    elif way == "channel":
        parameter[rng.randrange(len(parameter))] += 0.5
    elif way == "noise":
        generator = torch.Generator().manual_seed(rng.getrandbits(31))
        parameter.add_(0.2 * parameter.std(correction=0) * torch.randn(parameter.shape, generator=generator))
    elif way == "zero":
        if parameter.dim() > 1:
            return None
        parameter.zero_()
    else:
        parameter.copy_(parameter.roll(1, 0))
    return f"{name} {way}"


# Attributes and layers.


def _other_attribute(rng: random.Random, module: nn.Module) -> str | None:
    """One attribute that exporters are known to get wrong."""
    ways = [way for way in _ATTRIBUTES if hasattr(module, way[0])]
    if not ways:
        return None
    name, change = rng.choice(ways)
    before = getattr(module, name)
    after = change(before)
    if after == before:
        return None
    setattr(module, name, after)
    return f"{name} {before} became {after}"


_ATTRIBUTES: list[tuple[str, Callable[[object], object]]] = [
    ("eps", lambda eps: 0.3 if eps is None else eps + 0.3),
    ("negative_slope", lambda slope: slope + 0.2),
    ("approximate", lambda kind: "tanh" if kind == "none" else "none"),
    ("beta", lambda beta: beta * 2),
    ("alpha", lambda alpha: alpha * 2),
    ("lambd", lambda lambd: lambd * 1.5),
    ("count_include_pad", lambda yes: not yes),
    ("align_corners", lambda yes: yes if yes is None else not yes),
    ("num_groups", lambda groups: {1: 2, 2: 1, 4: 2}[groups]),
    ("dim", lambda dim: -1 if dim == 1 else 1),
]


def _other_layer(rng: random.Random, model: nn.Module, path: str, seen: Tensor) -> str | None:
    """A layer of the same kind instead, or none."""
    module = model.get_submodule(path)
    kind = type(module).__name__
    makers = [make for word, make in _KINDS.items() if word in kind]
    if kind in _ACTIVATION_NAMES:
        makers = [activation]
    other: nn.Module = nn.Identity()
    if makers and rng.random() < 0.7:
        try:
            other = weighted(rng.choice(makers)(rng, seen), rng.getrandbits(31))
        except (KeyError, IndexError):
            return None
    if repr(other) == repr(module):
        return None
    parent, _, own = path.rpartition(".")
    model.get_submodule(parent)._modules[own] = other.eval()
    return f"{module} became {other}"


_KINDS = {
    "MaxPool": avg_pool, "AvgPool": max_pool, "Pad": pad, "Upsample": upsample, "LayerNorm": rms_norm,
    "RMSNorm": layer_norm,
}  # fmt: skip
_ACTIVATION_NAMES = {
    type(make(random.Random(0), torch.zeros(2, 2, 2))).__name__ for make in ACTIVATIONS
}  # fmt: skip


def owners(path: str) -> Iterator[str]:
    """The modules around one, the innermost first."""
    while path:
        path = path.rpartition(".")[0]
        yield path
