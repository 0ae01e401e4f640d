"""compare_pipelines: the first stage that diverges, its setting, and the proof; ready-made stages of YOLOv5."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from demo.detector import WEIGHTS, Detector
from demo.exports import bad_export, good_export
from demo.shapes import draw_scene
from layerdiff import InputError, StageError, StageStatus, compare_pipelines
from layerdiff.pipeline.nms import NmsSettings
from layerdiff.stages import images as stage_images
from layerdiff.stages import yolov5_stages
from layerdiff.stages.images import Fit, Letterbox, Library, ReadImage, pixels, resized
from layerdiff.stages.yolo import Suppress

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

DETECT = NmsSettings(conf=0.25, iou=0.45, max_det=300)
VAL = NmsSettings(conf=0.001, iou=0.6, max_det=300)


@functools.cache
def detector(size: int) -> Detector:
    """The trained detector for another image size."""
    built = Detector(image_size=size)
    built.load_state_dict(load_file(WEIGHTS))
    return built.eval()


class AnySize(nn.Module):
    """The detector for the size of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return detector(x.shape[-1])(x)


@functools.cache
def scenes() -> tuple[np.ndarray, ...]:
    """Two drawn pictures, wider than high."""
    drawn = [draw_scene(np.random.default_rng(seed)).image.transpose(1, 2, 0) for seed in (5221, 5223)]
    return tuple((image * 255).round().astype(np.uint8)[10:150] for image in drawn)


def stages(settings: NmsSettings, **changes: Mapping[str, Any]) -> dict[str, Callable[..., Any]]:
    built = yolov5_stages(AnySize(), settings, image_size=160)
    return built | {name: replace(built[name], **change) for name, change in changes.items()}


ONE_SETTING = [
    ("colour order", "tensor", "swap_channels", True),
    ("colour order of the file", "decoded", "bgr", True),
    ("letterbox", "resized", "fit", Fit.STRETCH),
    ("padding", "resized", "colour", 0),
    ("scale", "tensor", "divisor", 1.0),
    ("image size", "resized", "image_size", 128),
    ("flip", "augmented", "flip", True),
    ("brightness", "augmented", "brightness", 1.3),
    ("several labels", "filtered", "multi_label", True),
    ("agnostic", "suppressed", "agnostic", True),
    ("max_det", "suppressed", "max_det", 2),
    ("letterbox undone", "final", "undo", False),
]


@pytest.mark.parametrize("style", [DETECT, VAL], ids=["detect", "val"])
@pytest.mark.parametrize(("stage", "setting", "value"), [c[1:] for c in ONE_SETTING], ids=[c[0] for c in ONE_SETTING])
def test_the_stage_and_the_setting_are_named_and_proven(
    style: NmsSettings, stage: str, setting: str, value: Any
) -> None:
    found = compare_pipelines(stages(style), stages(style, **{stage: {setting: value}}), scenes()[1])
    if setting == "multi_label" and found.agrees:
        assert setting in found.notes[0]
        return
    assert [(s.stage, [m.setting for m in s.mismatches]) for s in found.divergences] == [(stage, [setting])]
    assert all(m.verified for m in found.first_divergence.mismatches)
    assert found.proven
    assert f"{stage} is the first stage that diverges: {setting}" in found.verdict


@pytest.mark.parametrize(
    ("stage", "setting", "style", "value"),
    [
        ("filtered", "conf", VAL, 0.25),
        ("filtered", "conf", DETECT, 0.001),
        ("suppressed", "iou", VAL, 0.45),
        ("suppressed", "iou", replace(DETECT, conf=0.01), 0.6),
    ],
)
def test_a_threshold_is_named_by_stages_that_show_it_and_by_stages_that_do_not(
    stage: str, setting: str, style: NmsSettings, value: float
) -> None:
    shown = stages(style), stages(style, **{stage: {setting: value}})
    found = compare_pipelines(*shown, list(scenes()))
    assert [(m.setting, m.expected, m.actual) for m in found.first_divergence.mismatches] == [
        (setting, getattr(style, setting), value)
    ]
    # Plain functions tell nothing: the boxes must.
    plain = [{name: _plain(stage) for name, stage in side.items()} for side in shown]
    found = compare_pipelines(*plain, list(scenes()))
    assert found.first_divergence.stage == stage
    assert [m.setting for m in found.first_divergence.mismatches] == [setting]
    assert found.first_divergence.mismatches[0].verified
    assert found.proven


@pytest.mark.parametrize("library", [Library.OPENCV, Library.NUMPY])
def test_an_exif_orientation_that_one_side_leaves_out_is_a_setting(library: Library, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(scenes()[1]).save(path, quality=95, exif=exif)
    assert ReadImage(library)(path).shape == cv2.imread(str(path)).shape
    sides = [stages(VAL) | {"decoded": ReadImage(library, exif=used)} for used in (True, False)]
    found = compare_pipelines(*sides, path)
    assert [(m.setting, m.expected, m.actual) for m in found.first_divergence.mismatches] == [("exif", True, False)]
    assert found.proven


def _plain(stage: Callable[..., Any]) -> Callable[..., Any]:
    """A stage that hides its settings."""
    return stage.__call__


@pytest.mark.parametrize(
    ("stage", "changes", "kind"),
    [
        ("decoded", {"bgr": True}, "channel-order"),
        ("tensor", {"swap_channels": True}, "channel-order"),
        ("tensor", {"divisor": 1.0}, "scale"),
        ("resized", {"fit": Fit.STRETCH}, "letterbox"),
        ("resized", {"colour": 0}, "letterbox"),
        ("resized", {"image_size": 128}, "image-size"),
        ("augmented", {"flip": True}, "flip"),
        ("augmented", {"brightness": 1.3}, "augmentation"),
        ("final", {"undo": False}, "format"),
    ],
)
def test_what_plain_functions_do_to_an_image_is_named_from_the_images_alone(
    stage: str, changes: dict[str, Any], kind: str
) -> None:
    sides = [{name: _plain(s) for name, s in side.items()} for side in (stages(VAL), stages(VAL, **{stage: changes}))]
    found = compare_pipelines(*sides, scenes()[1])
    assert [(s.stage, [m.setting for m in s.mismatches]) for s in found.divergences] == [(stage, [kind])]
    assert found.first_divergence.mismatches[0].verified
    assert found.proven


def test_settings_of_partials_are_read_as_well() -> None:
    def limited(found: Any, keep: int) -> Any:
        return {name: part[:keep] for name, part in found.items()}

    sides = [stages(VAL) | {"suppressed": functools.partial(limited, keep=n)} for n in (5, 3)]
    found = compare_pipelines(*sides, scenes()[0])
    assert [(m.setting, m.expected, m.actual, m.verified) for m in found.first_divergence.mismatches] == [
        ("keep", 5, 3, True)
    ]


def test_two_independent_faults_are_both_named_first_first() -> None:
    candidate = stages(VAL, tensor={"swap_channels": True}, suppressed={"iou": 0.3, "agnostic": True})
    found = compare_pipelines(stages(VAL), candidate, list(scenes()))
    named = [(s.stage, {m.setting for m in s.mismatches}) for s in found.divergences]
    assert named[0] == ("tensor", {"swap_channels"})
    assert named[1][0] == "suppressed"
    assert found.proven
    assert all(m.verified for s in found.divergences for m in s.mismatches)


def test_equal_pipelines_agree() -> None:
    found = compare_pipelines(stages(DETECT), stages(DETECT), list(scenes()))
    assert found.agrees
    assert found.first_divergence is None
    assert found.proven is None
    assert {s.status for s in found.stages} == {StageStatus.AGREES}
    assert "agree on 2 images" in found.verdict


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("exports")
    return good_export(folder), bad_export(folder)


@pytest.mark.parametrize("library", list(Library))
def test_a_good_export_agrees_in_torch_numpy_and_opencv(exports: tuple[Path, Path], library: Library) -> None:
    model = detector(160) if library is Library.TORCH else exports[0]
    candidate = yolov5_stages(model, VAL, image_size=160, library=library)
    found = compare_pipelines(stages(VAL), candidate, list(scenes()))
    assert found.agrees, str(found)
    assert not found.divergences


def test_another_channel_order_that_is_undone_later_is_a_convention(exports: tuple[Path, Path]) -> None:
    found = compare_pipelines(
        stages(VAL), yolov5_stages(exports[0], VAL, image_size=160, library="opencv"), scenes()[0]
    )
    statuses = {s.stage: s.status for s in found.stages}
    assert statuses["decoded"] is StageStatus.CONVENTION
    assert statuses["tensor"] is StageStatus.CONVENTION
    assert statuses["head"] is StageStatus.AGREES


@pytest.mark.parametrize("hidden", [False, True], ids=["settings shown", "plain functions"])
def test_a_convention_beside_a_fault_is_not_accused(*, hidden: bool) -> None:
    candidate = stages(VAL, decoded={"bgr": True}, tensor={"swap_channels": True, "divisor": 1.0})
    sides = [{n: _plain(s) if hidden else s for n, s in side.items()} for side in (stages(VAL), candidate)]
    found = compare_pipelines(*sides, list(scenes()))
    named = [(s.stage, [m.setting for m in s.mismatches]) for s in found.divergences]
    assert named == [("tensor", ["scale" if hidden else "divisor"])]
    assert {s.stage: s.status for s in found.stages}["decoded"] is StageStatus.CONVENTION
    assert found.proven


def test_a_network_that_diverges_is_traced_to_its_layer(exports: tuple[Path, Path]) -> None:
    reference = stages(DETECT) | {"head": replace(stages(DETECT)["head"], model=detector(160))}
    found = compare_pipelines(reference, yolov5_stages(exports[1], DETECT, image_size=160), scenes()[0])
    assert found.first_divergence.stage == "head"
    assert found.network.first_divergence.layer == "model.18.bn"
    assert "model.18.bn" in found.verdict


def test_augmentation_that_draws_at_random_is_told() -> None:
    rng = np.random.default_rng(0)
    candidate = stages(DETECT) | {"augmented": lambda image: image if rng.uniform() < 0.5 else image[:, ::-1].copy()}
    found = compare_pipelines(stages(DETECT), candidate, list(scenes()) * 3)
    assert found.first_divergence.stage == "augmented"
    assert found.first_divergence.mismatches[0].setting == "augmentation"


def test_stages_of_one_side_only_count_with_the_next_shared_one() -> None:
    whole = stages(DETECT)
    fewer = {name: stage for name, stage in whole.items() if name in ("decoded", "tensor", "head", "final")}

    def prepared(image: Any) -> Any:
        return whole["tensor"](whole["augmented"](whole["resized"](image)))

    def finished(raw: Any, seen: Any) -> Any:
        found = whole["suppressed"](whole["filtered"](whole["boxes"](raw)))
        return whole["final"](found, {"resized": whole["resized"](seen["decoded"]), **seen})

    found = compare_pipelines(whole, fewer | {"tensor": prepared, "final": finished}, scenes()[0])
    assert found.agrees
    assert [s.stage for s in found.stages] == ["decoded", "tensor", "head", "final"]


def test_objects_with_named_stages_are_pipelines() -> None:
    class Double:
        stages = ("half", "final")

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def half(self, x: np.ndarray) -> np.ndarray:
            return x / 2

        def final(self, x: np.ndarray) -> np.ndarray:
            return x * self.factor

    pairs = [("half", lambda x: x / 2), ("final", lambda x: x * 2.0)]
    image = np.ones((4, 4), np.float32)
    assert compare_pipelines(Double(2.0), pairs, image).agrees
    found = compare_pipelines(pairs, Double(3.0), image)
    assert found.first_divergence.stage == "final"
    assert "max-abs 0.5" in found.verdict or "max-abs 1" in found.verdict


def test_a_stage_that_writes_into_its_input_disturbs_nothing() -> None:
    def wrecks(x: np.ndarray) -> np.ndarray:
        x += 1
        return x

    found = compare_pipelines({"a": wrecks, "b": np.negative}, {"a": wrecks, "b": np.negative}, np.zeros((3, 3)))
    assert found.agrees


def test_a_candidate_that_fails_on_its_own_is_reported_and_not_raised() -> None:
    def fails(x: Any) -> Any:
        raise ValueError("no such kernel")

    found = compare_pipelines({"a": np.negative, "b": np.negative}, {"a": np.negative, "b": fails}, np.zeros((3, 3)))
    assert found.stages[1].status is StageStatus.UNCOMPARED
    assert "no such kernel" in found.stages[1].reason
    assert not found.agrees
    with pytest.raises(StageError, match="reference, stage 'b': ValueError: no such kernel"):
        compare_pipelines({"a": np.negative, "b": fails}, {"a": np.negative, "b": fails}, np.zeros((3, 3)))


@pytest.mark.parametrize(
    ("reference", "candidate", "words"),
    [
        ({}, {"a": np.negative}, "named stages"),
        ({"a": 3}, {"a": np.negative}, "cannot be called"),
        ({"a": np.negative}, {"b": np.negative}, "end with the same stage"),
        ({"a": np.negative, "b": np.negative}, {"b": np.negative, "a": np.negative}, "another order"),
        (3, {"a": np.negative}, "named stages"),
    ],
)
def test_what_is_no_pipeline_is_refused(reference: Any, candidate: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare_pipelines(reference, candidate, np.zeros((3, 3)))


# Images


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([], "there is none"),
        (3, "no image"),
        ("nowhere.png", "no such file"),
        ([None], "no image"),
        (np.array([["a"]]), "no image"),
        (np.zeros((0, 5, 3)), "no image"),
        (np.zeros(7), "no image"),
    ],
)
def test_what_is_no_image_is_refused(images: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare_pipelines(stages(DETECT), stages(DETECT), images)


def test_a_file_that_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.png"
    path.write_text("not a picture")
    with pytest.raises(InputError, match=r"notes\.png: not an image"):
        compare_pipelines(stages(DETECT), stages(DETECT), path)


def _picture(kind: str) -> np.ndarray:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[tuple[int, ...], str]] = {
        "one pixel": ((1, 1, 3), "uint8"),
        "one pixel high": ((1, 300, 3), "uint8"),
        "huge": ((6000, 8000, 3), "uint8"),
        "grey": ((60, 80), "uint8"),
        "alpha": ((60, 80, 4), "uint8"),
        "16 bits": ((60, 80, 3), "uint16"),
        "16 bits grey": ((60, 80), "uint16"),
        "floats": ((60, 80, 3), "float32"),
        "channels first": ((3, 60, 80), "uint8"),
        "booleans": ((60, 80), "bool"),
    }
    shape, kind_of = shapes[kind]
    if kind_of == "float32":
        return rng.uniform(size=shape).astype(np.float32)
    top = {"uint8": 256, "uint16": 65536, "bool": 2}[kind_of]
    if kind == "huge":
        return np.tile(rng.integers(0, top, (1, 8000, 3)).astype(np.uint8), (6000, 1, 1))
    return rng.integers(0, top, shape).astype(kind_of)


KINDS = ["one pixel", "one pixel high", "huge", "grey", "alpha", "16 bits", "16 bits grey", "floats", "channels first",
         "booleans"]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_image_goes_through(kind: str) -> None:
    found = compare_pipelines(stages(VAL), stages(VAL, tensor={"swap_channels": True}), [_picture(kind)])
    assert found.verdict
    assert found.images == 1


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("library", [Library.OPENCV, Library.NUMPY])
def test_files_of_any_mode_are_read_alike(tmp_path: Path, mode: str, library: Library) -> None:
    path = tmp_path / "image.png"
    grey = np.arange(300, dtype=np.uint16).reshape(15, 20)
    image = (
        Image.fromarray((grey * 200).astype(np.uint16))
        if mode == "I;16"
        else Image.fromarray(grey.astype(np.uint8)).convert(mode)
    )
    image.save(path)
    found = ReadImage(library)(path)
    assert found.shape == (15, 20, 3)
    assert found.dtype == np.uint8
    assert np.array_equal(found, ReadImage(Library.OPENCV)(path))


def test_empty_detections_go_through() -> None:
    blank = np.full((50, 60, 3), 127, np.uint8)
    strict = replace(DETECT, conf=0.999)
    assert compare_pipelines(stages(strict), stages(strict), blank).agrees


def test_the_libraries_resize_alike_up_to_a_grey_level() -> None:
    image = scenes()[0]
    for size in ((97, 61), (320, 280), (1, 1)):
        found = [resized(image, size, library).astype(int) for library in Library]
        assert max(np.abs(found[0] - other).max() for other in found) <= 1


def test_the_letterbox_is_that_of_yolov5() -> None:
    found = Letterbox(160)(np.zeros((70, 140, 3), np.uint8))
    assert found.shape == (160, 160, 3)
    assert np.flatnonzero(found[:, 0, 0] == 0).tolist() == list(range(40, 120))
    assert Letterbox(160, fit=Fit.RECTANGLE)(np.zeros((70, 140, 3), np.uint8)).shape == (96, 160, 3)
    small = Letterbox(160, enlarge=False)(np.zeros((70, 140, 3), np.uint8))
    assert np.count_nonzero(small[:, :, 0] == 0) == 70 * 140


@pytest.mark.parametrize("agnostic", [False, True])
def test_the_libraries_suppress_alike(*, agnostic: bool) -> None:
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 100, (200, 2))
    found = {
        "boxes": np.concatenate([corner, corner + rng.uniform(10, 50, (200, 2))], 1),
        "scores": np.sort(rng.uniform(0.1, 1, 200))[::-1].copy(),
        "classes": rng.integers(0, 3, 200),
    }
    kept = [Suppress(0.45, agnostic, 50, library)(found)["scores"] for library in Library]
    assert 10 < len(kept[0]) <= 50
    assert all(np.array_equal(kept[0], other) for other in kept)


def test_pixels_refuses_what_is_no_image() -> None:
    for wrong in (np.zeros((5, 4, 7)), np.zeros(3), np.zeros((2, 2), complex), np.full((8, 8, 3), np.nan)):
        with pytest.raises(InputError, match="no image"):
            pixels(wrong)


def test_opencv_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from layerdiff import MissingExtraError

    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match="opencv-python-headless"):
        stage_images.opencv()


def test_values_that_cannot_be_compared_are_told() -> None:
    @dataclass
    class Odd:
        name: str

    found = compare_pipelines({"a": lambda x: "cat"}, {"a": lambda x: "dog"}, np.zeros((3, 3)))
    assert not found.agrees
    assert compare_pipelines({"a": lambda x: {"v": x}}, {"a": lambda x: {"v": x}}, np.zeros((3, 3))).agrees
    assert not compare_pipelines({"a": lambda x: [x]}, {"a": lambda x: [x, x]}, np.zeros((3, 3))).agrees
    assert not compare_pipelines({"a": lambda x: {"v": x}}, {"a": lambda x: {"w": x}}, np.zeros((3, 3))).agrees
    assert not compare_pipelines({"a": lambda x: Odd("a")}, {"a": lambda x: Odd("b")}, np.zeros((3, 3))).agrees


def test_a_comparison_has_its_views() -> None:
    found = compare_pipelines(stages(VAL), stages(VAL, filtered={"conf": 0.25}), scenes()[0])
    table = found.to_frame().set_index("stage")
    assert table.loc["filtered", "status"] == "diverges"
    assert "conf 0.001 against 0.25" in table.loc["filtered", "settings"]
    assert "filtered" in found._repr_html_()
    assert str(found).count("\n") == len(found.stages)
    assert found.detections.settings["conf"] == (0.001, 0.25)
