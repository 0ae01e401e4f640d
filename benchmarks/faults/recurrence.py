"""Faults in recurrent layers: gates in another runtime's order, directions exchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from benchmarks.faults.fault import Fault

if TYPE_CHECKING:
    import random

    from benchmarks.faults.workpiece import Workpiece


def gate_order(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = piece.modules(nn.LSTM, nn.GRU)
    if not paths:
        return None
    path = rng.choice(paths)
    module = piece.module(path)
    gates = 4 if isinstance(module, nn.LSTM) else 3
    one, two = rng.sample(range(gates), 2)
    order = list(range(gates))
    order[one], order[two] = two, one
    for name, value in list(module.named_parameters(recurse=False)):
        chunks = value.detach().chunk(gates)
        piece.rewrite(path, name, torch.cat([chunks[i] for i in order]))
    return Fault("gate-order", path, (), f"gates in the order {order}")


def direction_swapped(piece: Workpiece, rng: random.Random) -> Fault | None:
    paths = [path for path in piece.modules(nn.LSTM, nn.GRU) if piece.module(path).bidirectional]
    if not paths:
        return None
    path = rng.choice(paths)
    values = {name: value.detach() for name, value in piece.module(path).named_parameters(recurse=False)}
    layer = rng.randrange(piece.module(path).num_layers)
    for name in [name for name in values if name.endswith(f"l{layer}")]:
        piece.rewrite(path, name, values[f"{name}_reverse"])
        piece.rewrite(path, f"{name}_reverse", values[name])
    return Fault("direction-swapped", path, (), f"forward and backward weights of layer {layer}")
