"""Resizing: every mode and rule of ONNX's Resize that PyTorch does not mean is named."""

from __future__ import annotations

from torch import nn

from tests.diagnose.edits import attributes
from tests.diagnose.seeded import Network, Seeded, check, check_quiet, healthy_files, images, seeded
from tests.zoo.exports import Exporter

NEAREST = images("nearest", lambda: nn.Upsample(scale_factor=1.7, mode="nearest"))
LINEAR = images("bilinear", lambda: nn.Upsample(size=(17, 13), mode="bilinear"))
CORNERS = images("corners", lambda: nn.Upsample(size=(17, 13), mode="bilinear", align_corners=True))
CUBIC = images("bicubic", lambda: nn.Upsample(size=(17, 13), mode="bicubic"))

OF = {"asymmetric": NEAREST, "pytorch_half_pixel": LINEAR, "half_pixel": LINEAR, "align_corners": CORNERS}
MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")


def other_rule(network: Network, right: str, wrong: str) -> Seeded:
    return Seeded(
        f"{network.name}-{right}-as-{wrong}",
        network,
        attributes("Resize", coordinate_transformation_mode=wrong),
        "resize",
        f"coordinate_transformation_mode={wrong}",
        {"wanted": right, "got": wrong},
    )


FAULTS = (
    *(other_rule(NEAREST, "asymmetric", wrong) for wrong in ("half_pixel", "pytorch_half_pixel", "align_corners")),
    # Both half pixel rules are one where nothing shrinks to a single pixel.
    *(other_rule(LINEAR, "half_pixel", wrong) for wrong in ("align_corners", "asymmetric")),
    *(other_rule(CORNERS, "align_corners", wrong) for wrong in ("half_pixel", "pytorch_half_pixel", "asymmetric")),
    *(other_rule(CUBIC, "half_pixel", wrong) for wrong in ("align_corners", "asymmetric")),
    *(
        Seeded(f"nearest-by-{mode}", NEAREST, attributes("Resize", nearest_mode=mode), "resize",
               f"nearest_mode={mode}; the model's is floor")
        for mode in ("ceil", "round_prefer_floor", "round_prefer_ceil")
    ),
    Seeded("cubic-coefficient", CUBIC, attributes("Resize", cubic_coeff_a=-0.5), "resize",
           "cubic_coeff_a=-0.5; the model's is -0.75", {"attribute": "cubic_coeff_a"}),
    Seeded("exclude-outside", CUBIC, attributes("Resize", exclude_outside=1), "resize", "exclude_outside=1"),
    Seeded("linear-for-cubic", CUBIC, attributes("Resize", mode="linear"), "resize", "mode=linear"),
    Seeded("nearest-for-linear", LINEAR, attributes("Resize", mode="nearest"), "resize", "mode=nearest"),
    Seeded("linear-for-nearest", NEAREST, attributes("Resize", mode="linear"), "resize", "mode=linear"),
    Seeded("rule-and-rounding", NEAREST, attributes("Resize", nearest_mode="round_prefer_floor",
           coordinate_transformation_mode="half_pixel"), "resize"),
    Seeded("by-dynamo", CORNERS, attributes("Resize", coordinate_transformation_mode="half_pixel"), "resize",
           exporter=Exporter.DYNAMO),
)  # fmt: skip


@seeded(FAULTS)
def test_the_rule_that_a_resize_does_not_follow_is_named(fault: Seeded) -> None:
    check(fault)


@healthy_files(FAULTS)
def test_a_healthy_resize_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)
