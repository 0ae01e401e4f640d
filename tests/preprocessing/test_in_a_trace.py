"""Inside a trace, and on the command line: the inputs first, then the network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import layerdiff
from layerdiff.cli import app
from layerdiff.errors import LayerdiffError
from layerdiff.report.text import summary
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from pathlib import Path

RUN = CliRunner()
MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    image = torch.rand(1, 3, 8, 8)
    path = tmp_path_factory.mktemp("inputs") / "model.onnx"
    onnx.save(export(model, (image,), Exporter.TORCHSCRIPT), path)
    return model, path, image


def trace(exported: Any, inputs: Any) -> layerdiff.Report:
    model, path, _ = exported
    return layerdiff.trace(model, path, inputs, progress=False)


def test_the_network_is_judged_apart_from_what_is_fed(exported: Any, tmp_path: Path) -> None:
    image = exported[2]
    report = trace(exported, layerdiff.InputPair(image, image.flip(1) * 255))
    assert (report.agrees, report.network_agrees) == (False, True)
    assert [(d.cause, d.verified) for d in report.diagnoses] == [("preprocessing", True)]
    assert report.verdict.startswith(
        "The network agrees on the same input; what is fed differs: the first and the third"
    )
    assert "def corrected(x):" in summary(report)
    read = layerdiff.load(report.save(tmp_path / "report.json"))
    assert read == report
    page = report.to_html(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "channel-order" in page
    assert "def corrected" in page
    with pytest.raises(layerdiff.RepairError, match="nothing to repair"):
        report.repair(tmp_path / "fixed.onnx")


def test_equal_inputs_say_so_and_change_nothing(exported: Any) -> None:
    image = exported[2]
    report = trace(exported, layerdiff.InputPair(image, image.numpy()))
    assert report.agrees
    assert report.diagnoses == ()
    assert report.verdict.startswith("The inputs agree (max-abs 0).")
    assert trace(exported, image).inputs is None


def test_a_faulty_network_is_still_found_behind_other_inputs(exported: Any) -> None:
    model, path, image = exported
    wrong = nn.Sequential(*model).eval()
    wrong.load_state_dict(model.state_dict())
    with torch.no_grad():
        wrong[3].bias += 1
    try:
        report = layerdiff.trace(wrong, path, layerdiff.InputPair(image, image * 255), progress=False)
    finally:
        with torch.no_grad():
            wrong[3].bias -= 1  # the modules are shared
    assert [d.cause for d in report.diagnoses] == ["preprocessing", "weights"]
    assert not report.diagnoses[0].verified
    assert report.first_divergence is not None
    assert "What is fed differs" in report.verdict
    assert "So does the network" in report.verdict


@pytest.mark.parametrize("form", [list, tuple, iter])
def test_several_pairs_are_several_samples(exported: Any, form: Any) -> None:
    image = exported[2]
    pairs = [layerdiff.InputPair(image, image), layerdiff.InputPair(image, image * 255)]
    report = trace(exported, form(pairs))
    assert len(report.samples) == 2
    assert [m.kind for m in report.inputs.mismatches] == ["scale"]


def test_pairs_and_plain_samples_do_not_mix(exported: Any) -> None:
    image = exported[2]
    with pytest.raises(layerdiff.InputError, match="1 of 2 samples are an InputPair"):
        trace(exported, [layerdiff.InputPair(image, image), image])


def test_plain_iterators_still_work(exported: Any) -> None:
    image = exported[2]
    assert len(trace(exported, iter([image, image])).samples) == 2
    with pytest.raises(layerdiff.SampleError, match="an empty list"):
        trace(exported, iter([]))


@pytest.fixture
def files(exported: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    image = exported[2].numpy()
    for name, array in {"a": image, "b": image[:, ::-1], "c": image}.items():
        np.save(f"{name}.npy", array)
    (tmp_path / "fed_by_two.py").write_text(MODULE, encoding="utf-8")
    return tmp_path


def test_the_command_line_compares_two_files(files: Path) -> None:
    done = RUN.invoke(app, ["inputs", "a.npy", "b.npy", "--save", "found.json"])
    assert done.exit_code == 1, done.output
    assert "BGR" in done.output
    assert '"channel-order"' in (files / "found.json").read_text(encoding="utf-8")
    assert RUN.invoke(app, ["inputs", "a.npy", "c.npy"]).exit_code == 0
    failed = RUN.invoke(app, ["inputs", "a.npy", "nothing.npy"])
    assert isinstance(failed.exception, LayerdiffError)


def test_the_command_line_traces_with_what_the_candidate_is_fed(files: Path, exported: Any) -> None:
    model = str(exported[1])
    options = ["fed_by_two:build", model, "-q", "--isolate", "none", "--input", "a.npy"]
    assert RUN.invoke(app, ["trace", *options, "--candidate-input", "c.npy"]).exit_code == 0
    done = RUN.invoke(app, ["trace", *options, "--candidate-input", "b.npy"])
    assert done.exit_code == 1, done.output
    assert "what is fed differs" in done.output
    failed = RUN.invoke(app, ["trace", *options, "--image", "photo.jpg"])
    assert isinstance(failed.exception, LayerdiffError)
