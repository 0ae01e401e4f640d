"""Inputs that are no pictures: tokens with their masks, and waveforms."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from scipy import signal

import layerdiff

ROWS = [[101, *np.random.default_rng(0).integers(1000, 20000, n).tolist(), 102] for n in (7, 12, 3)]


def tokens(rows: list[list[int]], length: int = 16, pad: int = 0, side: str = "right") -> dict[str, Any]:
    ids, mask = np.full((len(rows), length), pad), np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[i, at], mask[i, at] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


EXPECTED = tokens(ROWS)
BARE = [row[1:-1] for row in ROWS]
CASES = {
    "left": (tokens(ROWS, side="left"), ["padding"]),
    "another pad": (tokens(ROWS, pad=1), ["padding"]),
    "longer": (tokens(ROWS, length=20), ["padding"]),
    "no special tokens": (tokens(BARE), ["special-tokens"]),
    "no special tokens, left": (tokens(BARE, length=14, side="left"), ["special-tokens", "padding"]),
    "offset": (tokens([[t + 3 for t in row] for row in ROWS]), ["offset"]),
    "inverted mask": ({**EXPECTED, "attention_mask": 1 - EXPECTED["attention_mask"]}, ["inverted"]),
    "cut off": (tokens([row[:8] for row in ROWS]), ["truncation"]),
    "cut off, end kept": (tokens([row if len(row) < 9 else [*row[:7], row[-1]] for row in ROWS]), ["truncation"]),
    "nothing masked": ({**EXPECTED, "attention_mask": np.ones((3, 16), np.int64)}, ["not-masked"]),
    "another template": (tokens([[0, *row, 2] for row in BARE]), ["special-tokens"]),
    "cut off in front": (tokens([row[-8:] for row in ROWS]), ["truncation"]),
    "other rows": ({name: a[[2, 0, 1]] for name, a in EXPECTED.items()}, ["row-order", "row-order"]),
    "additive mask": ({**EXPECTED, "attention_mask": (EXPECTED["attention_mask"] - 1) * 1e4}, ["additive"]),
    "mask of the other side": (
        {**EXPECTED, "attention_mask": tokens(ROWS, side="left")["attention_mask"]},
        ["other-side"],
    ),
    "no mask": ({"input_ids": EXPECTED["input_ids"]}, ["missing"]),
}


@pytest.mark.parametrize("name", CASES)
def test_what_happened_to_tokens_is_told(name: str) -> None:
    actual, how = CASES[name]
    found = layerdiff.compare_inputs(EXPECTED, actual)
    assert {m.kind for m in found.mismatches} == {"tokens"}
    assert [m.parameters["how"] for m in found.mismatches] == how
    assert found.verified


@pytest.mark.parametrize(
    "name",
    [
        *("left", "another pad", "longer", "no special tokens", "no special tokens, left", "offset"),
        *("another template", "other rows"),
    ],
)
def test_the_code_for_tokens_corrects_them(name: str) -> None:
    actual = CASES[name][0]
    scope: dict[str, Any] = {}
    exec(layerdiff.compare_inputs(EXPECTED, actual).code, scope)
    assert np.array_equal(scope["corrected_input_ids"](actual["input_ids"]), EXPECTED["input_ids"])


def test_other_texts_are_unrelated_and_equal_ones_agree() -> None:
    other = tokens([np.random.default_rng(7).integers(30000, 40000, 9).tolist() for _ in range(3)])
    assert layerdiff.compare_inputs(EXPECTED, other).mismatches[0].kind == "unrelated"
    assert layerdiff.compare_inputs(EXPECTED, tokens(ROWS)).agrees


def test_narrow_token_numbers_are_a_matter_of_type() -> None:
    found = layerdiff.compare_inputs(EXPECTED, {name: a.astype(np.int32) for name, a in EXPECTED.items()})
    assert {m.kind for m in found.mismatches} == {"dtype"}


def wave() -> Any:
    noise = np.random.default_rng(3).normal(size=16000)
    smooth = signal.lfilter([0.2], [1, -0.8], noise)
    return (smooth / np.abs(smooth).max() * 0.9).astype(np.float32)


WAVE = wave()
SOUNDS = {
    "integers as floats": (WAVE * np.float32(32768), ["scale"]),
    "no batch axis": (WAVE[None], ["layout"]),
    "a part": (WAVE[300:12000], ["audio"]),
    "late": (np.r_[np.zeros(100, np.float32), WAVE[:-100]], ["audio"]),
    "16 bits": (np.rint(WAVE * 32768).astype(np.int16), ["dtype", "scale", "dtype"]),
    "cut to 16 bits": ((WAVE * 32767).astype(np.int16), ["dtype", "scale", "dtype"]),
    "channels last": (np.stack([WAVE, WAVE[::-1]], axis=1), ["layout", "audio"]),
    "pre-emphasis": (np.r_[WAVE[0], WAVE[1:] - np.float32(0.97) * WAVE[:-1]], ["audio"]),
    "clipped": (np.clip(WAVE, -0.3, 0.4), ["dtype"]),
    "half the rate": (signal.resample_poly(WAVE, 1, 2).astype(np.float32), ["audio"]),
    "unit variance": ((WAVE - WAVE.mean()) / WAVE.std(), ["mean-std"]),
    "another sound": (np.random.default_rng(9).normal(size=16000).astype(np.float32), ["unrelated"]),
}


@pytest.mark.parametrize("name", SOUNDS)
def test_what_happened_to_a_sound_is_told(name: str) -> None:
    actual, kinds = SOUNDS[name]
    found = layerdiff.compare_inputs(WAVE, actual)
    assert [m.kind for m in found.mismatches] == kinds
    assert found.verified == (kinds != ["unrelated"])


UNPROVEN = {
    "another rate, padded": (np.pad(signal.resample_poly(WAVE, 1, 2), (0, 8000)), ["sample-rate", "window"]),
    "by way of half the rate": (signal.resample_poly(signal.resample_poly(WAVE, 1, 2), 2, 1), ["band"]),
    "noise": (WAVE + np.random.default_rng(5).normal(0, 1e-3, WAVE.size).astype(np.float32), ["effect"]),
}


@pytest.mark.parametrize("name", UNPROVEN)
def test_what_cannot_be_proven_of_a_sound_is_told_and_not_called_unrelated(name: str) -> None:
    actual, how = UNPROVEN[name]
    found = layerdiff.compare_inputs(WAVE, actual.astype(np.float32))
    assert [(m.kind, m.parameters["how"]) for m in found.mismatches] == [("audio", h) for h in how]
    assert not found.verified


def test_the_code_for_a_sound_corrects_it() -> None:
    stereo = np.stack([WAVE[::-1], WAVE], axis=1)
    found = layerdiff.compare_inputs(WAVE, stereo)
    scope: dict[str, Any] = {}
    exec(found.code, scope)
    assert found.mismatches[1].parameters["channel"] == 1
    assert np.array_equal(scope["corrected"](stereo), WAVE)


def test_ten_minutes_of_sound_take_seconds() -> None:
    long = np.tile(WAVE, 600)
    started = time.process_time()
    assert [m.kind for m in layerdiff.compare_inputs(long, long * 2).mismatches] == ["scale"]
    assert time.process_time() - started < 20
