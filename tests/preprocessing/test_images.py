"""With the image: what a resize, a crop or a decoder lost is named exactly."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image, ImageOps

import layerdiff
from tests.preprocessing.pictures import fed, left_by, letterbox, picture

if TYPE_CHECKING:
    from pathlib import Path

IMAGE = picture(150, 200)
EXPECTED = fed(letterbox(IMAGE))


def by_pil(image: Any, height: int, width: int, method: Any = Image.Resampling.BILINEAR) -> Any:
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def by_torch(image: Any, height: int, width: int, **options: Any) -> Any:
    tensor = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float()
    return torch.nn.functional.interpolate(tensor, size=(height, width), **options)[0].permute(1, 2, 0).numpy()


def centre_crop(image: Any, short: int, size: int) -> Any:
    ratio = short / min(image.shape[:2])
    made = by_pil(image, *(short if n == min(image.shape[:2]) else int(n * ratio) for n in image.shape[:2]))
    top, left = ((n - size) // 2 for n in made.shape[:2])
    return made[top : top + size, left : left + size]


@dataclass(frozen=True)
class Case:
    """A candidate, the kinds that set it apart, and the parameters of the first."""

    actual: Any
    kinds: tuple[str, ...]
    actual_setting: Any = None


BILINEAR = {"mode": "bilinear", "align_corners": False}
CASES = {
    "area": Case(fed(letterbox(IMAGE, kernel=cv2.INTER_AREA)), ("resize",), {"library": "OpenCV", "kernel": "area"}),
    "lanczos": Case(
        fed(letterbox(IMAGE, kernel=cv2.INTER_LANCZOS4)), ("resize",), {"library": "OpenCV", "kernel": "lanczos"}
    ),
    "stretched": Case(fed(cv2.resize(IMAGE, (96, 96))), ("letterbox",), {"mode": "stretch"}),
    "stretched by PIL": Case(fed(by_pil(IMAGE, 96, 96)), ("letterbox", "resize"), {"mode": "stretch"}),
    "smaller": Case(fed(letterbox(IMAGE, size=64)), ("image-size",), [64, 64]),
    "odd border": Case(fed(letterbox(IMAGE, pad=77)), ("letterbox",), {"pad": [77.0, 77.0, 77.0]}),
    "odd crop": Case(fed(centre_crop(IMAGE, 107, 96)), ("crop", "resize"), {"mode": "crop", "resized": [107, 142]}),
    "cubic and bgr": Case(fed(letterbox(IMAGE, kernel=cv2.INTER_CUBIC)[:, :, ::-1]), ("resize", "channel-order")),
    "mirrored, not divided": Case(fed(letterbox(IMAGE)[:, ::-1], scale=1.0), ("flip", "scale")),
    "rectangular": Case(fed(letterbox(IMAGE)[8:88]), ("letterbox",), {"canvas": [80, 96]}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_settings_that_differ_are_named_and_the_input_is_made_again(name: str) -> None:
    case = CASES[name]
    found = layerdiff.compare_inputs(EXPECTED, case.actual, image=IMAGE)
    assert [m.kind for m in found.mismatches] == list(case.kinds)
    assert found.source == "image"
    assert found.verified
    assert left_by(found.code, IMAGE, EXPECTED) <= 2 * found.limit
    told = found.mismatches[0].parameters.get("actual")
    if isinstance(case.actual_setting, dict):
        assert told | case.actual_setting == told
    elif case.actual_setting is not None:
        assert told == case.actual_setting


TORCH = {
    "half-pixel": BILINEAR,
    "antialias": BILINEAR | {"antialias": True},
    "aligned corners": {"mode": "bilinear", "align_corners": True},
}


@pytest.mark.parametrize("options", TORCH)
def test_the_conventions_of_one_kernel_are_told_apart(options: str) -> None:
    expected = fed(by_torch(IMAGE, 96, 96, **TORCH[options]))
    for other, arguments in TORCH.items():
        found = layerdiff.compare_inputs(expected, fed(by_torch(IMAGE, 96, 96, **arguments)), image=IMAGE)
        settings = [
            (m.kind, m.parameters["expected"]["options"], m.parameters["actual"]["options"]) for m in found.mismatches
        ]
        assert settings == ([] if other == options else [("resize", options, other)])


NOISE = np.random.default_rng(3).integers(0, 256, (150, 200, 3)).astype(np.uint8)
ALIGNED = {"mode": "bilinear", "align_corners": True}


@pytest.mark.parametrize("mirrored", [False, True], ids=["as it is", "mirrored"])
def test_two_crops_of_one_enlarged_picture_of_noise_are_an_image_size(*, mirrored: bool) -> None:
    made = by_torch(NOISE, 331, int(331 * 200 / 150), **ALIGNED)
    sides = []
    for size in (96, 81):
        top, left = ((n - size) // 2 for n in made.shape[:2])
        sides.append(made[top : top + size, left : left + size])
    expected, actual = fed(sides[0]), fed(sides[1][:, ::-1] if mirrored else sides[1])
    found = layerdiff.compare_inputs(expected, actual, image=NOISE)
    assert sorted(m.kind for m in found.mismatches) == (["flip"] if mirrored else []) + ["image-size"]
    assert found.verified


def test_truncation_after_a_resize_is_a_matter_of_digits() -> None:
    made = by_torch(IMAGE, 96, 96, **BILINEAR)
    found = layerdiff.compare_inputs(fed(made), fed(made.astype(np.uint8)), image=IMAGE)
    assert [(m.kind, m.parameters["actual"]["digits"]) for m in found.mismatches] == [("dtype", "truncated")]


def test_two_libraries_that_resize_alike_agree() -> None:
    ours = fed(by_torch(IMAGE, 96, 96, **BILINEAR))
    theirs = fed(cv2.resize(IMAGE.astype(np.float32), (96, 96), interpolation=cv2.INTER_LINEAR))
    for image in (None, IMAGE):
        assert layerdiff.compare_inputs(ours, theirs, image=image).agrees


def jpeg(tmp_path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "picture.jpg"
    Image.fromarray(IMAGE).save(path, quality=85, subsampling="4:2:0", exif=exif)
    return path


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_an_exif_orientation_that_was_not_applied_is_a_rotation(orientation: int, tmp_path: Path) -> None:
    path = jpeg(tmp_path, orientation)
    stored = Image.open(path)
    expected = fed(letterbox(np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))))
    actual = fed(letterbox(np.asarray(stored.convert("RGB"))))
    found = layerdiff.compare_inputs(expected, actual, image=path)
    assert [m.kind for m in found.mismatches] == ["rotation"]
    told = found.mismatches[0].parameters
    assert told["exif"] == orientation
    # After a quarter turn the resize rounds in another way: without the picture that is left, and no augmentation.
    alone = layerdiff.compare_inputs(expected, actual).mismatches
    assert [m.parameters["degrees"] for m in alone if m.kind == "rotation"] == [told["degrees"]]
    assert {m.kind for m in alone} <= {"rotation", "resize"}
    assert left_by(found.code, str(path), expected) <= 2 * found.limit


def test_another_jpeg_decoder_is_named(tmp_path: Path) -> None:
    path = jpeg(tmp_path, 1)
    expected = fed(letterbox(np.asarray(Image.open(path))))
    actual = fed(letterbox(simplejpeg.decode_jpeg(path.read_bytes(), "RGB", fastupsample=True)))
    found = layerdiff.compare_inputs(expected, actual, image=path)
    assert [(m.kind, m.parameters["expected"]) for m in found.mismatches] == [("decoder", "PIL")]


def test_an_image_is_taken_in_any_form(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    Image.fromarray(IMAGE).save(path)
    np.save(tmp_path / "picture.npy", IMAGE)
    actual = fed(letterbox(IMAGE, kernel=cv2.INTER_AREA))
    for image in (
        path,
        str(path),
        tmp_path / "picture.npy",
        Image.fromarray(IMAGE),
        torch.from_numpy(IMAGE),
        path.read_bytes(),
    ):
        assert [m.kind for m in layerdiff.compare_inputs(EXPECTED, actual, image=image).mismatches] == ["resize"]


def encoded(pixels: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


GREY = IMAGE[:, :, 0]
ALPHA = np.dstack([IMAGE, GREY])
WIDE = GREY.astype(np.uint16) * 257


@pytest.mark.parametrize("in_a_file", [False, True])
@pytest.mark.parametrize("image", [GREY, ALPHA, WIDE], ids=["grey", "alpha", "16 bits"])
def test_grey_transparent_and_16_bit_images_do(image: Any, in_a_file: Any) -> None:
    pixels = IMAGE if image is ALPHA else np.repeat(GREY[:, :, None], 3, axis=2)
    expected, actual = (
        fed(cv2.resize(pixels, (96, 96))),
        fed(cv2.resize(pixels, (96, 96), interpolation=cv2.INTER_AREA)),
    )
    found = layerdiff.compare_inputs(expected, actual, image=encoded(image) if in_a_file else image)
    assert [m.kind for m in found.mismatches] == ["resize"]


def test_one_pixel_is_enough_not_to_fail() -> None:
    image = np.array([[[10, 200, 30]]], np.uint8)
    expected, actual = fed(np.full((32, 32, 3), image[0, 0])), fed(np.full((32, 32, 3), image[0, 0][::-1]))
    assert not layerdiff.compare_inputs(expected, actual, image=image).agrees


def test_an_image_of_48_megapixels_is_looked_at() -> None:
    small = picture(600, 800)
    large = cv2.resize(small, (8000, 6000), interpolation=cv2.INTER_NEAREST)
    expected = fed(cv2.resize(large, (96, 96), interpolation=cv2.INTER_LINEAR))
    actual = fed(cv2.resize(large, (96, 96), interpolation=cv2.INTER_NEAREST))
    found = layerdiff.compare_inputs(expected, actual, image=large)
    assert [m.kind for m in found.mismatches] == ["resize"]


def test_another_image_is_noticed_and_the_tensors_still_compared() -> None:
    found = layerdiff.compare_inputs(EXPECTED, EXPECTED[:, ::-1], image=picture(150, 200, seed=9))
    assert [m.kind for m in found.mismatches] == ["channel-order"]
    assert found.source == "inputs"
    assert any("image" in note for note in found.notes)


@pytest.mark.parametrize(
    ("image", "text"),
    [("nothing.jpg", "no such file"), (__file__, "not a picture"), (np.zeros(3), "is no picture")],
)
def test_what_is_no_picture_is_refused(image: Any, text: str) -> None:
    with pytest.raises(layerdiff.InputError, match=text):
        layerdiff.compare_inputs(EXPECTED, EXPECTED * 2, image=image)
