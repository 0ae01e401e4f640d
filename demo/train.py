"""Train the demo detector from scratch: `python -m demo.train`, about eight minutes on one core."""

from __future__ import annotations

import math
import time

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from demo.accuracy import measure_accuracy
from demo.detector import EARLIER_STATISTICS, WEIGHTS, Detect, Detector
from demo.loss import Targets, detection_loss
from demo.shapes import Scene, draw_scene

STEPS, BATCH = 2400, 32
EARLIER_STEP = 200
PEAK_RATE, WARM_UP_STEPS = 4e-3, 100
TRAIN_SEED, HELD_OUT_SEED, HELD_OUT_SCENES = 1, 2, 300


def main() -> None:
    """Train, save both files beside this one, and print what the detector finds on held-out pictures."""
    torch.manual_seed(TRAIN_SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(mode=True)
    detector = Detector()
    set_rare_object_prior(detector)
    train(detector)
    save_file(detector.state_dict(), WEIGHTS)
    rng = np.random.default_rng(HELD_OUT_SEED)
    scenes = [draw_scene(rng) for _ in range(HELD_OUT_SCENES)]
    for iou, confidence in ((0.5, 0.25), (0.5, 0.5), (0.7, 0.5)):
        accuracy = measure_accuracy(detector.eval(), scenes, iou, confidence)
        print(
            f"IoU {iou}, confidence {confidence}: precision {accuracy.precision:.3f}, recall {accuracy.recall:.3f}"
            f" over {accuracy.objects} objects"
        )


def train(detector: Detector) -> None:
    """Train the detector in place and save the BatchNorm statistics it has after `EARLIER_STEP` steps."""
    rng = np.random.default_rng(TRAIN_SEED)
    optimizer = torch.optim.AdamW(detector.parameters(), PEAK_RATE, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning_rate_factor)
    head = detector.model[-1]
    assert isinstance(head, Detect)
    start = time.monotonic()
    for step in range(STEPS):
        images, targets = batch_of([draw_scene(rng) for _ in range(BATCH)])
        loss = detection_loss(head, detector(images), targets)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if step + 1 == EARLIER_STEP:
            save_file(batchnorm_statistics(detector), EARLIER_STATISTICS)
        if step % 50 == 0 or step == STEPS - 1:
            print(f"step {step:4d}  loss {loss.item():.3f}  {time.monotonic() - start:.0f} s", flush=True)


def set_rare_object_prior(detector: Detector, probability: float = 0.01) -> None:
    """Set the head's objectness bias so that training starts from "objects are rare"."""
    head = detector.model[-1]
    assert isinstance(head, Detect)
    for conv in head.m:
        assert isinstance(conv, nn.Conv2d)
        assert conv.bias is not None
        conv.bias.data.view(3, -1)[:, 4] = math.log(probability / (1.0 - probability))


def learning_rate_factor(step: int) -> float:
    """Return the share of the peak rate at a step: a linear warm-up, then a cosine down to nothing."""
    if step < WARM_UP_STEPS:
        return (step + 1) / WARM_UP_STEPS
    return 0.5 * (1.0 + math.cos(math.pi * (step - WARM_UP_STEPS) / (STEPS - WARM_UP_STEPS)))


def batch_of(scenes: list[Scene]) -> tuple[Tensor, Targets]:
    """Return the scenes as one image batch (B, 3, H, W) and all their objects."""
    corners = torch.from_numpy(np.concatenate([scene.boxes for scene in scenes]))
    boxes = torch.cat(((corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]), 1)
    counts = torch.tensor([len(scene.boxes) for scene in scenes])
    image = torch.repeat_interleave(torch.arange(len(scenes)), counts)
    kind = torch.from_numpy(np.concatenate([scene.classes for scene in scenes]))
    return torch.from_numpy(np.stack([scene.image for scene in scenes])), Targets(image, kind, boxes)


def batchnorm_statistics(detector: Detector) -> dict[str, Tensor]:
    """Return copies of the running mean and variance of every BatchNorm, by buffer name."""
    names = ("running_mean", "running_var")
    return {name: buffer.clone() for name, buffer in detector.named_buffers() if name.endswith(names)}


if __name__ == "__main__":
    main()
