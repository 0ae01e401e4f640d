"""The command line: exit codes, files, and one line on stderr when something cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pandas as pd
import pytest

import layerdiff
from layerdiff import cli
from tests.conftest import divergence, report_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ZOO_MODULE = """
import torch
from tests.conftest import Classifier
from tests.zoo.weights import fill, noise, settle

def build():
    return settle(fill(Classifier()), noise("classifier.batch", 8, 3, 10, 10))

def build_with_inputs():
    return build(), noise("classifier.image", 2, 3, 10, 10)

model = build()
not_a_model = 3

def fails():
    raise KeyError("out of cheese")
"""


@pytest.fixture
def folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, healthy: onnx.ModelProto, broken: onnx.ModelProto, image: Tensor
) -> Path:
    """A folder with a module that builds the classifier, a good and a bad export, and an input; one stands in it."""
    (tmp_path / "mymodels.py").write_text(ZOO_MODULE)
    (tmp_path / "syntax_error.py").write_text("def build(:\n")
    onnx.save(healthy, tmp_path / "good.onnx")
    onnx.save(broken, tmp_path / "bad.onnx")
    np.save(tmp_path / "x.npy", image.numpy())
    np.savez(tmp_path / "named.npz", image=image.numpy())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "mymodels", raising=False)
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line; gives exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["layerdiff", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        out, err = capfd.readouterr()
        return int(stopped.value.code or 0), out, err

    return call


Run = "Callable[..., tuple[int, str, str]]"


def test_a_good_export_exits_with_zero(folder: Path, run: Run) -> None:
    code, out, err = run("trace", "mymodels:build_with_inputs", "good.onnx", "--quiet")
    assert code == 0
    assert out.startswith("PyTorch and ONNX agree")
    assert err == ""


def test_a_bad_export_exits_with_one_and_names_the_layer(folder: Path, run: Run) -> None:
    code, out, err = run("trace", "mymodels:build_with_inputs", "bad.onnx", "--quiet")
    assert code == 1
    assert out.startswith("block.0 [Conv2d, operator aten.convolution] is the first layer that diverges")
    assert "Proven" in out
    assert err == ""


@pytest.mark.parametrize("model", ["mymodels:build", "mymodels:model"])
@pytest.mark.parametrize("given", ["x.npy", "named.npz"])
def test_inputs_come_from_files_when_the_model_brings_none(folder: Path, run: Run, model: str, given: str) -> None:
    assert run("trace", model, "bad.onnx", "-q", "--input", given)[0] == 1
    assert run("trace", model, "good.onnx", "-q", "-i", given, "-i", given)[0] == 0


def test_everything_that_was_asked_for_is_written(folder: Path, run: Run) -> None:
    files = {name: folder / f"out.{name}" for name in ("html", "csv", "json", "png")}
    code, out, _ = run(
        "trace", "mymodels:build_with_inputs", "bad.onnx", "-q",
        "--html", files["html"], "--csv", files["csv"], "--save", files["json"], "--plot", files["png"],
    )  # fmt: skip
    assert code == 1
    for path in files.values():
        assert path.stat().st_size > 200
        assert f"wrote {path}" in out
    saved = layerdiff.load(files["json"])
    assert saved.first_divergence.layer == "block.0"
    assert list(pd.read_csv(files["csv"], keep_default_na=False)["layer"]) == [row.layer for row in saved.layers]


def test_a_fixed_tolerance_and_the_granularity_reach_the_trace(folder: Path, run: Run) -> None:
    arguments = ("trace", "mymodels:build_with_inputs", "bad.onnx", "-q")
    assert run(*arguments, "--atol", 10)[0] == 0
    assert run(*arguments, "--rtol", 0.001)[0] == 1
    assert run(*arguments, "--granularity", "op", "--save", "ops.json")[0] == 1
    assert any(row.op == "aten.add.Tensor" for row in layerdiff.load("ops.json").layers)


def test_pairs_are_written_edited_and_read_back(folder: Path, run: Run) -> None:
    arguments = ("trace", "mymodels:build_with_inputs", "bad.onnx", "-q")
    code, out, _ = run(*arguments, "--write-pairs", "mapping.yaml", "--save", "first.json")
    assert code == 1
    assert "wrote mapping.yaml" in out
    text = Path("mapping.yaml").read_text(encoding="utf-8")
    Path("mapping.yaml").write_text(text.replace("# block.0: ", "block.0: "), encoding="utf-8")
    code, _, _ = run(*arguments, "--pairs", "mapping.yaml", "--save", "second.json", "--write-pairs", "mapping.yaml")
    assert code == 1
    given = {row.key: str(row.evidence) for row in layerdiff.load("second.json").layers}
    assert given["block.0"] == "given"
    assert "\nblock.0: " in Path("mapping.yaml").read_text(encoding="utf-8")
    assert run("report", "first.json", "--write-pairs", "again.yaml")[0] == 1
    assert Path("again.yaml").read_text(encoding="utf-8") == text


def test_masks_come_from_a_file(folder: Path, run: Run) -> None:
    arguments = ("trace", "mymodels:build_with_inputs", "-q", "--valid", "mask.npz")
    np.savez("mask.npz", image=[True, False])
    assert run(*arguments, "good.onnx")[0] == 0
    assert run(*arguments, "bad.onnx")[0] == 1
    np.savez("mask.npz", image=[False, False])
    code, _, err = run(*arguments, "bad.onnx")
    assert code == 2
    assert "nothing is left to compare" in err


def test_a_frozen_size_exits_with_one(folder: Path, run: Run) -> None:
    np.save("larger.npy", np.zeros((2, 3, 12, 12), np.float32))
    code, out, _ = run("trace", "mymodels:build", "good.onnx", "-q", "-i", "x.npy", "-i", "larger.npy")
    assert code == 1
    assert out.startswith("Agrees at 2x3x10x10 and is refused at 2x3x12x12")


def test_the_progress_bar_goes_to_stderr(folder: Path, run: Run) -> None:
    _, out, err = run("trace", "mymodels:build_with_inputs", "good.onnx")
    assert "done" in err
    assert "done" not in out


UNUSABLE = {
    "no such file": (("mymodels:build_with_inputs", "missing.onnx"), "missing.onnx: no such file"),
    "not onnx": (("mymodels:build_with_inputs", "mymodels.py"), "mymodels.py: "),
    "no inputs": (("mymodels:build", "good.onnx"), "mymodels:build gives no example inputs; pass --input x.npz"),
    "no such input": (("mymodels:build", "good.onnx", "-i", "none.npy"), "none.npy: no such file"),
    "no colon": (("mymodels", "good.onnx"), "'mymodels': wanted package.module:name"),
    "no such module": (("nowhere.models:build", "good.onnx"), "cannot import nowhere"),
    "no such name": (("mymodels:missing", "good.onnx"), "has no 'missing'"),
    "not a model": (("mymodels:not_a_model", "good.onnx", "-i", "x.npy"), "ModelProto), got a int"),
    "no folder for a page": (("mymodels:build_with_inputs", "bad.onnx", "--html", "no/where.html"), "does not exist"),
    "no folder for a plot": (("mymodels:build_with_inputs", "bad.onnx", "--plot", "no/where.png"), "does not exist"),
    "no folder for a table": (("mymodels:build_with_inputs", "bad.onnx", "--csv", "no/where.csv"), "does not exist"),
    "masks that are not there": (("mymodels:build_with_inputs", "bad.onnx", "--valid", "no.npz"), "no such file"),
    "masks of one array": (("mymodels:build_with_inputs", "bad.onnx", "--valid", "x.npy"), "not an .npz file"),
    "pairs that are not there": (("mymodels:build_with_inputs", "bad.onnx", "--pairs", "no.yaml"), "no such file"),
    "no folder for pairs": (("mymodels:build_with_inputs", "bad.onnx", "--write-pairs", "no/p.yaml"), "does not exist"),
    "no folder for a report": (("mymodels:build_with_inputs", "bad.onnx", "--save", "no/where.json"), "does not exist"),
}


@pytest.mark.parametrize(("arguments", "text"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_what_cannot_be_used_is_one_line_on_stderr_and_exit_two(
    folder: Path, run: Run, arguments: tuple[str, ...], text: str
) -> None:
    code, out, err = run("trace", *arguments, "-q")
    assert code == 2
    assert out == ""
    assert err.startswith("layerdiff: ")
    assert text in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("model", ["mymodels:fails", "syntax_error:build"])
def test_code_of_the_user_that_fails_is_not_mistaken_for_a_divergence(folder: Path, run: Run, model: str) -> None:
    code, out, err = run("trace", model, "good.onnx", "-q")
    assert code == 2
    assert out == ""
    assert "out of cheese" in err or "SyntaxError" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("trace",),
        ("trace", "mymodels:build"),
        ("--nonsense",),
        ("dance",),
        ("trace", "m:b", "x.onnx", "--granularity", "layer"),
    ],
)
def test_wrong_usage_exits_with_two(folder: Path, run: Run, arguments: tuple[str, ...]) -> None:
    code, _, err = run(*arguments)
    assert code == 2
    assert err


def test_help_explains_every_command(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0
    for command in ("trace", "report", "doctor"):
        assert command in out


@pytest.mark.parametrize(
    ("report", "expected"), [(report_of(), 0), (report_of(divergence("stem", None)), 1)], ids=["agrees", "diverges"]
)
def test_a_saved_report_is_shown_again_with_its_exit_code(
    tmp_path: Path, run: Run, report: object, expected: int
) -> None:
    assert isinstance(report, layerdiff.Report)
    path = report.save(tmp_path / "report.json")
    code, out, err = run("report", path, "--html", tmp_path / "again.html", "--csv", tmp_path / "again.csv")
    assert (code, err) == (expected, "")
    assert out.startswith(report.verdict[:40])
    assert (tmp_path / "again.html").is_file()
    assert (tmp_path / "again.csv").is_file()


def test_a_saved_report_that_cannot_be_read_exits_with_two(tmp_path: Path, run: Run) -> None:
    (tmp_path / "report.json").write_text("{}")
    code, out, err = run("report", tmp_path / "report.json")
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1


def test_doctor_lists_versions_and_providers(run: Run) -> None:
    code, out, _ = run("doctor")
    assert code == 0
    assert onnx.__version__ in out
    assert "CPUExecutionProvider" in out
    assert "everything that is needed is there" in out


def test_doctor_tells_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerdiff.environment.PACKAGES", ("torch", "a-package-that-is-not-there"))
    code, out, _ = run("doctor")
    assert code == 2
    assert "missing: a-package-that-is-not-there" in out


def test_the_installed_command_runs() -> None:
    command = Path(sys.executable).with_name("layerdiff")
    done = subprocess.run(
        [command, "trace", "nowhere:build", "x.onnx"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("layerdiff: 'nowhere:build': cannot import nowhere")


def test_a_divergence_can_be_repaired_and_reproduced(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["trace", "mymodels:build", "bad.onnx", "-i", "x.npy", "-q", "--repair", "fixed.onnx"]
    monkeypatch.setattr(sys, "argv", ["layerdiff", *arguments, "--reproduce", "case"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 1  # the exit code is about the file that was traced
    said = " ".join(capsys.readouterr().out.split())
    assert "wrote case" in said
    assert "wrote fixed.onnx PyTorch and ONNX agree" in said
    assert (folder / "case" / "reproduce.py").is_file()
    monkeypatch.setattr(sys, "argv", ["layerdiff", "trace", "mymodels:build", "fixed.onnx", "-i", "x.npy", "-q"])
    with pytest.raises(SystemExit) as agrees:
        cli.main()
    assert agrees.value.code == 0


def test_nothing_is_written_where_there_is_nothing_to_repair(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["trace", "mymodels:build", "good.onnx", "-i", "x.npy", "-q", "--repair", "fixed.onnx"]
    monkeypatch.setattr(sys, "argv", ["layerdiff", *arguments, "--reproduce", "case"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0
    assert not (folder / "fixed.onnx").exists()
    assert not (folder / "case").exists()
