"""Random inputs for a graph, and the diff command that draws them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from layerdiff import cli
from layerdiff.draws import BATCH, LENGTH, SPATIAL, draw
from layerdiff.errors import InputError
from tests.conftest import graph_of
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, Treatment, export, treat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TABLE = {"table": np.zeros((7, 3), np.float32), "axes": np.array([0])}


def looked_up() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Cast", ["ids"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["wide", "axes"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["out"]),
        helper.make_node("Cast", ["mask"], ["other"], to=TensorProto.FLOAT),
    ]
    return graph_of(nodes, {"ids:INT32": ("batch", "length"), "mask:INT64": ("batch", 4)}, ["out", "other"], TABLE)


def test_what_indexes_a_table_stays_below_its_rows_and_other_integers_are_ones() -> None:
    drawn = draw(looked_up(), {"length": 500})
    ids, mask = drawn.inputs["ids"], drawn.inputs["mask"]
    assert (ids.dtype, ids.shape, ids.min(), ids.max()) == (np.int32, (BATCH, 500), 0, 6)
    assert np.array_equal(mask, np.ones((BATCH, 4), np.int64))
    assert drawn.note == (
        f"the inputs were drawn at random (seed 0): ids int32 ({BATCH}, 500) below 7; mask int64 ({BATCH}, 4) all 1; "
        f"open dimensions set: batch={BATCH}, length=500"
    )


def test_the_seed_decides() -> None:
    assert np.array_equal(draw(looked_up(), seed=3).inputs["ids"], draw(looked_up(), seed=3).inputs["ids"])
    assert not np.array_equal(draw(looked_up(), seed=3).inputs["ids"], draw(looked_up(), seed=4).inputs["ids"])


@pytest.mark.parametrize(
    ("port", "dtype"), [("x", "float32"), ("x:FLOAT16", "float16"), ("x:UINT8", "uint8"), ("x:BOOL", "bool")]
)
def test_each_type_is_drawn_as_declared(port: str, dtype: str) -> None:
    proto = graph_of([helper.make_node("Cast", ["x"], ["out"], to=1)], {port: ("n", 3, "h", "w")}, ["out"])
    array = draw(proto).inputs["x"]
    assert (str(array.dtype), array.shape) == (dtype, (BATCH, 3, SPATIAL, SPATIAL))
    assert len(np.unique(array)) > 1


def test_an_open_dimension_without_a_name_is_set_by_input_and_axis() -> None:
    proto = graph_of([helper.make_node("Relu", ["x"], ["out"])], {"x": ("n", 3)}, ["out"])
    proto.graph.input[0].type.tensor_type.shape.dim[1].ClearField("dim_value")
    assert draw(proto).inputs["x"].shape == (BATCH, LENGTH)
    assert draw(proto, {"x.1": 5, "n": 1}).inputs["x"].shape == (1, 5)
    with pytest.raises(InputError, match=r"size of width: no such open dimension; the graph leaves open: n, x\.1"):
        draw(proto, {"width": 5})


def test_what_cannot_be_drawn_is_refused() -> None:
    proto = graph_of([helper.make_node("Identity", ["x"], ["out"])], {"x:STRING": (2,)}, ["out"])
    with pytest.raises(InputError, match=r"input 'x': .* cannot be drawn at random; pass real inputs"):
        draw(proto)
    proto.graph.input[0].type.tensor_type.ClearField("shape")
    with pytest.raises(InputError, match="input 'x': its number of dimensions is not declared"):
        draw(proto)


# The command.


@pytest.fixture
def diff(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs ``layerdiff diff``: exit code, stdout, stderr."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["layerdiff", "diff", *arguments])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        return stopped.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def files(tmp_path: Path, healthy: onnx.ModelProto, broken: onnx.ModelProto) -> None:
    onnx.save(healthy, tmp_path / "before.onnx")
    onnx.save(treat(healthy, Treatment.ONNXSLIM), tmp_path / "after.onnx")
    onnx.save(broken, tmp_path / "bad.onnx")
    np.save(tmp_path / "x.npy", np.random.default_rng(0).random((2, 3, 10, 10), np.float32))


@pytest.mark.usefixtures("files")
def test_diff_draws_inputs_and_says_so(diff: Callable[..., tuple[int, str, str]]) -> None:
    code, out, _ = diff("before.onnx", "after.onnx", "-q")
    assert code == 0
    assert "reference and candidate agree" in out
    assert "the inputs were drawn at random (seed 0)" in out.replace("\n", " ")


@pytest.mark.usefixtures("files")
def test_diff_exits_with_1_and_names_the_layer(diff: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, out, _ = diff("before.onnx", "bad.onnx", "--inputs", "x.npy", "-q", "--save", "report.json")
    assert code == 1
    assert out.startswith("block.0 [Conv, operator onnx.Conv] is the first layer that diverges")
    assert "drawn" not in out
    assert (tmp_path / "report.json").exists()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("before.onnx", "missing.onnx"), "missing.onnx: no such file"),
        (("missing", "before.onnx"), "missing: no such file"),
        (("before.onnx", "missing.pt2"), "missing.pt2: no such file"),
        (("before.onnx", "after.onnx", "--inputs", "x.npy", "--random"), "leave out --random"),
        (("before.onnx", "after.onnx", "--size", "batch"), "--size batch: wanted NAME=N"),
        (("before.onnx", "after.onnx", "--size", "batch=2"), "size of batch: no such open dimension"),
        (("torch.nn:ReLU", "torch.nn:ReLU"), "inputs can be drawn only for an .onnx file"),
    ],
)
def test_diff_exits_with_2_when_it_cannot_tell(
    diff: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], text: str
) -> None:
    code, _, err = diff(*arguments, "-q")
    assert code == 2
    assert text in err


def test_a_size_that_a_graph_cannot_run_with_is_told_with_what_to_change(
    diff: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["out"])]
    proto = graph_of(nodes, {"x": ("n", "m")}, ["out"], {"w": np.ones((5, 2), np.float32)})
    onnx.save(proto, tmp_path / "a.onnx")
    code, _, err = diff("a.onnx", "a.onnx", "-q")
    assert code == 2
    assert "other sizes with --size" in err
    assert diff("a.onnx", "a.onnx", "-q", "--size", "m=5")[0] == 0


def test_diff_reads_an_exported_program(diff: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    import warnings

    sample = MODELS["refiner"]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns about its own internals
        torch.export.save(torch.export.export(sample.model, sample.inputs), tmp_path / "before.pt2")
    onnx.save(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), tmp_path / "after.onnx")
    code, out, err = diff("before.pt2", "after.onnx", "-q")
    assert (code, err) == (0, "")
    assert out.startswith("PyTorch and ONNX agree")
