"""Convolution, pooling and padding: each attribute that can be wrong is named, with what it should be."""

from __future__ import annotations

from torch import nn

from tests.diagnose.edits import attributes, constant, export_of, operator
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, images, seeded
from tests.zoo.exports import Exporter

CONV = images("convolution", lambda: nn.Conv2d(8, 8, 3, padding=1))
GROUPS = images("groups", lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2))
OTHER_GROUPS = images("groups", lambda: nn.Conv2d(8, 8, 3, padding=1, groups=4))
UP = images("transposed", lambda: nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1))
MAX = images("max-pool", lambda: nn.MaxPool2d(3, 2, 1))
MAX_CEIL = images("max-pool-ceil", lambda: nn.MaxPool2d(3, 2, ceil_mode=True))
AVERAGE = images("average-pool", lambda: nn.AvgPool2d(3, 2, 1))
REFLECT = images("reflect", lambda: nn.ReflectionPad2d((1, 2, 3, 1)))
ZERO = images("zero", lambda: nn.ConstantPad2d((1, 2, 0, 1), 0.5))
EDGE = images("edge", lambda: nn.ReplicationPad2d(2))

FAULTS = (
    Seeded("strides", CONV, attributes("Conv", 1, strides=[2, 2]), "constant",
           "Conv has strides=[2, 2]; the model's is [1, 1].", {"wanted": [1, 1], "got": [2, 2]}),
    Seeded("dilations", CONV, attributes("Conv", 1, dilations=[2, 1]), "constant", evidence={"attribute": "dilations"}),
    Seeded("pads", CONV, attributes("Conv", 1, pads=[0, 1, 2, 1]), "padding",
           "Conv has pads=[0, 1, 2, 1]; the model's is [1, 1, 1, 1]."),
    Seeded("pads-missing", CONV, attributes("Conv", 1, pads=None), "padding", evidence={"got": None}),
    Seeded("pads-by-dynamo", CONV, attributes("Conv", 1, pads=[0, 2, 1, 1]), "padding", exporter=Exporter.DYNAMO),
    Seeded("auto-pad", CONV, attributes("Conv", 1, pads=None, auto_pad="VALID"), "padding"),
    Seeded("groups", GROUPS, export_of(OTHER_GROUPS), "constant", "group=4"),
    Seeded("pads-and-dilations", CONV, attributes("Conv", 1, pads=[2, 2, 2, 2], dilations=[2, 2]), "constant"),
    Seeded("transposed-pads", UP, attributes("ConvTranspose", pads=[0, 0, 2, 2]), "padding"),
    Seeded("output-padding", UP, attributes("ConvTranspose", output_padding=[0, 0]), "padding",
           evidence={"attribute": "output_padding"}),
    Seeded("max-pool-window", MAX, attributes("MaxPool", kernel_shape=[2, 3]), "pooling",
           evidence={"wanted": [3, 3], "got": [2, 3]}),
    Seeded("max-pool-strides", MAX, attributes("MaxPool", strides=[1, 1]), "pooling"),
    Seeded("max-pool-dilations", MAX, attributes("MaxPool", dilations=[2, 2]), "pooling"),
    Seeded("max-pool-pads", MAX, attributes("MaxPool", pads=[0, 0, 1, 1]), "pooling", "pads"),
    Seeded("max-pool-ceil", MAX_CEIL, attributes("MaxPool", ceil_mode=0), "pooling", "ceil_mode=0; the model's is 1"),
    Seeded("count-include-pad", AVERAGE, attributes("AveragePool", count_include_pad=0), "pooling",
           "count_include_pad=0; the model's is 1"),
    Seeded("average-for-max", MAX, operator("MaxPool", "AveragePool", kernel_shape=[3, 3], strides=[2, 2],
           pads=[1] * 4), "pooling", "AveragePool where the model computes MaxPool"),
    Seeded("max-for-average", AVERAGE, operator("AveragePool", "MaxPool", kernel_shape=[3, 3], strides=[2, 2],
           pads=[1] * 4), "pooling", "MaxPool where the model computes AveragePool"),
    Seeded("global-max", AVERAGE, operator("GlobalAveragePool", "GlobalMaxPool"), "pooling", layer="mean"),
    Seeded("pad-mode", REFLECT, attributes("Pad", mode="edge"), "padding", "mode=edge; the model's is reflect"),
    Seeded("pad-mode-constant", EDGE, attributes("Pad", mode="constant"), "padding", "the model's is edge"),
    Seeded("pad-sides", ZERO, constant("Pad", 1, lambda p: p[[4, 5, 6, 7, 0, 1, 2, 3]]), "padding"),
    Seeded("pad-value", ZERO, constant("Pad", 2, lambda value: value * 0), "padding"),
)  # fmt: skip


@seeded(FAULTS)
def test_what_is_wrong_with_a_window_is_named(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_window_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)
