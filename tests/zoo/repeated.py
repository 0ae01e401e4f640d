"""A refiner that calls one and the same block five times."""

from __future__ import annotations

from torch import Tensor, nn

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise


class Step(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(4, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.act = nn.GELU(approximate="tanh")
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def subtract(self, x: Tensor, correction: Tensor) -> Tensor:
        return x - correction

    def shrink(self, correction: Tensor) -> Tensor:
        return 0.3 * correction

    def forward(self, x: Tensor) -> Tensor:
        correction = self.conv2(self.act(self.conv1(self.norm(x))))
        return self.subtract(x, self.shrink(correction))


class Refiner(nn.Module):
    def __init__(self, width: int = 12, steps: int = 5) -> None:
        super().__init__()
        self.steps = steps
        self.inlet = nn.Conv2d(3, width, 3, padding=1, padding_mode="reflect")
        self.act = nn.PReLU(width)
        self.step = Step(width)
        self.outlet = nn.Conv2d(width, 3, 3, padding=1)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.inlet(image))
        for _ in range(self.steps):
            x = self.step(x)
        return self.join(image, self.outlet(x)).sigmoid()


def refiner() -> Sample:
    return Sample(fill(Refiner(), gain=1.2), (noise("refiner.x", 1, 3, 24, 24),))
