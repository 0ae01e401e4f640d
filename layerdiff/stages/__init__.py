"""Two pipelines from image to detections, compared stage by stage; ready-made stages of the YOLOv5 family."""

from layerdiff.pipeline.nms import NmsSettings
from layerdiff.stages.images import Augment, Fit, Letterbox, Library, ReadImage, ToTensor
from layerdiff.stages.yolo import Confident, DecodeHead, Network, ScaleBack, Suppress, yolov5_stages

__all__ = [
    "Augment",
    "Confident",
    "DecodeHead",
    "Fit",
    "Letterbox",
    "Library",
    "Network",
    "NmsSettings",
    "ReadImage",
    "ScaleBack",
    "Suppress",
    "ToTensor",
    "yolov5_stages",
]
