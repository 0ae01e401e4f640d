"""Faults in activations: gone, or another one of the same family."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from benchmarks.faults.fault import Fault

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from benchmarks.faults.workpiece import Workpiece

_SWAPS: dict[str, tuple[Callable[[], nn.Module], ...]] = {
    "ReLU": (nn.ReLU6, nn.SiLU, lambda: nn.LeakyReLU(0.05)),
    "ReLU6": (lambda: nn.Hardtanh(0.0, 3.0), nn.Hardswish, nn.SiLU),
    "SiLU": (nn.ReLU, nn.Hardswish, nn.GELU),
    "SiLUActivation": (nn.ReLU, nn.Hardswish, nn.GELU),
    "GELU": (nn.ReLU, nn.SiLU),
    "GELUActivation": (lambda: nn.GELU("tanh"), nn.SiLU),
    "Hardswish": (nn.SiLU, nn.ReLU),
    "Hardsigmoid": (nn.Sigmoid,),
    "LeakyReLU": (lambda: nn.LeakyReLU(0.01), lambda: nn.LeakyReLU(0.2), nn.ReLU),
    "ELU": (lambda: nn.ELU(0.7), nn.SELU, nn.ReLU),
    "Tanh": (nn.Hardtanh, nn.Sigmoid),
    "PReLU": (lambda: nn.LeakyReLU(0.25), nn.ReLU),
}
"""By class name: `transformers` has its own classes for some."""


def activation_dropped(piece: Workpiece, rng: random.Random) -> Fault | None:
    path = _activation(piece, rng)
    if path is None:
        return None
    name = type(piece.module(path)).__name__
    readers = piece.readers(path)
    piece.replace(path, nn.Identity())
    return Fault("activation-dropped", path, readers, f"{name} gone")


def activation_other(piece: Workpiece, rng: random.Random) -> Fault | None:
    path = _activation(piece, rng)
    if path is None:
        return None
    healthy = piece.module(path)
    wrong = _other(healthy, rng)
    piece.replace(path, wrong)
    return Fault("activation-other", path, (), f"{wrong} instead of {healthy}")


def activation_shared(piece: Workpiece, rng: random.Random) -> Fault | None:
    """One instance under many paths, another one everywhere."""
    paths = [path for path in piece.survey.paths() if type(piece.module(path)).__name__ in _SWAPS]
    instances = {path: piece.module(path) for path in paths}
    groups = [[p for p in paths if instances[p] is instances[path]] for path in paths]
    groups = [group for group in groups if len(group) > 1]
    if not groups:
        return None
    group = rng.choice(groups)
    healthy, wrong = instances[group[0]], _other(instances[group[0]], rng)
    for path in group:
        piece.replace(path, wrong)
    return Fault("activation-shared", group[0], (), f"{wrong} instead of {healthy} under {len(group)} paths")


def _activation(piece: Workpiece, rng: random.Random) -> str | None:
    paths = [path for path in piece.survey.paths() if type(piece.module(path)).__name__ in _SWAPS]
    return rng.choice(paths) if paths else None


def _other(healthy: nn.Module, rng: random.Random) -> nn.Module:
    if isinstance(healthy, nn.GELU) and rng.random() < 0.6:
        return nn.GELU("none" if healthy.approximate == "tanh" else "tanh")
    return rng.choice(_SWAPS[type(healthy).__name__])()


def is_activation(module: nn.Module) -> bool:
    return type(module).__name__ in _SWAPS
