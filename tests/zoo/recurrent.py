"""Conv1d front end, a GRU, a two-layer bidirectional LSTM and a small head: a keyword spotter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle


class Front(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(inside, outside, 5, padding=2)
        self.bn1 = nn.BatchNorm1d(outside)
        self.act1 = nn.ELU()
        self.conv2 = nn.Conv1d(outside, outside, 3, padding=2, dilation=2)
        self.bn2 = nn.BatchNorm1d(outside)
        self.act2 = nn.ELU()
        self.pool = nn.AvgPool1d(3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.pool(self.act2(self.bn2(self.conv2(x))))


class Standardise(nn.Module):
    mean: Tensor
    deviation: Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", 0.3 * noise("recurrent.mean", bands, 1))
        self.register_buffer("deviation", torch.exp(0.2 * noise("recurrent.deviation", bands, 1)))

    def subtract(self, x: Tensor, mean: Tensor) -> Tensor:
        return x - mean

    def forward(self, x: Tensor) -> Tensor:
        return self.subtract(x, self.mean) / self.deviation


class Speech(nn.Module):
    def __init__(self, bands: int = 12, width: int = 20, classes: int = 7) -> None:
        super().__init__()
        self.standardise = Standardise(bands)
        self.front = Front(bands, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.lstm = nn.LSTM(width, 12, num_layers=2, bidirectional=True, batch_first=True)
        self.head = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, classes))

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def pick(self, x: Tensor) -> Tensor:
        return x[:, -1]

    def forward(self, x: Tensor) -> Tensor:
        x = self.front(self.standardise(x)).transpose(1, 2)
        x = self.norm(self.join(x, self.gru(x)[0]))
        return self.head(self.pick(self.lstm(x)[0]))


def speech() -> Sample:
    model = settle(fill(Speech(), gain=1.3), noise("speech.batch", 8, 12, 32))
    return Sample(model, (noise("speech.x", 2, 12, 32),))
