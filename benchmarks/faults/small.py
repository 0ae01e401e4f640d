"""Faults that change their layer's output by 5e-4 of its size: less than a glance at the outputs would notice."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.faults.fault import Fault
from benchmarks.faults.proof import Rejected
from benchmarks.faults.survey import tensors
from benchmarks.faults.workpiece import BATCHNORM, FOLDABLE, Workpiece, generator, parent_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from benchmarks.faults.registry import Plant

SIZE = 5e-4
"""Change of the layer's output in its first call, as a share of its norm (rel_l2)."""
SLACK = 0.2
"""How far from SIZE, relative to it, a change may end."""
STEPS = 12


class Dial(NamedTuple):
    """A change of one module that can be made larger and smaller: `turn(0)` is the healthy module."""

    path: str
    turn: Callable[[float], None]
    detail: str


def small(kind: str, choose: Callable[[Workpiece, random.Random], Dial | None]) -> Plant:
    """The planting of a fault of this kind at SIZE."""

    def plant(piece: Workpiece, rng: random.Random) -> Fault | None:
        dial = choose(piece, rng)
        if dial is None:
            return None
        amount = _amount(piece, dial)
        if amount is None:
            raise Rejected("no amount of it has this size")
        dial.turn(amount)
        also = piece.fold_partners(dial.path)
        if isinstance(piece.module(dial.path), nn.Embedding):
            also = (parent_of(dial.path),)
        return Fault(kind, dial.path, also, f"{dial.detail}, {amount:.2e} of it")

    return plant


def _amount(piece: Workpiece, dial: Dial) -> float | None:
    """How far the dial must be turned; what it changes is close to proportional to the amount."""
    passage = _Passage(piece, dial.path)
    dial.turn(0.0)
    healthy = passage.output()
    amount = SIZE
    for _ in range(STEPS):
        dial.turn(amount)
        size = _relative(healthy, passage.output())
        if not 0.0 < size < float("inf"):
            return None
        if abs(size - SIZE) <= SLACK / 4 * SIZE:
            return amount
        amount *= min(100.0, max(0.01, SIZE / size))
    return None


class _Passage:
    """The module with what it is given in its first call of a healthy run."""

    def __init__(self, piece: Workpiece, path: str) -> None:
        self._module = piece.module(path)
        self._given: list[tuple[tuple[object, ...], dict[str, object]]] = []
        handle = self._module.register_forward_pre_hook(self._keep, with_kwargs=True)
        with torch.no_grad():
            piece.model(*(x.clone() for x in piece.survey.inputs))
        handle.remove()

    def _keep(self, _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if not self._given:
            self._given.append((_cloned(args), kwargs))

    def output(self) -> Tensor:
        args, kwargs = self._given[0]
        with torch.no_grad():
            result = self._module(*_cloned(args), **kwargs)
        return next(x for x in tensors(result) if x.is_floating_point()).double()


def _cloned(args: tuple[object, ...]) -> tuple[object, ...]:
    return tuple(x.clone() if isinstance(x, Tensor) else x for x in args)


def _relative(expected: Tensor, actual: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def _noise(piece: Workpiece, rng: random.Random) -> Dial | None:
    return _on_parameter(piece, rng, lambda name, w: "bias" not in name and w.numel() > 1, "noise in the", _noise_of)


def _bias(piece: Workpiece, rng: random.Random) -> Dial | None:
    return _on_parameter(piece, rng, lambda name, _: "bias" in name, "noise in the", _noise_of)


def _scale(piece: Workpiece, rng: random.Random) -> Dial | None:
    return _on_parameter(piece, rng, lambda name, w: "weight" in name and w.dim() > 0, "gain of the", lambda w, _: w)


def _channel(piece: Workpiece, rng: random.Random) -> Dial | None:
    def one(weight: Tensor, rng: random.Random) -> Tensor:
        row = torch.zeros_like(weight)
        index = rng.randrange(weight.shape[0])
        row[index] = weight[index]
        return row

    return _on_parameter(
        piece, rng, lambda name, w: "weight" in name and w.dim() > 1, "gain of one channel of the", one
    )


def _noise_of(weight: Tensor, rng: random.Random) -> Tensor:
    draw = torch.randn(weight.shape, generator=generator(rng))
    return draw * weight.norm() / draw.norm()


def _on_parameter(
    piece: Workpiece,
    rng: random.Random,
    fits: Callable[[str, Tensor], bool],
    detail: str,
    direction: Callable[[Tensor, random.Random], Tensor],
) -> Dial | None:
    slots = [
        (path, name)
        for path in piece.modules()
        for name, weight in piece.module(path).named_parameters(recurse=False)
        if fits(name, weight) and weight.abs().max() > 0
    ]
    if not slots:
        return None
    path, name = rng.choice(slots)
    healthy = getattr(piece.module(path), name).detach().clone()
    change = direction(healthy, rng)
    return Dial(path, lambda amount: piece.rewrite(path, name, healthy + amount * change), f"{detail} {name}")


def _epsilon(piece: Workpiece, rng: random.Random) -> Dial | None:
    paths = piece.modules(*BATCHNORM, nn.LayerNorm, nn.GroupNorm)
    paths += [path for path in piece.modules() if hasattr(piece.module(path), "variance_epsilon")]
    if not paths:
        return None
    path = rng.choice(paths)
    module = piece.module(path)
    name = "eps" if hasattr(module, "eps") else "variance_epsilon"
    healthy = getattr(module, name)
    return Dial(path, lambda amount: setattr(module, name, healthy + amount), f"added to {name}")


def _statistics(piece: Workpiece, rng: random.Random) -> Dial | None:
    paths = piece.modules(*BATCHNORM)
    if not paths:
        return None
    path = rng.choice(paths)
    norm = piece.module(path)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    draw = torch.randn(mean.shape, generator=generator(rng))
    if rng.random() < 0.5:
        return Dial(
            path, lambda a: piece.rewrite(path, "running_mean", mean + a * variance.sqrt() * draw), "mean moved"
        )
    return Dial(path, lambda a: piece.rewrite(path, "running_var", variance * (a * draw).exp()), "variance off")


def _factor(piece: Workpiece, rng: random.Random) -> Dial | None:
    """A layer's result times a little more than one: an operator that is too many, or a folded constant."""
    paths = [
        path
        for path in piece.modules(*FOLDABLE)
        if all(call.floats_out and call.read for call in piece.survey.of(path))
    ]
    if not paths:
        return None
    path = rng.choice(paths)
    module = piece.module(path)
    weight = module.weight.detach().clone()
    bias = None if module.bias is None else module.bias.detach().clone()

    def turn(amount: float) -> None:
        piece.rewrite(path, "weight", weight * (1 + amount))
        if bias is not None:
            piece.rewrite(path, "bias", bias * (1 + amount))

    return Dial(path, turn, "gain of weight and bias")


SMALL_KINDS: dict[str, tuple[Plant, ...]] = {
    "small-noise": (small("small-noise", _noise),),
    "small-bias": (small("small-bias", _bias),),
    "small-scale": (small("small-scale", _scale),),
    "small-channel": (small("small-channel", _channel),),
    "small-epsilon": (small("small-epsilon", _epsilon),),
    "small-statistics": (small("small-statistics", _statistics),),
    "small-factor": (small("small-factor", _factor),),
}
"""Apart from KINDS: what can be made any size, at one size."""
