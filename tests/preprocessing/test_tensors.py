"""Two tensors alone: the chain is found, applied, and its code does what it says."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import torch

import layerdiff
from tests.preprocessing.pictures import fed, left_by, letterbox, picture

IMAGE = picture()
BOXED = letterbox(IMAGE)
EXPECTED = fed(BOXED)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
ODD = ((0.31, 0.42, 0.27), (0.19, 0.33, 0.21))

CASES = {
    "bgr": (fed(BOXED[:, :, ::-1]), ["channel-order"]),
    "another order": (fed(BOXED)[:, [1, 2, 0]], ["channel-order"]),
    "channels last": (EXPECTED.transpose(0, 2, 3, 1), ["layout"]),
    "no batch": (EXPECTED[0], ["layout"]),
    "reshaped": (EXPECTED[0].transpose(1, 2, 0).reshape(1, 3, 96, 96), ["layout"]),
    "not divided": (fed(BOXED, scale=1.0), ["scale"]),
    "divided by 256": (fed(BOXED, scale=1 / 256), ["scale"]),
    "not normalised": (fed(BOXED, mean=0, std=1), ["mean-std"]),
    "clip": (fed(BOXED, 1 / 255, *CLIP), ["mean-std"]),
    "odd norm": (fed(BOXED, 1 / 255, *ODD), ["mean-std"]),
    "raw": (BOXED.transpose(2, 0, 1)[None].astype(np.float32), ["scale", "mean-std"]),
    "raw bytes": (BOXED, ["layout", "scale", "mean-std", "dtype"]),
    "raw bgr": (BOXED[:, :, ::-1].astype(np.float32), ["layout", "channel-order", "scale", "mean-std"]),
    "mirrored": (EXPECTED[..., ::-1], ["flip"]),
    "upside down": (EXPECTED[..., ::-1, :], ["flip"]),
    "turned": (np.rot90(EXPECTED, 1, (2, 3)), ["rotation"]),
    "transposed": (EXPECTED.swapaxes(2, 3), ["layout"]),
    "another border": (fed(letterbox(IMAGE, pad=0)), ["letterbox"]),
    "at the corner": (fed(letterbox(IMAGE, corner=True)), ["letterbox"]),
    "not cropped": (np.pad(EXPECTED, ((0, 0), (0, 0), (3, 5), (2, 9)), mode="reflect"), ["crop"]),
    "doubles": (EXPECTED.astype(np.float64), ["dtype"]),
    "halves": (EXPECTED.astype(np.float16), ["dtype"]),
    "mirrored bgr, not normalised": (fed(BOXED[:, ::-1, ::-1], mean=0, std=1), ["flip", "channel-order", "mean-std"]),
}


@pytest.mark.parametrize("name", CASES)
def test_the_chain_is_found_and_its_code_corrects_the_input(name: str) -> None:
    actual, kinds = CASES[name]
    found = layerdiff.compare_inputs(EXPECTED, actual)
    assert [m.kind for m in found.mismatches] == kinds
    assert found.verified
    assert not found.agrees
    assert found.residual <= found.limit
    assert left_by(found.code, actual, EXPECTED) <= 2 * found.limit


@pytest.mark.parametrize(
    "again",
    [
        EXPECTED.copy(),
        torch.from_numpy(EXPECTED.copy()),
        np.float32(EXPECTED.astype(np.float64) * (1 + 1e-7)),
        (BOXED / 255 * (1 / np.array(fed.__defaults__[2])) - np.divide(*fed.__defaults__[1:])).astype(np.float32)
        .transpose(2, 0, 1)[None],
    ],
)  # fmt: skip
def test_the_same_pipeline_is_quiet(again: object) -> None:
    found = layerdiff.compare_inputs(EXPECTED, again)
    assert found.agrees
    assert found.mismatches == ()
    assert found.code == ""


def test_known_numbers_are_named_and_unknown_ones_estimated() -> None:
    named = layerdiff.compare_inputs(EXPECTED, fed(BOXED, 1 / 255, *CLIP)).mismatches[0].parameters
    assert (named["expected"]["name"], named["actual"]["name"]) == ("ImageNet", "CLIP")
    odd = layerdiff.compare_inputs(EXPECTED, fed(BOXED, 1 / 255, *ODD)).mismatches[0].parameters["actual"]
    assert odd["mean"] == pytest.approx(ODD[0], abs=1e-4)
    assert odd["std"] == pytest.approx(ODD[1], abs=1e-4)


def test_minus_one_to_one_is_a_scale() -> None:
    found = layerdiff.compare_inputs(fed(BOXED, 1 / 255, 0, 1), fed(BOXED, 1 / 127.5, 1, 1))
    assert [(m.kind, m.parameters["expected"], m.parameters["actual"]) for m in found.mismatches] == [
        ("scale", "0..1", "-1..1")
    ]


def test_truncated_levels_are_verified_from_the_expected_side() -> None:
    values = np.random.default_rng(0).uniform(0, 255, (1, 3, 60, 80)).astype(np.float32)
    found = layerdiff.compare_inputs(values / 255, np.floor(values) / np.float32(255))
    assert [(m.kind, m.parameters["how"]) for m in found.mismatches] == [("dtype", "truncated")]
    assert found.verified
    assert found.reproduced < 1e-6
    assert 0.5 / 255 < found.residual < 1.01 / 255


@pytest.mark.parametrize(
    ("made", "how"),
    [
        (lambda x: (x * 1.7) % 256, None),
        (lambda x: np.floor(x * 2) % 256, "wrapped"),
        (lambda x: (np.floor(x * 2) + 128) % 256 - 128, "signed"),
        (lambda x: np.clip(x * 2, 0, 255), "saturated"),
    ],
)
def test_bytes_that_wrapped_or_saturated_are_told(made: object, how: str | None) -> None:
    values = np.random.default_rng(0).uniform(0, 125, (1, 3, 60, 80)).astype(np.float32)
    values[0, :, :9] *= 1.2  # some reach beyond a byte
    found = layerdiff.compare_inputs(values * 2, made(values).astype(np.float32))
    assert not found.agrees
    if how is not None:
        assert [m.parameters.get("how") for m in found.mismatches] == [how]
        assert found.verified


def test_brightness_is_an_augmentation_verified_to_a_level() -> None:
    brighter = np.clip(np.rint(BOXED * 1.3), 0, 255)
    found = layerdiff.compare_inputs(EXPECTED, fed(brighter))
    assert [(m.kind, m.parameters["how"]) for m in found.mismatches] == [("augmentation", "brightness-contrast")]
    assert found.verified


def test_unrelated_pictures_are_said_to_be() -> None:
    found = layerdiff.compare_inputs(EXPECTED, fed(letterbox(picture(seed=5))))
    assert [m.kind for m in found.mismatches] == ["unrelated"]
    assert not found.verified
    assert found.code == ""
    assert "unrelated" in found.verdict


def test_a_mosaic_is_recognised_by_its_tile() -> None:
    tiles = [letterbox(picture(30, 40, seed=s), size=128) for s in range(4)]
    whole = np.vstack([np.hstack(tiles[:2]), np.hstack(tiles[2:])])
    found = layerdiff.compare_inputs(fed(tiles[3]), fed(whole[::2, ::2]))
    assert [(m.kind, m.parameters["how"]) for m in found.mismatches] == [("augmentation", "mosaic")]
    assert found.mismatches[0].parameters["box"] == pytest.approx([0.5, 0.5, 0.5, 0.5], abs=0.05)
    assert not found.verified


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grey_picture_where_colours_are_wanted_is_told(channels: int) -> None:
    grey = cv2.cvtColor(BOXED, cv2.COLOR_RGB2GRAY)[:, :, None].repeat(channels, 2)
    made = np.ascontiguousarray((grey / np.float32(255)).transpose(2, 0, 1)[None])
    found = layerdiff.compare_inputs(fed(BOXED, 1 / 255, 0, 1), made)
    assert [(m.kind, m.parameters["how"], m.verified) for m in found.mismatches] == [("channel-order", "grey", True)]


def test_one_number_all_over_tells_of_no_cast() -> None:
    found = layerdiff.compare_inputs(np.ones((1, 3, 8, 8), np.float32), np.zeros((1, 3, 8, 8), np.float32))
    assert [m.kind for m in found.mismatches] == ["unrelated"]


def test_eight_bit_levels_over_256_are_no_half_precision() -> None:
    found = layerdiff.compare_inputs(fed(BOXED, 1 / 255, 0, 1), fed(BOXED, 1 / 256, 0, 1))
    assert [m.kind for m in found.mismatches] == ["scale"]


def test_every_answer_can_be_saved_as_json() -> None:
    lost = layerdiff.compare_inputs(EXPECTED, EXPECTED[:, :, 10:80, 5:90])
    assert json.loads(json.dumps(lost.to_dict(), allow_nan=False))["residual"] == "Infinity"


def test_another_kernel_without_the_image_is_named_and_not_verified() -> None:
    found = layerdiff.compare_inputs(EXPECTED, fed(letterbox(IMAGE, kernel=3)))
    assert [m.kind for m in found.mismatches] == ["resize"]
    assert not found.verified
    assert "Not verified" in found.verdict


def test_a_crop_is_verified_from_the_expected_side() -> None:
    found = layerdiff.compare_inputs(EXPECTED, EXPECTED[:, :, 10:80, 5:90])
    assert [m.kind for m in found.mismatches] == ["crop"]
    assert found.mismatches[0].parameters["expected"] == {
        "size": [96, 96], "top": 10, "left": 5, "height": 70, "width": 85
    }  # fmt: skip
    assert found.reproduced == 0


def test_every_picture_of_a_batch_counts() -> None:
    batch = np.concatenate([fed(letterbox(picture(seed=s))) for s in range(3)])
    assert [m.kind for m in layerdiff.compare_inputs(batch, batch[:, ::-1]).mismatches] == ["channel-order"]
    other = batch.copy()
    other[2] = EXPECTED[0]
    assert not layerdiff.compare_inputs(batch, other).verified


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 3, 1, 1), (1, 1, 1, 1), (5,), (2, 3, 4, 5, 6)])
def test_any_shape_is_compared(shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    assert layerdiff.compare_inputs(values, values).agrees
    assert not layerdiff.compare_inputs(values, values * 255).agrees


def test_grey_and_alpha_are_told() -> None:
    alpha = np.concatenate([EXPECTED, np.ones((1, 1, 96, 96), np.float32)], axis=1)
    assert [m.kind for m in layerdiff.compare_inputs(EXPECTED, alpha).mismatches] == ["channel-order"]
    grey = (EXPECTED * np.array([0.299, 0.587, 0.114]).reshape(1, 3, 1, 1)).sum(axis=1, keepdims=True)
    found = layerdiff.compare_inputs(grey.astype(np.float32), EXPECTED)
    assert [(m.kind, m.parameters["how"]) for m in found.mismatches] == [("channel-order", "grey")]


def test_a_nan_on_one_side_is_told_and_on_both_is_none() -> None:
    hole = EXPECTED.copy()
    hole[0, 0, 3, 4] = np.nan
    assert "NaN" in layerdiff.compare_inputs(EXPECTED, hole).verdict
    assert layerdiff.compare_inputs(hole, hole).agrees
    assert [m.kind for m in layerdiff.compare_inputs(hole, hole * 2).mismatches] == ["scale"]


def test_several_inputs_are_compared_by_name() -> None:
    found = layerdiff.compare_inputs({"a": EXPECTED, "b": EXPECTED}, {"b": EXPECTED, "a": EXPECTED[:, ::-1]})
    assert [(m.name, m.kind) for m in found.mismatches] == [("a", "channel-order")]
    with pytest.raises(layerdiff.InputError, match="has no input b; it has a, c"):
        layerdiff.compare_inputs({"a": EXPECTED, "b": EXPECTED}, {"a": EXPECTED, "c": EXPECTED})


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (None, "a NoneType is no model input"),
        (np.array(["a"]), "an array of <U1 is no model input"),
        (np.zeros((0, 3)), "holds no numbers"),
        (np.full((2, 2), np.nan), "no number in it is finite"),
        ({}, "an empty dict"),
        ("nothing.npy", "no such file"),
        (__file__, "not an .npy or .npz file"),
    ],
)
def test_what_is_no_input_is_refused(given: object, text: str) -> None:
    with pytest.raises(layerdiff.InputError, match=text):
        layerdiff.compare_inputs(EXPECTED, given)
