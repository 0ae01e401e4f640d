"""Small deterministic networks of the shapes people export."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.zoo.attention import gpt, vit
from tests.zoo.dense import densenet
from tests.zoo.detector import yolo
from tests.zoo.mobile import mobilenet
from tests.zoo.pretrained_shapes import bert, llama
from tests.zoo.recurrent import speech
from tests.zoo.repeated import refiner
from tests.zoo.residual import resnet
from tests.zoo.sample import Sample
from tests.zoo.segmenter import unet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["MODELS", "Sample"]

MODELS: dict[str, Callable[[], Sample]] = {
    "resnet": resnet,
    "mobilenet": mobilenet,
    "yolo": yolo,
    "unet": unet,
    "vit": vit,
    "gpt": gpt,
    "densenet": densenet,
    "speech": speech,
    "refiner": refiner,
    "bert": bert,
    "llama": llama,
}
