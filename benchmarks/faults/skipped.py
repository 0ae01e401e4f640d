"""A layer that is not there: its input goes straight on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from benchmarks.faults.activations import is_activation
from benchmarks.faults.fault import Fault

if TYPE_CHECKING:
    import random

    from benchmarks.faults.workpiece import Workpiece


def layer_skipped(piece: Workpiece, rng: random.Random) -> Fault | None:
    """A layer with weights whose output has its input's shape; dropped activations are a kind of their own."""
    paths = [path for path in piece.modules() if _keeps_shape(piece.module(path))]
    if not paths:
        return None
    path = rng.choice(paths)
    name = type(piece.module(path)).__name__
    also = (*piece.readers(path), *piece.fold_partners(path))
    piece.replace(path, nn.Identity())
    return Fault("layer-skipped", path, tuple(dict.fromkeys(also)), f"{name} gone")


def _keeps_shape(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    if weight is None or is_activation(module) or isinstance(module, nn.Embedding):
        return False
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        same = all(
            2 * p == d * (k - 1) for p, d, k in zip(module.padding, module.dilation, module.kernel_size, strict=True)
        )
        return same and module.in_channels == module.out_channels and set(module.stride) == {1}
    return weight.dim() == 1 or (isinstance(module, nn.Linear) and module.in_features == module.out_features)
