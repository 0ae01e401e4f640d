"""A file beyond two gigabytes, with its data outside: it is traced, and the weights are not copied."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
import pytest

from tests.zoo.heavy import ALL_WEIGHTS, ONE_WEIGHT

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="a process tells its peak on Linux only"),
]

BESIDE = 8 * ONE_WEIGHT
"""What may be taken beside both sides' weights: one layer's weight at a time is looked at in double precision, which
takes twice its size, in a few versions. It is a fifth of all weights, so that a third copy of those would be seen."""


def run(*arguments: str) -> str:
    """What a process of its own says, from the root of the repository."""
    command, folder = [sys.executable, "-W", "ignore", "-m", "tests.zoo.heavy", *arguments], Path(__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder, env=dict(os.environ)).stdout


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("heavy")
    run("export", str(folder / "model.onnx"))
    yield folder / "model.onnx"
    shutil.rmtree(folder)  # pytest would keep it for the next three runs


def traced(path: Path, layer: str = "") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("trace", str(path), *([layer] if layer else [])).splitlines()[-1])
    return found


def test_the_file_is_one_that_no_message_could_hold(file: Path) -> None:
    model = onnx.load(file, load_external_data=False)
    outside = {entry.value for t in model.graph.initializer for entry in t.external_data if entry.key == "location"}
    size = sum((file.parent / place).stat().st_size for place in outside)
    assert size >= ALL_WEIGHTS > 2.5e9


def test_a_good_file_agrees_layer_by_layer_and_no_weight_is_copied(file: Path) -> None:
    found = traced(file)
    assert found["agrees"]
    assert found["compared"] > 40
    assert found["before"] < ALL_WEIGHTS + 1e9  # the model, torch and the runtime
    assert found["peak"] - found["before"] < ALL_WEIGHTS + BESIDE  # the session of the file that ships


def test_one_changed_weight_is_named_and_no_weight_is_copied(file: Path) -> None:
    found = traced(file, "layers.26")
    assert not found["agrees"]
    assert found["layer"] == "layers.26"
    assert found["causes"] == ["weights"]
    assert found["peak"] - found["before"] < ALL_WEIGHTS + BESIDE
