"""Pipelines compared stage by stage, ready-made stages of the YOLOv5 family, and deeper looks at a detector."""

from layerdiff.pipeline.nms import NmsSettings
from layerdiff.stages.anchors import AnchorCheck, check_anchors
from layerdiff.stages.feature_maps import plot_feature_maps
from layerdiff.stages.images import Augment, Fit, Letterbox, Library, ReadImage, ToTensor
from layerdiff.stages.precision import PrecisionStudy, precision_study
from layerdiff.stages.yolo import Confident, DecodeHead, Network, ScaleBack, Suppress, yolov5_stages

__all__ = [
    "AnchorCheck",
    "Augment",
    "Confident",
    "DecodeHead",
    "Fit",
    "Letterbox",
    "Library",
    "Network",
    "NmsSettings",
    "PrecisionStudy",
    "ReadImage",
    "ScaleBack",
    "Suppress",
    "ToTensor",
    "check_anchors",
    "plot_feature_maps",
    "precision_study",
    "yolov5_stages",
]
