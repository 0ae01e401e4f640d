"""Outputs that were put together of parts of unlike size are judged part by part."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from layerdiff.capture import capture
from layerdiff.parts import limits_of_parts
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report


class Head(nn.Module):
    """Boxes in pixels and scores, joined and laid out as detectors do."""

    def __init__(self, scale: float = 1000.0) -> None:
        super().__init__()
        self.stem, self.head, self.scale = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 7, 1), scale

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(torch.relu(self.stem(x)))
        joined = torch.cat([found[:, :4].sigmoid() * self.scale, found[:, 4:].sigmoid()], 1)
        return torch.cat([joined.flatten(2), joined.flatten(2)], 2).permute(0, 2, 1)


@pytest.mark.parametrize("exporter", Exporter)
def test_scores_are_not_allowed_the_rounding_of_boxes(trace: Callable[..., Report], exporter: Exporter) -> None:
    model, x = fill(Head()), noise("parts", 1, 3, 12, 12)
    assert trace(model, export(model, (x,), exporter), x).agrees
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.head.bias[5] += 2e-3
    report = trace(model, export(changed, (x,), exporter), x)
    metrics = report.outputs[0].shipped
    assert metrics is not None
    assert metrics.max_abs < 1e-3
    assert not report.agrees
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "head"
    assert metrics.worst_index[2] == 5
    assert metrics.times_limit > 10
    assert 0.8 < metrics.within < 0.9  # one of seven


def test_each_element_of_a_joined_output_has_the_limit_of_its_part() -> None:
    model, x = fill(Head()), noise("parts", 1, 3, 12, 12)
    reference = capture(model, (x,), {})
    value = next(iter(reference.outputs.values()))
    limits = limits_of_parts(reference, value, {})
    assert limits is not None
    assert limits.shape == reference.values[value].shape
    assert np.ptp(limits[:, :, :4]) == 0
    assert np.ptp(limits[:, :, 4:]) == 0
    assert limits[0, 0, 0] > 500 * limits[0, 0, 4]
    alike = capture(fill(Head(scale=1.0)), (x,), {})
    assert limits_of_parts(alike, next(iter(alike.outputs.values())), {}) is None
