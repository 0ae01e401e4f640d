"""Ready-made stages of the YOLOv5 family from the network to detections, and the whole pipeline."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.pipeline.boxes import BoxFormat, written_as
from layerdiff.pipeline.found import Detections
from layerdiff.pipeline.heads import Head, heads_of
from layerdiff.pipeline.nms import NmsSettings, candidates, suppress
from layerdiff.stages.images import Augment, Fit, Letterbox, Library, ReadImage, ToTensor, opencv

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    Array = NDArray[Any]
    Found = dict[str, Array]


@dataclass(frozen=True, slots=True)
class Network:
    """The first output of a torch module, or of an ONNX file in ONNX Runtime (OpenCV's DNN with `library` opencv)."""

    model: Any = field(metadata={"setting": False})
    library: Library = field(default=Library.TORCH, metadata={"setting": False})

    def __call__(self, batch: Array) -> Array:
        """The raw head for one batch."""
        if self.library is Library.OPENCV:
            return self._opencv(batch)
        if isinstance(self.model, (str, Path)):
            from layerdiff.backends import OnnxRuntime, Optimisation

            runner = OnnxRuntime().open(self.model, Optimisation.AS_SHIPPED)
            name = _first_input(self.model)
            found = next(iter(runner.run({name: batch}).values()))
            assert found is not None
            return np.asarray(found)
        import torch

        held = self.model.parameters() if isinstance(self.model, torch.nn.Module) else ()
        device = next((parameter.device for parameter in held), "cpu")
        with torch.no_grad():
            out = self.model(torch.from_numpy(batch).to(device))
        return np.asarray((out[0] if isinstance(out, (list, tuple)) else out).cpu().numpy())

    def _opencv(self, batch: Array) -> Array:
        network = opencv().dnn.readNetFromONNX(str(self.model))
        network.setInput(batch)
        return np.asarray(network.forward())


def _first_input(path: str | Path) -> str:
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    return str(next(port.name for port in graph.input if port.name not in stored))


@dataclass(frozen=True, slots=True)
class DecodeHead:
    """A head of YOLOv5 or YOLOv8 as corners (n, 4) in pixels of the network's input, and class scores (n, c)."""

    def __call__(self, raw: Array) -> Found:
        """All boxes of one image."""
        head = heads_of(np.asarray(raw), "head")[0]
        return {"boxes": head.boxes, "scores": head.scores}


@dataclass(frozen=True, slots=True)
class Confident:
    """The boxes above a confidence, most confident first, of their best class or (`multi_label`) of each class."""

    conf: float = 0.25
    multi_label: bool = False

    def __call__(self, found: Found) -> Found:
        """Boxes (n, 4), scores (n,), classes (n,)."""
        head = Head(found["boxes"], None, found["scores"])
        return _parts(candidates(head, multi_label=self.multi_label, least=self.conf))


@dataclass(frozen=True, slots=True)
class Suppress:
    """Greedy non-maximum suppression, per class or not, of at most `max_det` boxes.

    NumPy and torch follow YOLOv5's formulas; `library` opencv calls ``cv2.dnn.NMSBoxes``.
    """

    iou: float = 0.45
    agnostic: bool = False
    max_det: int | None = 300
    library: Library = field(default=Library.NUMPY, metadata={"setting": False})

    def __call__(self, found: Found) -> Found:
        """What is left, most confident first."""
        if self.library is Library.NUMPY or not len(found["scores"]):
            boxes = Detections(found["boxes"], found["scores"], found["classes"])
            settings = NmsSettings(-1.0, self.iou, self.max_det, self.agnostic)
            return _parts(suppress(boxes, settings))
        kept = self._torch(found) if self.library is Library.TORCH else self._opencv(found)
        return {name: part[kept] for name, part in found.items()}

    def _torch(self, found: Found) -> Array:
        import torch

        boxes = torch.from_numpy(np.ascontiguousarray(found["boxes"]))
        kinds = torch.from_numpy(np.ascontiguousarray(found["classes"]))
        waiting = torch.argsort(torch.from_numpy(np.ascontiguousarray(found["scores"])), descending=True, stable=True)
        kept: list[int] = []
        while len(waiting) and (self.max_det is None or len(kept) < self.max_det):
            best, rest = waiting[0], waiting[1:]
            kept.append(int(best))
            low = torch.maximum(boxes[best, :2], boxes[rest, :2])
            high = torch.minimum(boxes[best, 2:], boxes[rest, 2:])
            shared = (high - low).clamp(min=0).prod(1)
            areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
            iou = shared / (areas[best] + areas[rest] - shared)
            stays = ~(iou > self.iou)
            waiting = rest[stays if self.agnostic else stays | (kinds[rest] != kinds[best])]
        return np.asarray(kept, np.intp)

    def _opencv(self, found: Found) -> Array:
        cv2 = opencv()
        corner = written_as(found["boxes"], BoxFormat.LTWH).tolist()
        scores = [float(score) for score in found["scores"]]
        if self.agnostic:
            kept = cv2.dnn.NMSBoxes(corner, scores, 0.0, self.iou)
        else:
            kept = cv2.dnn.NMSBoxesBatched(corner, scores, [int(c) for c in found["classes"]], 0.0, self.iou)
        order = np.asarray(kept, np.intp).reshape(-1)
        order = order[np.argsort(-found["scores"][order], kind="stable")]
        return np.asarray(order[: self.max_det])


@dataclass(frozen=True, slots=True)
class ScaleBack:
    """Boxes in pixels of the image: the letterbox (or the stretch) undone, clipped to the image."""

    fit: Fit = Fit.LETTERBOX
    undo: bool = True

    def __call__(self, found: Found, seen: Mapping[str, Any]) -> Found:
        """The same detections in other coordinates; `seen` holds the stages ``decoded`` and ``resized``."""
        if not self.undo:
            return found
        height, width = seen["decoded"].shape[:2]
        inner_height, inner_width = seen["resized"].shape[:2]
        gain = np.array([inner_width / width, inner_height / height])
        gain = gain if self.fit is Fit.STRETCH else np.full(2, gain.min())
        pad = (np.array([inner_width, inner_height]) - np.array([width, height]) * gain) / 2
        pad = np.zeros(2) if self.fit is Fit.STRETCH else pad
        boxes = (found["boxes"] - np.tile(pad, 2)) / np.tile(gain, 2)
        return {**found, "boxes": np.clip(boxes, 0, [width, height, width, height])}


def _parts(found: Detections) -> Found:
    return {"boxes": found.boxes, "scores": found.scores, "classes": found.classes}


def yolov5_stages(
    model: Any, nms: NmsSettings | None = None, *, image_size: int = 640, library: Library | str = Library.NUMPY
) -> dict[str, Callable[..., Any]]:
    """The stages of a YOLOv5 detector from an image to its detections, by name and in order.

    decoded, resized, augmented, tensor, head, boxes, filtered, suppressed, final. `model` is a torch module or the path
    of an ONNX file, which runs in ONNX Runtime, or in OpenCV's DNN with `library` "opencv". NumPy, torch or OpenCV also
    resizes and suppresses. Stages are frozen dataclasses: change one with ``dataclasses.replace``, or put a function of
    your own in its place.
    """
    chosen, settings = Library(library), nms or NmsSettings()
    reader = ReadImage(Library.OPENCV, bgr=True) if chosen is Library.OPENCV else ReadImage(Library.NUMPY)
    return {
        "decoded": reader,
        "resized": Letterbox(image_size, library=chosen),
        "augmented": Augment(),
        "tensor": ToTensor(swap_channels=chosen is Library.OPENCV),
        "head": Network(model, chosen),
        "boxes": DecodeHead(),
        "filtered": Confident(settings.conf, settings.multi_label),
        "suppressed": Suppress(settings.iou, settings.agnostic, settings.max_det, chosen),
        "final": ScaleBack(),
    }
