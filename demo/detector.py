"""The demo detector: YOLOv5's layout of 25 numbered layers, half as wide as YOLOv5n."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from demo.blocks import C3, SPPF, Concat, Conv
from demo.shapes import CLASSES, IMAGE_SIZE, draw_scene

WEIGHTS = Path(__file__).with_name("weights.safetensors")
# Only the BatchNorm statistics, of a checkpoint early in the same training.
EARLIER_STATISTICS = Path(__file__).with_name("earlier_statistics.safetensors")
STRIDES = (8, 16, 32)
# Width and height in pixels, three per stride; the shapes are nearly square, so the anchors differ mostly in size.
ANCHORS = (
    ((16.0, 16.0), (20.0, 23.0), (27.0, 25.0)),
    ((31.0, 35.0), (40.0, 37.0), (45.0, 50.0)),
    ((55.0, 52.0), (60.0, 66.0), (75.0, 71.0)),
)
# Chosen among 300 for five objects that are all found, and that the bad export visibly gets wrong.
EXAMPLE_SEED = 5221
# Where a layer reads anything but the layer before it (-1).
SOURCES = {12: (-1, 6), 16: (-1, 4), 19: (-1, 14), 22: (-1, 10), 24: (17, 20, 23)}


class Detect(nn.Module):
    """One 1x1 convolution per scale, and the decode of its output into boxes in pixels."""

    def __init__(self, channels: tuple[int, ...], image_size: int) -> None:
        super().__init__()
        self.outputs = 5 + len(CLASSES)
        self.m = nn.ModuleList(nn.Conv2d(c, 3 * self.outputs, 1) for c in channels)
        for level, (stride, anchors) in enumerate(zip(STRIDES, ANCHORS, strict=True)):
            cells = torch.arange(image_size // stride, dtype=torch.float32)
            y, x = torch.meshgrid(cells, cells, indexing="ij")
            # Not persistent: they follow from the constants above and would only swell the weights.
            self.register_buffer(f"grid{level}", torch.stack((x, y), 2), persistent=False)
            self.register_buffer(f"anchors{level}", torch.tensor(anchors).reshape(3, 1, 1, 2), persistent=False)

    def forward(self, maps: list[Tensor]) -> Tensor | list[Tensor]:
        """Return (B, N, 5 + classes) in eval mode: x, y, w, h in pixels, objectness, class scores.

        In training mode: one (B, 3, H, W, 5 + classes) tensor of logits per scale.
        """
        logits = [
            conv(x).unflatten(1, (3, self.outputs)).permute(0, 1, 3, 4, 2).contiguous()
            for conv, x in zip(self.m, maps, strict=True)
        ]
        if self.training:
            return logits
        return torch.cat([self.decode(level, x).flatten(1, 3) for level, x in enumerate(logits)], 1)

    def decode(self, level: int, logits: Tensor) -> Tensor:
        """Return the (B, 3, H, W, 5 + classes) logits of one scale as boxes in pixels and scores."""
        y = logits.sigmoid()
        xy = (y[..., 0:2] * 2.0 - 0.5 + self.get_buffer(f"grid{level}")) * STRIDES[level]
        wh = (y[..., 2:4] * 2.0) ** 2 * self.get_buffer(f"anchors{level}")
        return torch.cat((xy, wh, y[..., 4:]), -1)


class Detector(nn.Module):
    """Backbone, FPN/PAN neck and head in one numbered list, as in YOLOv5: `model.13.cv1.bn` is in the neck."""

    def __init__(self, width: int = 8, image_size: int = IMAGE_SIZE) -> None:
        super().__init__()
        w1, w2, w3, w4, w5 = (width * 2**i for i in range(5))
        backbone = [
            *(Conv(3, w1, 6, 2), Conv(w1, w2, 3, 2), C3(w2, w2), Conv(w2, w3, 3, 2), C3(w3, w3, 2)),
            *(Conv(w3, w4, 3, 2), C3(w4, w4, 3), Conv(w4, w5, 3, 2), C3(w5, w5), SPPF(w5, w5)),
        ]
        top_down = [
            *(Conv(w5, w4), nn.Upsample(scale_factor=2.0, mode="nearest"), Concat(), C3(2 * w4, w4, shortcut=False)),
            *(Conv(w4, w3), nn.Upsample(scale_factor=2.0, mode="nearest"), Concat(), C3(2 * w3, w3, shortcut=False)),
        ]
        bottom_up = [
            *(Conv(w3, w3, 3, 2), Concat(), C3(2 * w3, w4, shortcut=False)),
            *(Conv(w4, w4, 3, 2), Concat(), C3(2 * w4, w5, shortcut=False)),
        ]
        self.model = nn.ModuleList([*backbone, *top_down, *bottom_up, Detect((w3, w4, w5), image_size)])

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        """Return what `Detect` makes of images (B, 3, H, W) in [0, 1]."""
        outputs: list[Tensor] = []
        x = images
        for index, layer in enumerate(self.model):
            sources = SOURCES.get(index)
            x = layer(x if sources is None else [outputs[source] for source in sources])
            outputs.append(x)
        return x


def load() -> Detector:
    """Return the trained detector in eval mode."""
    detector = Detector()
    detector.load_state_dict(load_file(WEIGHTS))
    return detector.eval()


def example_images() -> Tensor:
    """Return one drawn picture as a (1, 3, H, W) float32 batch; it was never trained on."""
    return torch.from_numpy(draw_scene(np.random.default_rng(EXAMPLE_SEED)).image[None])
