"""A small graph in double precision: convolutions of every geometry, computed without setting out their input."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from onnx import helper
from torch.nn import functional

from layerdiff import double
from layerdiff.double import in_double
from tests.conftest import graph_of
from tests.zoo.weights import noise

GEOMETRIES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "plain": ((2, 3, 9, 11), (4, 3, 3, 3), {}),
    "padded more than it is wide": ((1, 2, 2, 3), (2, 2, 3, 3), {"padding": 4}),
    "strided, dilated, in groups": ((2, 6, 14, 13), (4, 3, 3, 2), {"stride": (3, 2), "dilation": (2, 3), "groups": 2}),
    "depthwise": ((1, 8, 7, 7), (8, 1, 3, 3), {"groups": 8, "padding": 1}),
    "along one axis": ((2, 3, 20), (5, 3, 4), {"padding": 2, "stride": 2}),
    "along three axes": ((1, 2, 5, 6, 7), (3, 2, 2, 3, 1), {"padding": (1, 0, 2)}),
}


def _model(kernel: tuple[int, ...], rank: int, settings: dict[str, Any]) -> Any:
    axes = len(kernel)
    wide = {k: [v] * axes if isinstance(v, int) else list(v) for k, v in settings.items() if k != "groups"}
    names = {"stride": "strides", "dilation": "dilations"}
    attributes: dict[str, Any] = {names[k]: v for k, v in wide.items() if k in names}
    attributes |= {"pads": wide["padding"] * 2} if "padding" in wide else {}
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=settings.get("groups", 1), **attributes)
    return graph_of([node], {"x": (None,) * rank, "w": (None,) * rank, "b": (None,)}, ["y"])


@pytest.mark.parametrize("rows", [1, 64 << 20])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_convolution_of_any_geometry_is_that_of_torch_in_double_precision(
    name: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(double, "MOST", rows)
    shape, weights, settings = GEOMETRIES[name]
    x, w, b = noise("x", *shape), noise("w", *weights), noise("b", weights[0])
    convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[len(shape) - 3]
    found = in_double(_model(weights[2:], len(shape), settings), {"x": x.numpy(), "w": w.numpy(), "b": b.numpy()})
    assert found is not None
    np.testing.assert_allclose(found, convolve(x.double(), w.double(), b.double(), **settings).numpy(), atol=1e-12)


def test_padding_by_size_is_worked_out_by_the_evaluator() -> None:
    x, w = noise("x", 1, 2, 8, 8), noise("w", 3, 2, 3, 3)
    node = helper.make_node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER")
    model = graph_of([node], {"x": (1, 2, 8, 8), "w": (3, 2, 3, 3)}, ["y"])
    found = in_double(model, {"x": x.numpy(), "w": w.numpy()})
    assert found is not None
    np.testing.assert_allclose(found, functional.conv2d(x.double(), w.double(), padding=1).numpy(), atol=1e-12)


def test_a_convolution_takes_little_more_than_its_input_and_output() -> None:
    x, w = torch.rand(1, 32, 128, 128).numpy(), torch.rand(32, 32, 3, 3).numpy()
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    model = graph_of([node], {"x": x.shape, "w": w.shape}, ["y"])
    tracemalloc.start()
    try:
        assert in_double(model, {"x": x, "w": w}) is not None
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    both = 2 * x.size * 8
    assert peak < 3.5 * both  # set out for every position of the kernel it is 18 times the input alone
