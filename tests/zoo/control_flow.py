"""Models whose export has an If or a Loop. Not in MODELS: each has its own way into a file."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tests.zoo import exports
from tests.zoo.exports import Exporter
from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.act = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 1)

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + 0.5 * branch

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.conv2(self.act(self.norm(self.conv1(x)))))


class Switch(nn.Module):
    """One block for bright images, another for dark ones: torch.cond for dynamo, a scripted if for TorchScript."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, width, 3, padding=1)
        self.bright = Block(width)
        self.dark = Block(width)
        self.outlet = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.inlet(image)
        above = image.mean() > 0
        if not torch.jit.is_scripting():  # noqa: SIM102  the script compiler leaves out the whole block only like this
            if torch.compiler.is_exporting():
                return self.outlet(torch.cond(above, self.bright, self.dark, (x,)))
        return self.outlet(self.bright(x) if above else self.dark(x))


class Loop(nn.Module):
    """One block as many times as an input says; only TorchScript exports that without unrolling it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, width, 3, padding=1)
        self.step = Block(width)
        self.outlet = nn.Conv2d(width, 3, 1)

    def forward(self, image: Tensor, steps: Tensor) -> Tensor:
        x = self.inlet(image)
        for _ in range(int(steps)):
            x = self.step(x)
        return self.outlet(x)


@dataclass(frozen=True)
class ControlFlow:
    """A model, who can export it, and the module that then runs in the body of an If or a Loop."""

    build: Callable[[], Sample]
    exporters: tuple[Exporter, ...]
    body: str


def switch() -> Sample:
    model = fill(Switch(), gain=1.2)
    for sign in (1.0, -1.0):
        settle(model, noise("switch.batch", 8, 3, 24, 24) + 0.3 * sign)
    return Sample(model, (noise("switch.x", 2, 3, 24, 24) + 0.3,))


def loop() -> Sample:
    steps = torch.tensor(3)
    model = settle(fill(Loop(), gain=1.2), noise("loop.batch", 8, 3, 24, 24), steps)
    return Sample(model, (noise("loop.x", 2, 3, 24, 24), steps))


CONTROL_FLOW_MODELS: dict[str, ControlFlow] = {
    "switch": ControlFlow(switch, (Exporter.TORCHSCRIPT, Exporter.DYNAMO), "bright"),
    "loop": ControlFlow(loop, (Exporter.TORCHSCRIPT,), "step"),
}


def export(model: nn.Module, inputs: tuple[Tensor, ...], exporter: Exporter) -> onnx.ModelProto:
    """As `exports.export`, but scripted for TorchScript, so that the control flow stays."""
    if exporter is Exporter.DYNAMO:
        return exports.export(model, inputs, exporter)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(model)
    return exports.export(scripted, inputs, exporter)
