"""The networks around the faults: at least eight layers, so that there is something to find."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable


def chain(**layers: nn.Module) -> nn.Sequential:
    """The layers one after the other, under these names."""
    return nn.Sequential(OrderedDict(layers))


def ready(model: nn.Module, *batch: Tensor) -> nn.Module:
    """The model with its weights, and BatchNorm statistics of a batch if one is given."""
    assert sum(1 for module in model.modules() if not list(module.children())) >= 8
    return settle(fill(model), *batch) if batch else fill(model)


def images(name: str, *shape: int) -> Tensor:
    """A batch for a model that reads images."""
    return noise(f"realfaults.{name}", *shape)


class Block(nn.Module):
    """Convolution, BatchNorm, activation, around which the input goes on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.norm(self.conv(x)))


class Mixer(nn.Module):
    """LayerNorm, two linear layers and an activation, around which the input goes on."""

    def __init__(self, width: int, act: nn.Module | None = None) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.act = act or nn.GELU()
        self.down = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


class Apply(nn.Module):
    """A module whose forward is one function of its input."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def vision(**middle: nn.Module) -> nn.Sequential:
    """A convolutional classifier of images of three channels with something in its middle, eight channels wide."""
    return chain(
        stem=nn.Conv2d(3, 8, 3, stride=2, padding=1),
        act=nn.SiLU(),
        block=Block(8),
        **middle,
        neck=Block(8),
        mean=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        head=nn.Linear(8, 5),
    )


def tokens(width: int = 16, **middle: nn.Module) -> nn.Sequential:
    """A chain of mixers over (batch, length, width) with something in its middle."""
    return chain(
        embed=nn.Linear(6, width),
        first=Mixer(width),
        **middle,
        last=Mixer(width),
        norm=nn.LayerNorm(width),
        head=nn.Linear(width, 4),
    )
