"""The YOLO loss: CIoU of matched boxes, objectness towards that IoU, and a score per class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from torch.nn.functional import one_hot

from demo.detector import ANCHORS, STRIDES

if TYPE_CHECKING:
    from demo.detector import Detect

# An anchor takes an object whose sides are at most this many times longer or shorter.
ANCHOR_RATIO = 2.5
BOX_WEIGHT, OBJECT_WEIGHT, CLASS_WEIGHT = 1.0, 1.0, 0.5
# The finest grid has 16 times the cells of the coarsest, so its mean objectness loss counts for more.
LEVEL_WEIGHTS = (4.0, 1.0, 0.4)


@dataclass(frozen=True, slots=True)
class Targets:
    """All objects of a batch: image index (n,), class (n,), boxes (n, 4) as centre x, y, width, height in pixels."""

    image: Tensor
    kind: Tensor
    boxes: Tensor


@dataclass(frozen=True, slots=True)
class Matches:
    """The cells of one scale that answer for an object: index tensors (m,), with `target` the object's row."""

    target: Tensor
    anchor: Tensor
    row: Tensor
    column: Tensor


def detection_loss(head: Detect, logits: list[Tensor], targets: Targets) -> Tensor:
    """Return the mean loss of a batch, a scalar, from the head's logits of all scales."""
    total = logits[0].new_zeros(())
    for level, raw in enumerate(logits):
        matches = match(level, raw.shape[2], targets)
        cells = (targets.image[matches.target], matches.anchor, matches.row, matches.column)
        wanted = torch.zeros_like(raw[..., 4])
        if len(matches.target):
            iou = complete_iou(head.decode(level, raw)[..., :4][cells], targets.boxes[matches.target])
            wanted[cells] = iou.detach().clamp(min=0.0)
            classes = one_hot(targets.kind[matches.target], raw.shape[-1] - 5).to(raw.dtype)
            total = total + BOX_WEIGHT * (1.0 - iou).mean() + CLASS_WEIGHT * bce(raw[cells][:, 5:], classes)
        total = total + OBJECT_WEIGHT * LEVEL_WEIGHTS[level] * bce(raw[..., 4], wanted)
    return total


def match(level: int, size: int, targets: Targets) -> Matches:
    """Return the cells of one scale that should find each object: its own and the nearer neighbour on either axis."""
    anchors = torch.tensor(ANCHORS[level])
    ratio = targets.boxes[:, None, 2:] / anchors
    target, anchor = torch.nonzero(torch.maximum(ratio, 1.0 / ratio).amax(2) < ANCHOR_RATIO, as_tuple=True)
    centre = targets.boxes[target, :2] / STRIDES[level]
    own = centre.floor().long()
    step = torch.where(centre - own < 0.5, -1, 1)
    axes = torch.tensor([[0, 0], [1, 0], [0, 1]])
    column, row = (own + axes[:, None] * step).flatten(0, 1).T
    inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
    return Matches(target.repeat(3)[inside], anchor.repeat(3)[inside], row[inside], column[inside])


def complete_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the complete IoU (m,) of boxes (m, 4) given as centre and size (Zheng et al. 2020, arXiv:1911.08287)."""
    low1, high1 = first[:, :2] - first[:, 2:] / 2, first[:, :2] + first[:, 2:] / 2
    low2, high2 = second[:, :2] - second[:, 2:] / 2, second[:, :2] + second[:, 2:] / 2
    overlap = (torch.minimum(high1, high2) - torch.maximum(low1, low2)).clamp(min=0.0).prod(1)
    iou = overlap / (first[:, 2:].prod(1) + second[:, 2:].prod(1) - overlap + 1e-7)
    diagonal = (torch.maximum(high1, high2) - torch.minimum(low1, low2)).square().sum(1) + 1e-7
    distance = (first[:, :2] - second[:, :2]).square().sum(1)
    shape = 4 / math.pi**2 * (torch.atan(second[:, 2] / second[:, 3]) - torch.atan(first[:, 2] / first[:, 3])).square()
    weight = (shape / (1.0 - iou + shape + 1e-7)).detach()
    return iou - distance / diagonal - weight * shape
