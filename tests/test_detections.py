"""compare_detections: every reason with its numbers, settings that reconcile, every form that people hand in."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import layerdiff
from demo.detector import load
from demo.shapes import draw_scene
from layerdiff import InputError, MissingExtraError, cli, compare_detections
from layerdiff.pipeline import accuracy, matching
from layerdiff.pipeline.boxes import BoxFormat, overlaps, written_as
from layerdiff.pipeline.found import Detections
from layerdiff.pipeline.heads import YOLOV5_ANCHORS, decode_yolov5, decode_yolov8, heads_of
from layerdiff.pipeline.matching import pair_boxes
from layerdiff.pipeline.nms import NmsSettings, detect

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DETECT = NmsSettings(conf=0.25, iou=0.45, max_det=300)
VAL = NmsSettings(conf=0.001, iou=0.6, max_det=300)


@pytest.fixture(scope="module")
def raw() -> np.ndarray:
    """The trained detector's raw output for six drawn pictures."""
    images = np.stack([draw_scene(np.random.default_rng(seed)).image for seed in range(5221, 5227)])
    with torch.no_grad():
        return load()(torch.from_numpy(images)).numpy()


def rows(found: Detections) -> np.ndarray:
    return np.concatenate([found.boxes, found.scores[:, None], found.classes[:, None]], 1)


def processed(raw: np.ndarray, settings: NmsSettings) -> list[np.ndarray]:
    return [rows(detect(head, settings)) for head in heads_of(raw, "raw")]


@pytest.fixture(scope="module")
def found(raw: np.ndarray) -> list[np.ndarray]:
    return processed(raw, DETECT)


def test_equal_detections_agree(found: list[np.ndarray]) -> None:
    compared = compare_detections(found, found)
    assert compared.agrees
    assert compared.settings == {}
    assert compared.shift_px == (0, 0, 0, 0)
    assert all(match.iou == pytest.approx(1) for match in compared.matches)
    assert "agree" in compared.verdict


def test_rounding_and_another_order_of_boxes_agree(found: list[np.ndarray]) -> None:
    rng = np.random.default_rng(0)
    noisy = [one[rng.permutation(len(one))] for one in found]
    for one in noisy:
        one[:, :4] += rng.uniform(-1e-3, 1e-3, (len(one), 4))
        one[:, 4] += rng.uniform(-1e-5, 1e-5, len(one))
    assert compare_detections(found, noisy).agrees


@pytest.mark.parametrize("with_raw", [True, False], ids=["raw", "without raw"])
@pytest.mark.parametrize(
    ("base", "change", "name", "reason"),
    [
        (VAL, {"conf": 0.25}, "conf", "conf-threshold"),
        (VAL, {"conf": 0.01}, "conf", "conf-threshold"),
        (VAL, {"iou": 0.45}, "iou", "nms-iou"),
        (VAL, {"iou": 0.3}, "iou", "nms-iou"),
        (VAL, {"agnostic": True}, "agnostic", "nms-class-agnostic"),
        (DETECT, {"agnostic": True}, "agnostic", "nms-class-agnostic"),
        (VAL, {"max_det": 5}, "max_det", "max-det"),
        (DETECT, {"max_det": 2}, "max_det", "max-det"),
    ],
)
@pytest.mark.parametrize("swapped", [False, True], ids=["strict candidate", "strict reference"])
def test_one_setting_that_differs_is_named_and_explains_every_box(
    raw: np.ndarray, base: NmsSettings, change: dict[str, Any], name: str, reason: str, *, with_raw: bool, swapped: bool
) -> None:
    sides = [processed(raw, base), processed(raw, replace(base, **change))]
    expected, actual = sides[::-1] if swapped else sides
    compared = compare_detections(expected, actual, raw=raw if with_raw else None)
    assert list(compared.settings) == [name]
    assert compared.reconciled
    lone, nothing = (compared.extra, compared.missing) if swapped else (compared.missing, compared.extra)
    assert lone
    assert {box.reason for box in lone} == {reason}
    assert not nothing
    value = compared.settings[name][not swapped]
    if name in ("agnostic", "max_det"):
        assert value == change[name]


def test_the_settings_found_are_those_that_were_used(raw: np.ndarray) -> None:
    compared = compare_detections(processed(raw, VAL), processed(raw, DETECT), raw=raw)
    assert compared.settings == {"conf": (0.001, 0.25), "iou": (0.6, 0.45)}
    assert compared.reconciled
    assert compared.from_raw


def test_several_labels_for_a_box_are_a_setting_of_their_own(raw: np.ndarray) -> None:
    several = processed(raw, replace(VAL, multi_label=True))
    compared = compare_detections(processed(raw, VAL), several, raw=raw)
    assert compared.settings == {"multi_label": (False, True)}
    assert compared.reconciled
    assert {box.reason for box in compared.extra} == {"class"}
    assert "multi_label" in compared.extra[0].detail


def test_boxes_that_were_clipped_to_the_image_are_still_found_in_the_raw_output(raw: np.ndarray) -> None:
    def clipped(settings: NmsSettings) -> list[np.ndarray]:
        return [np.concatenate([one[:, :4].clip(4, 150), one[:, 4:]], 1) for one in processed(raw, settings)]

    compared = compare_detections(clipped(VAL), clipped(DETECT), raw=raw)
    assert compared.settings == {"conf": (0.001, 0.25), "iou": (0.6, 0.45)}
    assert compared.reconciled
    assert {box.reason for box in compared.missing} == {"conf-threshold", "nms-iou"}


def test_a_box_below_the_threshold_says_by_how_much(raw: np.ndarray) -> None:
    compared = compare_detections(processed(raw, VAL), processed(raw, replace(VAL, conf=0.25)), raw=raw)
    for box in compared.missing:
        assert box.evidence["below_by"] == pytest.approx(box.evidence["threshold"] - box.score, abs=1e-6)
        assert box.evidence["below_by"] > 0


def test_a_suppressed_box_names_the_box_that_suppressed_it(raw: np.ndarray) -> None:
    compared = compare_detections(processed(raw, VAL), processed(raw, replace(VAL, iou=0.45)), raw=raw)
    for box in compared.missing:
        by = np.array([box.evidence["suppressed_by"]])
        iou = float(overlaps(np.array([box.box]), by)[0, 0])
        assert box.evidence["iou"] == pytest.approx(iou, abs=1e-6)
        assert 0.45 < iou <= 0.6


def _six() -> np.ndarray:
    rng = np.random.default_rng(7)
    corner = rng.uniform(20, 400, (6, 2))
    size = rng.uniform(30, 150, (6, 2))
    return np.concatenate([corner, corner + size, np.linspace(0.9, 0.4, 6)[:, None], np.arange(6)[:, None] % 3], 1)


@pytest.mark.parametrize("written", [BoxFormat.CXCYWH, BoxFormat.LTWH, BoxFormat.YXYX])
@pytest.mark.parametrize("side", ["expected", "actual"])
def test_another_box_format_is_named(written: BoxFormat, side: str) -> None:
    right = _six()
    other = right.copy()
    other[:, :4] = written_as(right[:, :4], written)
    pair = {"expected": right, "actual": right} | {side: other}
    compared = compare_detections(pair["expected"], pair["actual"])
    first = side == "expected" and written is not BoxFormat.YXYX  # exchanged axes are the same from either side
    wanted = (str(written), "xyxy") if first else ("xyxy", str(written))
    assert compared.settings == {"format": wanted}
    assert {box.reason for box in (*compared.missing, *compared.extra)} <= {"box-format"}
    assert not compared.agrees


def test_shares_of_the_image_are_named_with_its_size() -> None:
    right = _six()
    shares = right / np.array([640, 480, 640, 480, 1, 1])
    compared = compare_detections(right, shares)
    assert compared.settings == {"format": ("xyxy", "xyxy, normalised")}
    assert "640 × 480" in compared.verdict


@pytest.mark.parametrize("side", ["expected", "actual"])
def test_a_letterbox_that_was_not_undone_is_named_with_its_gain_and_padding(side: str) -> None:
    right = _six()
    boxed = right.copy()
    boxed[:, :4] = right[:, :4] * 0.5 + np.array([0, 80, 0, 80])
    pair = {"expected": right, "actual": right} | {side: boxed}
    compared = compare_detections(pair["expected"], pair["actual"])
    assert list(compared.settings) == ["format"]
    assert "gain 0.5, padding 0, 80" in compared.settings["format"][side == "actual"]
    assert {box.reason for box in (*compared.missing, *compared.extra)} == {"letterbox"}


def test_padding_that_was_not_subtracted_is_a_letterbox_too() -> None:
    right = _six()
    moved = right + np.array([0, 20, 0, 20, 0, 0])
    compared = compare_detections(right, moved)
    assert "letterbox not undone" in compared.settings["format"][1]


@pytest.mark.parametrize(("size", "shown"), [(None, (1.0, 0.5)), ((640, 480), ((640, 480), (320, 240)))])
def test_boxes_of_a_smaller_image_are_named(size: Any, shown: Any) -> None:
    right = _six()
    smaller = right / np.array([2, 2, 2, 2, 1, 1])
    compared = compare_detections(right, smaller, image_size=size)
    assert compared.settings == {"image_size": shown}
    assert {box.reason for box in (*compared.missing, *compared.extra)} <= {"image-size"}


def test_a_small_systematic_shift_is_measured_per_side() -> None:
    right = _six()
    moved = right + np.array([1.0, -0.5, 1.5, -0.5, 0, 0])
    compared = compare_detections(right, moved)
    assert compared.shift_px == pytest.approx((1.0, -0.5, 1.5, -0.5))
    assert compared.settings == {}
    assert not compared.agrees


def test_class_numbers_that_are_shifted_are_told() -> None:
    right = _six()
    shifted = right + np.array([0, 0, 0, 0, 0, 1])
    compared = compare_detections(right, shifted)
    assert len(compared.flips) == 6
    assert "Every class number is +1" in compared.verdict


def test_a_second_sigmoid_is_recognised() -> None:
    right = _six()
    twice = right.copy()
    twice[:, 4] = 1 / (1 + np.exp(-right[:, 4]))
    compared = compare_detections(right, twice)
    assert "a second sigmoid" in compared.verdict
    assert compared.score_shift > 0


def test_scores_without_objectness_are_recognised_in_the_raw_output(raw: np.ndarray) -> None:
    alone = []
    for head, one in zip(heads_of(raw, "raw"), processed(raw, DETECT), strict=True):
        copy = one.copy()
        for row in copy:
            at = int(np.abs(head.boxes - row[:4]).max(1).argmin())
            row[4] = head.classes[at].max()
        alone.append(copy)
    compared = compare_detections(processed(raw, DETECT), alone, raw=raw)
    assert "class score alone" in compared.verdict


def test_a_score_that_fell_below_a_common_threshold_is_no_setting(raw: np.ndarray) -> None:
    weaker = raw.copy()
    weaker[..., 4] *= 0.8
    expected, actual = processed(raw, replace(DETECT, conf=0.5)), processed(weaker, replace(DETECT, conf=0.5))
    assert sum(map(len, expected)) > sum(map(len, actual))
    compared = compare_detections(expected, actual, raw=(raw, weaker))
    assert {box.reason for box in compared.missing} == {"score"}
    assert compared.score_shift < -0.05


def test_a_score_that_crosses_the_threshold_by_rounding_does_not_fail_the_verdict(raw: np.ndarray) -> None:
    scores = np.sort(np.concatenate([one[:, 4] for one in processed(raw, VAL)]))
    conf = float(scores[len(scores) // 2]) * (1 - 5e-7)
    noisy = raw.copy()
    noisy[..., 4] *= 1 - 1e-6
    settings = replace(VAL, conf=conf)
    compared = compare_detections(processed(raw, settings), processed(noisy, settings), raw=(raw, noisy))
    assert len(compared.missing) == 1
    assert compared.missing[0].within_rounding
    assert compared.agrees


def test_heads_of_two_image_sizes_are_told_apart(raw: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    smaller = raw[:, rng.permutation(raw.shape[1])[: 3 * (16**2 + 8**2 + 4**2)]]
    compared = compare_detections(processed(raw, DETECT), processed(smaller, DETECT), raw=(raw, smaller))
    assert compared.settings["image_size"] == (160, 128)


def test_something_else_altogether_is_unexplained() -> None:
    right = _six()
    other = right.copy()
    corner = np.random.default_rng(3).uniform(0, 900, (6, 2))
    other[:, :4] = np.concatenate([corner, corner + np.random.default_rng(4).uniform(5, 90, (6, 2))], 1)
    other[:, 4] = np.linspace(0.3, 0.7, 6)
    compared = compare_detections(right, other)
    assert "unexplained" in {box.reason for box in compared.missing}
    assert "image_size" not in compared.settings
    assert "format" not in compared.settings


# What people hand in


def _dict(one: np.ndarray) -> Any:
    return {"boxes": one[:, :4], "scores": one[:, 4], "labels": one[:, 5].astype(int)}


def _coco(one: np.ndarray) -> Any:
    return [
        {"image_id": 7, "category_id": int(r[5]), "bbox": [r[0], r[1], r[2] - r[0], r[3] - r[1]], "score": r[4]}
        for r in one.tolist()
    ]


def _ultralytics(one: np.ndarray) -> Any:
    parts = {"xyxy": one[:, :4], "conf": one[:, 4], "cls": one[:, 5]}
    return SimpleNamespace(boxes=SimpleNamespace(**{name: torch.from_numpy(part) for name, part in parts.items()}))


def _frame(one: np.ndarray) -> Any:
    columns = ["xmin", "ymin", "xmax", "ymax", "confidence", "class"]
    return pd.DataFrame(one, columns=columns)


FORMS: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.from_numpy,
    "list of rows": lambda one: one.tolist(),
    "one array per image": lambda one: [one],
    "batch of padded rows": lambda one: np.concatenate([one, np.zeros((4, 6))])[None],
    "batch column": lambda one: np.concatenate([np.zeros((6, 1)), one[:, :4], one[:, 5:], one[:, 4:5]], 1),
    "torchvision": _dict,
    "list of dicts": lambda one: [_dict(one)],
    "three arrays": lambda one: (one[:, :4], one[:, 4], one[:, 5]),
    "COCO results": _coco,
    "ultralytics": _ultralytics,
    "supervision": lambda one: SimpleNamespace(xyxy=one[:, :4], confidence=one[:, 4], class_id=one[:, 5].astype(int)),
    "YOLOv5 results": lambda one: SimpleNamespace(xyxy=[torch.from_numpy(one)]),
    "DataFrame": _frame,
    "records": lambda one: [SimpleNamespace(box=tuple(r[:4]), score=r[4], class_id=int(r[5])) for r in one.tolist()],
}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_is_read(form: str) -> None:
    assert compare_detections(_six(), FORMS[form](_six())).agrees


def test_files_are_read(tmp_path: Path) -> None:
    right = _six()
    (tmp_path / "a.json").write_text(json.dumps(_coco(right)))
    data = {"images": [{"id": 7, "width": 640, "height": 480}], "annotations": _coco(right)}
    (tmp_path / "set.json").write_text(json.dumps(data))
    np.save(tmp_path / "a.npy", right)
    np.savez(tmp_path / "a.npz", **_dict(right))
    centres = written_as(right[:, :4], BoxFormat.CXCYWH) / np.array([640, 480, 640, 480])
    lines = [
        f"{int(k)} {' '.join(f'{v:.8f}' for v in box)} {s:.6f}"
        for box, s, k in zip(centres, *right[:, 4:].T, strict=True)
    ]
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text("\n".join(lines))
    for name in ("a.json", "set.json", "a.npy", "a.npz"):
        assert compare_detections(right, tmp_path / name).agrees, name
    for name in ("labels", "labels/a.txt"):
        assert compare_detections(right, tmp_path / name, image_size=(640, 480)).agrees, name


def test_images_are_paired_by_name_and_may_be_without_detections() -> None:
    one = _six()
    left = [*_coco(one), {**_coco(one)[0], "image_id": 8}]
    compared = compare_detections(left, _coco(one))
    assert [box.image for box in compared.missing] == ["8"]


def test_images_without_names_are_numbered_and_drawn_apart(raw: np.ndarray) -> None:
    compared = compare_detections(processed(raw, VAL), processed(raw, DETECT))
    assert {box.image for box in compared.missing} <= {str(n) for n in range(len(raw))}
    assert len({box.image for box in compared.missing}) > 1
    of_second = [box for box in compared.missing if box.image == "1"]
    legend = compared.plot(which="1").axes[0].get_legend()
    assert f"missing: {len(of_second)}" in {text.get_text() for text in legend.get_texts()}


def test_raw_heads_are_decoded(raw: np.ndarray) -> None:
    assert compare_detections(raw, processed(raw, DETECT)).agrees
    head = heads_of(raw, "raw")[0]
    without_objectness = np.concatenate([written_as(head.boxes, BoxFormat.CXCYWH), head.scores], 1).T[None]
    assert compare_detections(without_objectness, processed(raw[:1], DETECT)).agrees


def test_logits_are_decoded_as_yolov5_and_yolov8_do() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(size=(1, 3, 2, 2, 7)), rng.normal(size=(1, 3, 1, 1, 7)), rng.normal(size=(1, 3, 1, 1, 7))]
    decoded = decode_yolov5(maps)
    assert decoded.shape == (1, 18, 7)
    y = 1 / (1 + np.exp(-maps[0][0, 2, 1, 0]))
    anchor = np.array(YOLOV5_ANCHORS[0][2])
    wanted = np.concatenate([(y[:2] * 2 - 0.5 + [0, 1]) * 8, (2 * y[2:4]) ** 2 * anchor, y[4:]])
    assert decoded[0, 8 + 2] == pytest.approx(wanted)
    peaked = np.full((1, 64 + 2, 1, 1), -50.0)
    peaked[0, [3, 16 + 1, 32 + 2, 48 + 4]] = 50  # left 3, top 1, right 2, bottom 4 strides from the centre
    assert decode_yolov8([peaked])[0, :4, 0] == pytest.approx([4 - 4, 4 + 12, 40, 40])


def test_logits_of_four_axes_are_those_of_yolov5_where_their_channels_say_so() -> None:
    rng = np.random.default_rng(0)
    maps = [rng.normal(-2, 2, (1, 3, side, side, 7)) for side in (8, 4, 2)]
    flat = [m.transpose(0, 1, 4, 2, 3).reshape(1, 21, *m.shape[2:4]) for m in maps]
    assert compare_detections(maps, flat).agrees
    assert len(compare_detections(maps, flat).matches) > 0


def test_a_model_that_gives_its_logits_with_the_decoded_head_is_read_as_the_head(raw: np.ndarray) -> None:
    logits = [torch.zeros(len(raw), 3, side, side, 7) for side in (8, 4, 2)]
    assert compare_detections((torch.from_numpy(raw), logits), raw).agrees
    assert compare_detections(raw, raw, raw=(torch.from_numpy(raw), logits)).agrees


def test_a_raw_head_that_is_not_finite_is_told(raw: np.ndarray) -> None:
    compared = compare_detections(raw, np.full_like(raw, np.nan))
    assert not compared.agrees
    assert "the actual side holds" in compared.verdict
    assert "look at the network first" in compared.verdict


# What does not fit


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (np.zeros((3, 9, 2, 2)), "raw head"),
        (np.array(["a"]), "numbers"),
        ({"boxes": np.zeros((2, 4)), "scores": np.zeros(3)}, "2 boxes, 3 scores"),
        ({"speed": 3}, "has no boxes"),
        (object(), "is not detections"),
        ("nowhere.json", "no such file"),
        ([{"bbox": [1, 2, 3]}], "boxes are numbers"),
        ({"annotations": [3]}, "not COCO detections"),
        ([np.zeros((1, 20, 4, 4))] * 3, "neither YOLOv5's"),
        ([np.zeros((1, 3, 4, 4, 8))] * 2, "3 scales, got 2 maps"),
        ([np.zeros((1, 3, 4, 4, 8)), np.zeros((1, 67, 4, 4))], "as many axes"),
        (np.zeros((0, 400, 8)), "of no image"),
    ],
)
def test_what_is_no_detection_is_refused(source: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        compare_detections(_six(), source)


def test_files_that_are_no_detections_are_refused(tmp_path: Path) -> None:
    for name, content in {"a.json": "{", "b.txt": "0 1 2\n", "c.txt": "a b c d e\n", "d.npy": "x"}.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(InputError, match=name):
            compare_detections(_six(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.txt files"):
        compare_detections(_six(), tmp_path / "empty")


def test_sides_of_other_images_are_refused() -> None:
    with pytest.raises(InputError, match="1 images, actual of 2"):
        compare_detections(_six(), [_six(), _six()])
    other = [{**row, "image_id": 9} for row in _coco(_six())]
    with pytest.raises(InputError, match="same images"):
        compare_detections(_coco(_six()), other)
    with pytest.raises(InputError, match="class names"):
        compare_detections(_six(), {**_dict(_six()), "labels": ["dog"] * 6})
    with pytest.raises(InputError, match="images in the raw output"):
        compare_detections(_six(), _six(), raw=np.zeros((2, 20, 7)))
    with pytest.raises(InputError, match="image_size"):
        compare_detections(_six(), _six(), image_size=(0, 10))
    with pytest.raises(InputError, match="tolerance"):
        compare_detections(_six(), _six(), tolerance=(-1, 0))


@pytest.mark.parametrize("empty", [np.zeros((0, 6)), [], {"boxes": [], "scores": [], "labels": []}, [np.zeros((0, 6))]])
def test_nothing_found_is_an_answer(empty: Any) -> None:
    assert compare_detections(empty, empty).agrees
    compared = compare_detections(_six(), empty)
    assert len(compared.missing) == 6
    assert str(compared)
    assert len(compare_detections(empty, _six()).extra) == 6


def test_boxes_that_are_no_boxes_do_not_crash_it() -> None:
    odd = _six()
    odd[0, :4] = np.nan
    odd[1, 4] = np.nan
    odd[2, 2:4] = odd[2, :2]
    odd[3, 0] = np.inf
    odd[4, :4] = odd[4, [2, 3, 0, 1]]
    assert compare_detections(odd, odd).agrees
    compared = compare_detections(_six(), odd)
    assert not compared.agrees
    assert "not finite" in compared.verdict
    assert "no area" in compared.verdict
    json.dumps(compared.to_dict(), allow_nan=False)
    assert compared.plot() is not None
    assert np.isnan(_six()).sum() == 0


ODD = [0.0, -0.0, 1.0, 0.5, 1e-30, 1e30, -1e30, np.nan, np.inf, -np.inf, 3.4e38, 7.25, 100.0]
NUMBER = st.one_of(st.sampled_from(ODD), st.floats(-1000, 1000))
BOX = st.tuples(*[NUMBER] * 5, st.integers(0, 2))
# Without shrinking, which takes minutes and shows little here.
PHASES = (Phase.explicit, Phase.generate)


@settings(max_examples=40, phases=PHASES)
@given(st.lists(BOX, max_size=5), st.lists(BOX, max_size=5))
def test_any_numbers_give_an_answer(left: list[Any], right: list[Any]) -> None:
    sides = [np.array(side, float).reshape(-1, 6) for side in (left, right)]
    compared = compare_detections(*sides)
    assert compared.verdict
    assert len({box.index for box in compared.missing}) <= len(left)
    assert compare_detections(sides[0], sides[0]).agrees


# Matching


def test_matching_is_optimal_where_greedy_is_not() -> None:
    expected = Detections(np.array([[0, 0, 10, 10], [0, 3, 10, 13.0]]), np.array([0.9, 0.8]), np.array([0, 0]))
    actual = Detections(np.array([[0, 2.5, 10, 12.5], [0, 5.0, 10, 15]]), np.array([0.9, 0.8]), np.array([0, 0]))
    pairs, _ = pair_boxes(expected, actual)
    assert pairs.tolist() == [[0, 0], [1, 1]] or pairs.tolist() == [[1, 0]]
    assert len({*pairs[:, 0].tolist()}) == len(pairs)


def test_an_exact_pair_is_not_given_up_for_two_poor_ones() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14.0]])
    expected = Detections(boxes, np.array([0.9, 0.8]), np.array([0, 0]))
    actual = Detections(np.array([[0, 0, 10, 10], [0, -3.0, 10, 7]]), np.array([0.9, 0.8]), np.array([0, 0]))
    assert pair_boxes(expected, actual)[0].tolist() == [[0, 0]]


def test_thousands_of_boxes_are_matched() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 5000, (4_000, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 60, (4_000, 2))], 1)
    many = Detections(boxes, rng.uniform(size=4_000), np.zeros(4_000, int))
    assert len(pair_boxes(many, many)[0]) == 4_000


# Views


def test_average_precision_is_that_of_pycocotools(raw: np.ndarray) -> None:
    scenes = [draw_scene(np.random.default_rng(seed)) for seed in range(5221, 5227)]
    labels = [{"boxes": s.boxes, "labels": s.classes} for s in scenes]
    compared = compare_detections(processed(raw, VAL), processed(raw, replace(VAL, conf=0.6)))
    table = compared.accuracy(labels).set_index("judged")
    assert 0.5 < table.loc["expected", "AP50"] <= 1
    assert table.loc["actual", "AP50"] <= table.loc["expected", "AP50"]
    itself = compare_detections(processed(raw, VAL), processed(raw, VAL)).accuracy()
    assert itself.AP.tolist() == pytest.approx([1, 1])
    with pytest.raises(InputError, match="labels: 1 images"):
        compared.accuracy(labels[:1])


def test_a_shift_of_all_scores_is_found_and_none_is_invented(raw: np.ndarray) -> None:
    expected = processed(raw, VAL)
    quiet = compare_detections(expected, expected).confidence()
    assert not quiet.shifted
    assert "No shift" in quiet.verdict
    lower = [one * np.array([1, 1, 1, 1, 0.95, 1]) for one in expected]
    shifted = compare_detections(expected, lower).confidence()
    assert shifted.shifted
    assert shifted.wilcoxon < 1e-3
    assert shifted.median_shift < 0


def test_another_threshold_is_no_shift_of_the_scores(raw: np.ndarray) -> None:
    compared = compare_detections(processed(raw, VAL), processed(raw, replace(VAL, conf=0.25)))
    assert not compared.confidence().shifted


def test_the_table_has_a_row_for_every_box(raw: np.ndarray) -> None:
    compared = compare_detections(processed(raw, VAL), processed(raw, DETECT))
    table = compared.to_frame()
    counts = table.status.value_counts()
    assert counts["agrees"] == len(compared.matches)
    assert counts["missing"] == len(compared.missing)
    assert "missing" in compared._repr_html_()


def test_pictures_are_written(raw: np.ndarray, tmp_path: Path) -> None:
    image = draw_scene(np.random.default_rng(5221)).image
    compared = compare_detections(processed(raw, VAL), processed(raw, DETECT))
    compared.plot(image, path=tmp_path / "boxes.png")
    compared.confidence().plot(tmp_path / "scores.png")
    assert (tmp_path / "boxes.png").stat().st_size > 4_000
    assert (tmp_path / "scores.png").stat().st_size > 5_000
    with pytest.raises(InputError, match="no image"):
        compared.plot(which="x")
    with pytest.raises(InputError, match="an image is"):
        compared.plot(np.zeros(3))


@pytest.mark.parametrize(("module", "package"), [(matching, "scipy.optimize"), (accuracy, "pycocotools.coco")])
def test_a_missing_package_says_what_to_install(module: Any, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"layerdiff\[pipeline\]"):
        compare_detections(_six(), _six()).accuracy()
    assert module


# The command line


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `layerdiff detections`: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["layerdiff", "detections", *arguments])
        with pytest.raises(SystemExit) as left:
            cli.main()
        return int(left.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def folder(raw: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files of two sides and their raw head; one stands in the folder."""
    for name, used in {"a": VAL, "b": DETECT}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(_coco(processed(raw[:1], used)[0])))
    np.save(tmp_path / "raw.npy", raw[:1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_line_says_what_differs_and_exits_accordingly(command: Any, folder: Path) -> None:
    assert command("a.json", "a.json")[::2] == (0, "")
    views = ("--csv", "t.csv", "--plot", "p.png", "--save", "c.json", "--labels", "a.json")
    code, out, err = command("a.json", "b.json", "--raw", "raw.npy", *views)
    assert (code, err) == (1, "")
    assert "conf 0.001 against 0.25" in out
    assert "AP50" in out
    assert json.loads((folder / "c.json").read_text())["settings"]["conf"] == [0.001, 0.25]
    assert (folder / "t.csv").is_file()
    assert (folder / "p.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.json", "nowhere.json"), "no such file"),
        (("a.json", "b.json", "--image-size", "big"), "WIDTHxHEIGHT"),
        (("a.json", "b.json", *["--raw", "raw.npy"] * 3), "3 times"),
        (("a.json", "b.json", "--csv", "nowhere/t.csv"), "does not exist"),
    ],
)
def test_the_command_line_refuses_what_it_cannot_use(
    command: Any, folder: Path, arguments: tuple[str, ...], words: str
) -> None:
    code, _, err = command(*arguments)
    assert code == 2
    assert words in err


def test_the_comparison_is_public() -> None:
    assert layerdiff.compare_detections is compare_detections
