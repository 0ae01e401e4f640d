"""MobileNetV3-like: inverted residuals with depthwise convolutions, squeeze-and-excite and hardswish."""

from __future__ import annotations

from torch import Tensor, nn

from tests.zoo.sample import Sample
from tests.zoo.weights import fill, noise, settle


class ConvNorm(nn.Sequential):
    def __init__(self, inside: int, outside: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outside, eps=1e-3),
        )


class SqueezeExcite(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(width, width // 2, 1)
        self.activation = nn.ReLU()
        self.fc2 = nn.Conv2d(width // 2, width, 1)
        self.scale_activation = nn.Hardsigmoid()

    def gate(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.gate(x, self.scale_activation(scale))


class InvertedResidual(nn.Module):
    def __init__(self, inside: int, outside: int, *, kernel: int, stride: int, squeeze: bool) -> None:
        super().__init__()
        hidden = 2 * inside
        activation = nn.Hardswish if squeeze else nn.ReLU6
        self.expand = ConvNorm(inside, hidden, kernel=1)
        self.act1 = activation()
        self.depthwise = ConvNorm(hidden, hidden, kernel=kernel, stride=stride, groups=hidden)
        self.act2 = activation()
        self.squeeze = SqueezeExcite(hidden) if squeeze else nn.Identity()
        self.project = ConvNorm(hidden, outside, kernel=1)
        self.residual = stride == 1 and inside == outside

    def join(self, x: Tensor, branch: Tensor) -> Tensor:
        return x + branch

    def forward(self, x: Tensor) -> Tensor:
        branch = self.act2(self.depthwise(self.act1(self.expand(x))))
        branch = self.project(self.squeeze(branch))
        return self.join(x, branch) if self.residual else branch


class MobileNet(nn.Module):
    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, 16, stride=2), nn.Hardswish())
        self.blocks = nn.Sequential(
            InvertedResidual(16, 16, kernel=3, stride=1, squeeze=True),
            InvertedResidual(16, 24, kernel=3, stride=2, squeeze=False),
            InvertedResidual(24, 24, kernel=3, stride=1, squeeze=False),
            InvertedResidual(24, 32, kernel=5, stride=2, squeeze=True),
            InvertedResidual(32, 32, kernel=5, stride=1, squeeze=True),
        )
        self.last = nn.Sequential(ConvNorm(32, 64, kernel=1), nn.Hardswish())
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Linear(64, 48), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(48, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.blocks(self.stem(x)))
        return self.classifier(self.avgpool(x).flatten(1))


def mobilenet() -> Sample:
    model = settle(fill(MobileNet(), gain=1.4), noise("mobilenet.batch", 8, 3, 48, 48))
    return Sample(model, (noise("mobilenet.x", 2, 3, 48, 48),))
