"""Reproductions: they show the difference without layerdiff and without the model's code, and say when it is gone."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx.numpy_helper
import pytest
import torch
from torch import Tensor, nn

import layerdiff
from layerdiff.errors import InputError, ReproduceError
from tests.conftest import with_initializer
from tests.test_repair import FAULTS, Signed, changed, node, set_attribute, small
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report

    Trace = Callable[..., Report]

# Stands in front of every import of layerdiff, its tests, and what it needs besides.
_WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("layerdiff", "tests", "pandas", "matplotlib", "rich"):
            raise ImportError(name + " is not on this machine")
sys.meta_path.insert(0, Refuse())
"""


def run_alone(folder: Path) -> subprocess.CompletedProcess[str]:
    """reproduce.py on a machine that has torch, onnx, onnxruntime and numpy only."""
    (folder / "alone.py").write_text(_WITHOUT + "import runpy\nrunpy.run_path('reproduce.py', run_name='__main__')\n")
    command = [sys.executable, "-W", "ignore", "alone.py"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    (folder / "alone.py").unlink()
    return done


@pytest.fixture(scope="module")
def signed() -> tuple[nn.Module, onnx.ModelProto]:
    model = fill(Signed()).eval()
    return model, export(model, (small(),), Exporter.TORCHSCRIPT)


@pytest.mark.parametrize("name", ["weights", "dropped operator", "swapped operands", "inserted quantiser"])
def test_a_reproduction_runs_alone_and_shows_the_difference(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto], name: str
) -> None:
    model, healthy = signed
    report = trace(model, FAULTS[name](healthy), small())
    folder = report.reproduce(tmp_path / "case")
    done = run_alone(folder)
    assert done.returncode == 1, done.stderr
    assert "DIFFERS" in done.stdout
    onnx.checker.check_model(str(folder / "model.onnx"))
    assert len(onnx.load(folder / "model.onnx").graph.node) <= 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["case"]
    text = (folder / "README.md").read_text(encoding="utf-8")
    first, found = report.first_divergence, report.diagnoses[0]
    for wanted in (first.layer, found.cause, found.summary, "opset", torch.__version__, "max_abs", done.stdout.strip()):
        assert wanted in text


def test_a_reproduction_says_when_the_difference_is_gone(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    folder = trace(model, FAULTS["attribute"](healthy), small()).reproduce(tmp_path / "case")
    assert run_alone(folder).returncode == 1
    corrected = onnx.load(folder / "model.onnx")
    set_attribute("LeakyRelu", "alpha", 0.2)(corrected.graph)
    onnx.save(corrected, folder / "model.onnx")
    done = run_alone(folder)
    assert done.returncode == 0, done.stderr
    assert "agrees" in done.stdout


def test_nan_on_one_side_is_a_difference(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    bad = with_initializer(
        healthy, "first.weight", lambda w: np.where(np.arange(w.size).reshape(w.shape) == 3, np.float32(np.nan), w)
    )
    assert run_alone(trace(model, bad, small()).reproduce(tmp_path / "case")).returncode == 1


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Linear(5, 6)
        self.gru = nn.GRU(6, 7, batch_first=True, bidirectional=True)
        self.lstm = nn.LSTM(14, 4, num_layers=2, batch_first=True)
        self.cell = nn.GRUCell(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.gru(self.inlet(x))
        y, (state, _) = self.lstm(y)
        return self.cell(y[:, -1]) + state.sum()


@pytest.mark.parametrize("op", ["GRU", "LSTM"])
def test_recurrent_layers_are_made_anew(trace: Trace, tmp_path: Path, op: str) -> None:
    model = fill(Recurrent()).eval()
    x = noise("recurrent.x", 2, 6, 5)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)

    def wrong(graph: onnx.GraphProto) -> None:
        name = node(graph, op).input[1]
        tensor = next(t for t in graph.initializer if t.name == name)
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.5), name))

    report = trace(model, changed(proto, wrong), x)
    folder = report.reproduce(tmp_path / "case")
    assert run_alone(folder).returncode == 1
    assert f"torch.nn.{op}(" in (folder / "reference.py").read_text(encoding="utf-8")


def test_any_of_several_divergences_can_be_asked_for(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    report = trace(model, FAULTS["two faults"](healthy), small())
    for number, divergence in enumerate(report.divergences):
        folder = report.reproduce(tmp_path / str(number), number)
        title = (folder / "README.md").read_text(encoding="utf-8").splitlines()[0]
        assert title.startswith(f"# {divergence.layer or '(root)'} ")
    with pytest.raises(ReproduceError, match="the report has 2 divergences, numbered from 0"):
        report.reproduce(tmp_path / "none", 2)


def test_a_folder_with_something_else_in_it_is_refused(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    report = trace(model, FAULTS["axis"](healthy), small())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="holds something else than a reproduction"):
        report.reproduce(tmp_path / "mine")
    with pytest.raises(InputError, match="does not exist; make it first"):
        report.reproduce(tmp_path / "nowhere" / "case")
    report.reproduce(tmp_path / "case")
    report.reproduce(tmp_path / "case")  # an earlier one is replaced


def test_there_is_nothing_to_reproduce_in_a_good_file_or_a_loaded_report(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    with pytest.raises(ReproduceError, match="nothing to reproduce: the file agrees"):
        trace(model, healthy, small()).reproduce(tmp_path / "case")
    trace(model, FAULTS["axis"](healthy), small()).save(tmp_path / "report.json")
    with pytest.raises(ReproduceError, match="trace again"):
        layerdiff.load(tmp_path / "report.json").reproduce(tmp_path / "case")


def test_what_only_shows_in_the_whole_is_said_to(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    """A case that agrees on its own is not handed over."""
    from dataclasses import replace

    model, healthy = signed
    report = trace(model, FAULTS["attribute"](healthy), small())
    good = replace(report, live=replace(report.live, source=healthy))
    with pytest.raises(ReproduceError, match="on its own it agrees: the difference needs what is around it"):
        good.reproduce(tmp_path / "case")
    assert list(tmp_path.iterdir()) == []
