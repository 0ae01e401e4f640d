"""Faults in weights: what a stale checkpoint, a lost tensor or a wrong layout leave behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.faults.fault import Fault
from benchmarks.faults.workpiece import CONVOLUTION, Workpiece, noise_like, parent_of

if TYPE_CHECKING:
    import random
    from collections.abc import Callable


class Slot(NamedTuple):
    """One parameter of one module."""

    path: str
    name: str


def weight_noise(piece: Workpiece, rng: random.Random) -> Fault | None:
    share = rng.choice((0.02, 0.1, 0.3))
    return _edited(
        piece, rng, "weight-noise", lambda w: w + share * w.std() * noise_like(w, rng), f"noise of {share} std"
    )


def weight_small(piece: Workpiece, rng: random.Random) -> Fault | None:
    size = 5e-4

    def edit(weight: Tensor) -> Tensor:
        noise = noise_like(weight, rng)
        return weight + size * noise * weight.norm() / noise.norm()

    return _edited(piece, rng, "weight-small", edit, f"relative change of {size}")


def weight_stale(piece: Workpiece, rng: random.Random) -> Fault | None:
    return _edited(piece, rng, "weight-stale", lambda w: w.mean() + w.std() * noise_like(w, rng), "drawn anew")


def weight_rounded(piece: Workpiece, rng: random.Random) -> Fault | None:
    detail = rng.choice(("to bfloat16", "to 8 bits"))

    def edit(weight: Tensor) -> Tensor:
        if detail == "to bfloat16":
            return weight.bfloat16().float()
        step = weight.abs().max() / 127
        return (weight / step).round() * step

    return _edited(piece, rng, "weight-rounded", edit, detail)


def channel_corrupted(piece: Workpiece, rng: random.Random) -> Fault | None:
    return _on_channel(piece, rng, "channel-corrupted", lambda row, w: w.std() * noise_like(row, rng))


def channel_scaled(piece: Workpiece, rng: random.Random) -> Fault | None:
    factor = rng.choice((0.5, 1.3, 2.0))
    return _on_channel(piece, rng, "channel-scaled", lambda row, _: row * factor)


def bias_dropped(piece: Workpiece, rng: random.Random) -> Fault | None:
    slots = [slot for slot in _slots(piece) if slot.name.startswith("bias")]
    if not slots:
        return None
    slot = rng.choice(slots)
    if isinstance(piece.module(slot.path), (nn.Conv1d, nn.Conv2d, nn.Linear)) and rng.random() < 0.5:
        piece.module(slot.path).bias = None
        return _fault(piece, "bias-dropped", slot, "no bias at all")
    piece.rewrite(slot.path, slot.name, torch.zeros_like(_value(piece, slot)))
    return _fault(piece, "bias-dropped", slot, "zeros")


def weights_swapped(piece: Workpiece, rng: random.Random) -> Fault | None:
    slots = [slot for slot in _slots(piece) if "weight" in slot.name]
    rng.shuffle(slots)
    for i, one in enumerate(slots):
        shape = _value(piece, one).shape
        twins = [two for two in slots[i + 1 :] if _value(piece, two).shape == shape and two.path != one.path]
        if twins:
            return _swap(piece, one, rng.choice(twins))
    return None


def weight_transposed(piece: Workpiece, rng: random.Random) -> Fault | None:
    def square(weight: Tensor) -> bool:
        return weight.dim() == 2 and weight.shape[0] == weight.shape[1]

    slots = [slot for slot in _slots(piece) if square(_value(piece, slot))]
    if not slots:
        return None
    slot = rng.choice(slots)
    piece.rewrite(*slot, _value(piece, slot).t().contiguous())
    return _fault(piece, "weight-transposed", slot, "square matrix transposed")


def kernel_flipped(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = [p for p in piece.modules(*CONVOLUTION) if piece.module(p).weight.shape[-1] > 1]
    if not paths:
        return None
    slot = Slot(rng.choice(paths), "weight")
    weight = _value(piece, slot)
    transpose = weight.dim() == 4 and rng.random() < 0.5
    piece.rewrite(*slot, (weight.transpose(-1, -2) if transpose else weight.flip(-1)).contiguous())
    return _fault(piece, "kernel-flipped", slot, "height and width exchanged" if transpose else "mirrored")


def _slots(piece: Workpiece) -> list[Slot]:
    """Every parameter of every module that ran; those of the root are its own."""
    return [Slot(p, n) for p in piece.modules() for n, _ in piece.module(p).named_parameters(recurse=False)]


def _value(piece: Workpiece, slot: Slot) -> Tensor:
    value: Tensor = getattr(piece.module(slot.path), slot.name)
    return value.detach().clone()


def _edited(
    piece: Workpiece, rng: random.Random, kind: str, edit: Callable[[Tensor], Tensor], detail: str
) -> Fault | None:
    slots = [slot for slot in _slots(piece) if "bias" not in slot.name and _value(piece, slot).numel() > 1]
    if not slots:
        return None
    slot = rng.choice(slots)
    piece.rewrite(*slot, edit(_value(piece, slot)))
    return _fault(piece, kind, slot, detail)


def _on_channel(
    piece: Workpiece, rng: random.Random, kind: str, edit: Callable[[Tensor, Tensor], Tensor]
) -> Fault | None:
    slots = [slot for slot in _slots(piece) if "weight" in slot.name and _value(piece, slot).dim() > 1]
    if not slots:
        return None
    slot = rng.choice(slots)
    weight = _value(piece, slot)
    channel = rng.randrange(weight.shape[0])
    weight[channel] = edit(weight[channel].clone(), weight)
    piece.rewrite(*slot, weight)
    return _fault(piece, kind, slot, f"channel {channel}")


def _swap(piece: Workpiece, one: Slot, two: Slot) -> Fault:
    first, second = _value(piece, one), _value(piece, two)
    piece.rewrite(*one, second)
    piece.rewrite(*two, first)
    order = piece.survey.paths()
    early, late = sorted((one, two), key=lambda slot: order.index(slot.path))
    fault = _fault(piece, "weights-swapped", early, f"with {late.path}.{late.name}")
    also = (*fault.also_ok, late.path) if _parallel(piece, early, late) else fault.also_ok
    return Fault(fault.kind, fault.layer, also, fault.detail)


def _parallel(piece: Workpiece, one: Slot, two: Slot) -> bool:
    """Whether both read the same tensor, so that neither comes first."""
    reads = [frozenset().union(*(call.read for call in piece.survey.of(slot.path))) for slot in (one, two)]
    return bool(reads[0] & reads[1])


def _fault(piece: Workpiece, kind: str, slot: Slot, detail: str) -> Fault:
    also = piece.fold_partners(slot.path)
    if isinstance(piece.module(slot.path), nn.Embedding):
        also = (parent_of(slot.path),)  # a lookup of constant ids is folded into the parent's own arithmetic
    return Fault(kind, slot.path, also, f"{slot.name}: {detail}")
