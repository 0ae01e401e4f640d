"""Pooling, padding and resizing."""

from __future__ import annotations

import io
import warnings

import onnx
import torch
from onnx import helper
from torch import Tensor, nn
from torch.nn import functional

from tests.realfaults.case import Case, RealFault
from tests.realfaults.edit import constant_of, nodes_of, only, with_attributes, with_constant, with_nodes
from tests.realfaults.networks import Apply, images, ready, vision
from tests.zoo.exports import Exporter, export


def divisor_lost() -> Case:
    model = ready(vision(pool=nn.AvgPool2d(3, 2, 1, divisor_override=4)), images("divisor.batch", 8, 3, 24, 24))
    x = images("divisor", 2, 3, 24, 24)
    faulty = export(model, (x,), Exporter.DYNAMO)
    pool = only(faulty, "AveragePool")
    window = {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    scaled = [
        helper.make_node("AveragePool", pool.input, ["summed"], **window),
        helper.make_node("Mul", ["summed", "ratio"], pool.output),
    ]
    twin = with_nodes(faulty, pool.output, scaled, ratio=torch.tensor(9 / 4).numpy())
    return Case(model, (x,), faulty, twin)


class GlobalPool(nn.Module):
    """The mean over the whole map, with a kernel of the size that the map has."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, [int(size) for size in x.shape[2:]])


def kernel_baked() -> Case:
    model = vision()
    model.mean = GlobalPool()
    model = ready(model, images("kernel.batch", 8, 3, 24, 24))
    small, large = images("kernel", 2, 3, 16, 16), images("kernel", 2, 3, 24, 24)
    return Case(model, (large,), _exported_for_any_size(model, small), _exported_for_any_size(model, large))


def _exported_for_any_size(model: nn.Module, x: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        axes = {"image": {2: "height", 3: "width"}}
        torch.onnx.export(model, (x,), file, input_names=["image"], dynamic_axes=axes, opset_version=17, dynamo=False)
    return onnx.load_from_string(file.getvalue())


def pads_in_wrong_order() -> Case:
    middle = {"pad": nn.ZeroPad2d((2, 0, 0, 2)), "squash": nn.Tanh(), "conv": nn.Conv2d(8, 8, 3)}
    model = ready(vision(**middle), images("pads.batch", 8, 3, 24, 24))
    x = images("pads", 2, 3, 24, 24)
    twin = export(model, (x,), Exporter.DYNAMO)
    pads = only(twin, "Pad").input[1]
    _, _, top, left, _, _, bottom, right = constant_of(twin, pads).tolist()
    return Case(model, (x,), with_constant(twin, pads, [0, 0, left, top, 0, 0, right, bottom]), twin)


def resize_asymmetric() -> Case:
    up = Apply(lambda x: functional.interpolate(x, (20, 28), mode="bilinear"))
    model = ready(vision(up=up), images("resize.batch", 8, 3, 24, 24))
    x = images("resize", 2, 3, 24, 24)
    twin = export(model, (x,), Exporter.TORCHSCRIPT)
    assert len(nodes_of(twin, "Resize")) == 1
    return Case(model, (x,), with_attributes(twin, "Resize", coordinate_transformation_mode="asymmetric"), twin)


FAULTS = (
    RealFault(
        "avgpool-divisor",
        ("apache/tvm#14795", "pytorch/pytorch#105349"),
        "AvgPool2d's divisor_override is ignored: the sum is divided by the size of the window.",
        "convolutional classifier",
        "pool",
        frozenset({"pooling"}),
        divisor_lost,
        alive=True,
    ),
    RealFault(
        "global-pool-baked",
        ("pytorch/pytorch#39323",),
        "Tracing turns the size of the map, used as the kernel of a global average, into a constant; larger images are "
        "then pooled over their corner.",
        "convolutional classifier",
        "mean",
        frozenset({"baked-constant"}),
        kernel_baked,
        alive=True,
    ),
    RealFault(
        "pads-in-wrong-order",
        ("pytorch/pytorch#60179",),
        "The pads of F.pad are written for the wrong dimensions: those of the height for the width and back.",
        "convolutional classifier",
        "pad",
        frozenset({"padding"}),
        pads_in_wrong_order,
    ),
    RealFault(
        "resize-asymmetric",
        ("onnx/onnx#2535", "microsoft/onnxruntime#1179"),
        "Bilinear interpolation maps output pixels to corners instead of centres of input pixels.",
        "convolutional classifier",
        "up",
        frozenset({"resize"}),
        resize_asymmetric,
    ),
)
