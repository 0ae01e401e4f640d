"""Faults that are operators nobody asked for: casts, quantisation, a factor, a clip."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from benchmarks.faults.fault import Fault, joined

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from benchmarks.faults.workpiece import Workpiece


def half_output(piece: Workpiece, rng: random.Random) -> Fault | None:
    return _after(piece, rng, "half-output", lambda _: lambda y: y.half().float(), "cast to half and back")


def qdq_output(piece: Workpiece, rng: random.Random) -> Fault | None:
    def build(peak: float) -> Callable[[Tensor], Tensor]:
        scale = peak / 127
        return lambda y: torch.fake_quantize_per_tensor_affine(y, scale, 0, -128, 127)

    return _after(piece, rng, "qdq-output", build, "quantised to 8 bits and back")


def extra_operator(piece: Workpiece, rng: random.Random) -> Fault | None:
    detail = rng.choice(("times 1.01", "clipped at 0.6 of its peak", "plus 0.02 of its peak"))

    def build(peak: float) -> Callable[[Tensor], Tensor]:
        if detail == "times 1.01":
            return lambda y: y * 1.01
        if detail.startswith("clipped"):
            return lambda y: y.clamp(-0.6 * peak, 0.6 * peak)
        return lambda y: y + 0.02 * peak

    return _after(piece, rng, "extra-operator", build, detail)


def half_input(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = [path for path in _places(piece) if all(call.floats_in for call in piece.survey.of(path))]
    if not paths:
        return None
    path = rng.choice(paths)
    also = joined(piece.beside_input(path), piece.fold_partners(path), but=path)
    piece.override(path, "forward", lambda original, x: original(x.half().float()))
    return Fault("half-input", path, also, "input cast to half and back")


def _after(
    piece: Workpiece,
    rng: random.Random,
    kind: str,
    build: Callable[[float], Callable[[Tensor], Tensor]],
    detail: str,
) -> Fault | None:
    paths = _places(piece)
    if not paths:
        return None
    path = rng.choice(paths)
    also = joined(piece.readers(path), piece.fold_partners(path), but=path)
    change = build(max(call.peak for call in piece.survey.of(path)))
    piece.override(path, "forward", lambda original, *args: change(original(*args)))
    return Fault(kind, path, also, detail)


def _places(piece: Workpiece) -> list[str]:
    """Modules without children that take and give float tensors; shared ones would change in many places."""
    shared = {id(m) for m in _repeated(piece)}
    return [
        path
        for path in piece.modules()
        if not list(piece.module(path).children())
        and id(piece.module(path)) not in shared
        and not isinstance(piece.module(path), (nn.Identity, nn.Dropout))
        and all(call.floats_out and call.floats_in and call.read for call in piece.survey.of(path))
    ]


def _repeated(piece: Workpiece) -> list[nn.Module]:
    paths = [path for path in piece.survey.paths() if piece.survey.canonical[path] != path]
    return [piece.module(path) for path in paths]
