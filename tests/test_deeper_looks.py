"""Anchors, feature maps and the precision of layers, on the trained demo detector."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn
from torch.ao.quantization import QConfigMapping, get_default_qconfig
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import layerdiff
from demo.detector import ANCHORS, STRIDES, load
from demo.exports import bad_export, good_export
from demo.shapes import draw_scene
from layerdiff import InputError
from layerdiff.stages import check_anchors, plot_feature_maps, precision_study

if TYPE_CHECKING:
    from pathlib import Path

    from layerdiff.report import Report

SCENES = [draw_scene(np.random.default_rng(seed)) for seed in range(5221, 5224)]
IMAGES = [torch.from_numpy(scene.image[None]) for scene in SCENES]
LABELS = [{"boxes": scene.boxes, "labels": scene.classes} for scene in SCENES]


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return good_export(folder), bad_export(folder)


@pytest.fixture(scope="module")
def report(exports: tuple[Path, Path]) -> Report:
    return layerdiff.trace(load(), exports[1], IMAGES[0], progress=False)


# Anchors


def test_the_anchors_of_a_good_export_are_found_with_their_strides(exports: tuple[Path, Path]) -> None:
    found = check_anchors(load(), exports[0], labels=LABELS)
    assert found.agrees
    assert [level.stride for level in found.actual] == list(STRIDES)
    assert np.allclose([level.anchors for level in found.actual], ANCHORS)
    assert found.actual_recall.best_possible > 0.99
    assert found.actual_recall == found.expected_recall


def _with_anchors(path: Path, change: dict[int, np.ndarray]) -> onnx.ModelProto:
    """The export with other anchors at some levels."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        for level, anchors in enumerate(ANCHORS):
            if level in change and array.size == 6 and np.allclose(array.reshape(-1, 2), anchors):
                fresh = np.asarray(change[level], np.float32).reshape(array.shape)
                tensor.CopyFrom(numpy_helper.from_array(fresh, tensor.name))
                break
    return model


def test_anchors_in_another_order_of_strides_are_told(exports: tuple[Path, Path]) -> None:
    turned = _with_anchors(exports[0], {0: np.array(ANCHORS[2]), 2: np.array(ANCHORS[0])})
    found = check_anchors(load(), turned, labels=LABELS)
    assert not found.agrees
    assert "another order of strides: the file's scales hold those of scales [2, 1, 0]" in found.verdict
    assert "do not grow with the stride" in found.verdict


def test_anchors_that_were_scaled_are_told_with_the_factor_and_what_it_costs(exports: tuple[Path, Path]) -> None:
    scaled = _with_anchors(exports[0], {n: np.array(a) / 8 for n, a in enumerate(ANCHORS)})
    found = check_anchors(load(), scaled, labels=LABELS)
    assert "0.125 times as large" in found.verdict
    assert found.actual_recall.best_possible < found.expected_recall.best_possible


def test_anchors_in_strides_are_read_as_yolov5_keeps_them(exports: tuple[Path, Path]) -> None:
    class Detect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stride = torch.tensor(STRIDES)
            pixels = torch.tensor(ANCHORS)
            self.register_buffer("anchors", pixels / self.stride.reshape(3, 1, 1))

    assert check_anchors(Detect(), exports[0]).agrees
    assert check_anchors(np.array(ANCHORS), exports[0]).agrees
    assert not check_anchors(np.array(ANCHORS)[:2], exports[0]).agrees


def test_what_has_no_anchors_is_told(exports: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="no module of it holds anchors"):
        check_anchors(nn.Linear(2, 2), exports[0])
    with pytest.raises(InputError, match="levels, anchors, 2"):
        check_anchors(np.zeros(3), exports[0])
    with pytest.raises(InputError, match="no box has a width"):
        check_anchors(load(), exports[0], labels=np.zeros((3, 2)))
    with pytest.raises(InputError, match="image_size"):
        check_anchors(load(), exports[0], labels=np.full((3, 2), 0.5))
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    ports = [onnx.helper.make_tensor_value_info(name, 1, [1, 2]) for name in "xy"]
    bare = onnx.helper.make_model(onnx.helper.make_graph([node], "g", ports[:1], ports[1:]))
    with pytest.raises(InputError, match="no constant in it"):
        check_anchors(load(), bare)


# Feature maps


def test_feature_maps_of_an_accused_layer_show_both_sides_and_the_difference(report: Report, tmp_path: Path) -> None:
    figure = plot_feature_maps(report, "model.18.bn", channels=4, path=tmp_path / "maps.png")
    images = [axis.images[0].get_array() for axis in figure.axes]
    assert len(images) == 12
    assert np.allclose(np.asarray(images[4]) - np.asarray(images[0]), np.asarray(images[8]), atol=1e-5)
    assert np.abs(images[8]).max() > 1
    assert (tmp_path / "maps.png").stat().st_size > 5000


def test_feature_maps_of_a_healthy_layer_differ_by_rounding(report: Report) -> None:
    figure = plot_feature_maps(report, "model.2", channels=1)
    assert np.abs(figure.axes[2].images[0].get_array()).max() < 1e-4


def test_feature_maps_that_cannot_be_drawn_say_why(report: Report) -> None:
    with pytest.raises(InputError, match="none of that name"):
        plot_feature_maps(report, "nowhere")
    with pytest.raises(InputError, match="was not compared"):
        plot_feature_maps(report, "model.18.conv")
    with pytest.raises(InputError, match="trace again"):
        plot_feature_maps(copy.deepcopy(report), "model.18.bn")


# Precision


@pytest.fixture(scope="module")
def quantised(exports: tuple[Path, Path]) -> Path:
    """The good export with eight-bit weights and activations, calibrated on the test's own pictures."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Pictures(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter([{"images": image.numpy()} for image in IMAGES])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.left, None)

    path = exports[0].with_name("quantised.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantize_static(exports[0], path, Pictures(), activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
    return path


def test_a_quantised_file_gets_its_layers_ranked_with_what_each_costs(quantised: Path, tmp_path: Path) -> None:
    study = precision_study(load(), quantised, IMAGES[:1])
    assert study.ap_reference == pytest.approx(1)
    assert study.ap < 1
    levels = [layer.introduced_db for layer in study.layers]
    assert levels == sorted(levels)
    tried = [layer for layer in study.layers if layer.ap_healed is not None]
    assert tried
    assert "AP" in study.verdict
    assert study.to_frame().shape[0] == len(study.layers)
    study.plot(tmp_path / "study.png")
    assert (tmp_path / "study.png").is_file()


def test_healing_the_broken_layer_brings_the_precision_back(exports: tuple[Path, Path]) -> None:
    study = precision_study(load(), exports[1], IMAGES[:2], labels=LABELS[:2])
    assert study.layers[0].layer == "model.18.bn"
    assert study.ap < study.ap_reference
    assert study.layers[0].ap_healed == pytest.approx(study.ap_reference, abs=1e-6)
    assert "model.18.bn costs most" in study.verdict


class OneScale(nn.Module):
    """A head of one scale with one class: enough of a detector to be quantised in a moment."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.act, self.conv = nn.Conv2d(3, 8, 8, 8), nn.ReLU(), nn.Conv2d(8, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(self.act(self.stem(x))).flatten(2).transpose(1, 2).sigmoid()
        return torch.cat([y[..., :4] * 100.0, y[..., 4:] * 1.0], -1)


@pytest.mark.parametrize("loaded", [False, True], ids=["traced", "saved and loaded"])
def test_a_quantised_torchscript_model_is_studied_like_a_file(tmp_path: Path, *, loaded: bool) -> None:
    model = OneScale().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.backends.quantized.engine = "x86"
        prepared = prepare_fx(copy.deepcopy(model), QConfigMapping().set_global(get_default_qconfig("x86")), IMAGES[:1])
        prepared(IMAGES[0])
        scripted = torch.jit.trace(convert_fx(prepared), IMAGES[0], check_trace=False)
        if loaded:
            torch.jit.save(scripted, str(tmp_path / "int8.pt"))
            scripted = torch.jit.load(str(tmp_path / "int8.pt"))
        study = precision_study(model, scripted, IMAGES[:1])
    assert study.ap_reference == pytest.approx(1)
    assert 0 <= study.ap < 1
    assert all(10 < layer.introduced_db < 60 for layer in study.layers)
    assert {"stem", "conv"} & {layer.layer for layer in study.layers}


def test_a_torchscript_model_with_numbers_in_it_agrees_with_its_module() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.trace(OneScale().eval(), IMAGES[0])
        assert layerdiff.trace(OneScale().eval(), scripted, IMAGES[0], progress=False).agrees


def test_other_labels_than_images_are_refused(exports: tuple[Path, Path]) -> None:
    with pytest.raises(InputError, match="3 sets of boxes for 1 images"):
        precision_study(load(), exports[0], IMAGES[:1], labels=LABELS)
