"""Weights that stay on disk: inside an .onnx file, in files beside it, in several of them, and beyond two gigabytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data
from torch import nn

import layerdiff
from layerdiff import external
from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.graph import Graph, load
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def wide() -> nn.Module:
    """Two layers whose weights are large enough to be left where they are."""
    return fill(nn.Sequential(nn.Linear(160, 200), nn.ReLU(), nn.Linear(200, 160)))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "wide.onnx"
    onnx.save(export(wide(), (noise("wide", 2, 160),), Exporter.TORCHSCRIPT), path)
    return path


def outside(model: onnx.ModelProto) -> list[TensorProto]:
    return [tensor for tensor in model.graph.initializer if external.is_outside(tensor)]


def test_large_weights_inside_a_file_are_read_from_where_they_lie(saved: Path) -> None:
    model = load(saved)
    assert len(outside(model)) == 2
    assert model.ByteSize() < 10_000
    graph, whole = Graph(model), onnx.load(saved)
    for tensor in whole.graph.initializer:
        np.testing.assert_array_equal(graph.initializer(tensor.name), numpy_helper.to_array(tensor))
    assert external.with_weights(model).graph == whole.graph


def test_a_rewritten_graph_runs_with_weights_that_are_outside(saved: Path) -> None:
    graph = Graph(load(saved))
    names = [name for node in graph.nodes for name in node.outputs]
    rewritten = graph.rewritten(names)
    assert rewritten.ByteSize() < 10_000
    feeds = {graph.inputs[0].name: noise("wide", 2, 160).numpy()}
    got = OnnxRuntime().open(rewritten, Optimisation.NONE).run(feeds)
    with torch.no_grad():
        np.testing.assert_allclose(got[names[-1]], wide()(noise("wide", 2, 160)).numpy(), rtol=1e-5, atol=1e-6)


def test_a_fault_in_a_large_weight_is_found_and_repaired_wherever_it_lies(saved: Path, tmp_path: Path) -> None:
    model, inputs = wide(), (noise("wide", 2, 160),)
    with torch.no_grad():
        model[2].weight[3] += 0.1
    whole = onnx.load(saved)
    beside = tmp_path / "beside.onnx"
    onnx.save(onnx.load(saved), beside, save_as_external_data=True, location="beside.bin", size_threshold=0)
    found = [layerdiff.trace(model, candidate, inputs, progress=False) for candidate in (whole, saved, beside)]
    told = [{**report.to_dict(), "environment": None} for report in found]
    assert told[0] == told[1] == told[2]
    assert found[1].diagnoses[0].cause == "weights"
    before = saved.read_bytes()
    assert found[1].repair(tmp_path / "fixed.onnx").agrees
    assert saved.read_bytes() == before


def one_file(proto: onnx.ModelProto, folder: Path) -> Path:
    """All weights in one file beside the model."""
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, location="model.bin", size_threshold=0)
    return folder / "model.onnx"


def a_file_each(proto: onnx.ModelProto, folder: Path) -> Path:
    """Each weight in a file of its own."""
    onnx.save(proto, folder / "model.onnx", save_as_external_data=True, all_tensors_to_one_file=False, size_threshold=0)
    return folder / "model.onnx"


def in_a_subfolder(proto: onnx.ModelProto, folder: Path) -> Path:
    """All weights in one file, in a folder beside the model."""
    (folder / "data").mkdir()
    return sharded(proto, folder, ["data/all.bin"])


def in_shards(proto: onnx.ModelProto, folder: Path) -> Path:
    """The weights spread over three files, at offsets that runtimes can map."""
    return sharded(proto, folder, [f"model-{number}-of-3.bin" for number in (1, 2, 3)])


def sharded(proto: onnx.ModelProto, folder: Path, places: list[str]) -> Path:
    for index, tensor in enumerate(proto.graph.initializer):
        place, raw = places[index % len(places)], numpy_helper.to_array(tensor).tobytes()
        with (folder / place).open("ab") as file:
            file.write(bytes(-file.tell() % 4096))
            offset = file.tell()
            file.write(raw)
        tensor.ClearField("float_data")
        tensor.raw_data = raw
        set_external_data(tensor, place, offset, len(raw))
        tensor.ClearField("raw_data")
    (folder / "model.onnx").write_bytes(proto.SerializeToString())
    return folder / "model.onnx"


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("layout", [one_file, a_file_each, in_a_subfolder, in_shards])
def test_data_in_any_files_beside_the_model_is_read(
    layout: Callable[[onnx.ModelProto, Path], Path], exporter: Exporter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = wide(), (noise("wide", 2, 160),)
    path = layout(export(model, inputs, exporter), tmp_path)
    assert len(outside(onnx.load(path, load_external_data=False))) >= 4
    monkeypatch.chdir(tmp_path)  # where runtimes look for the data of a model that they are given without a path
    for candidate in (str(path), path, onnx.load(path, load_external_data=False), onnx.load(path)):
        good = layerdiff.trace(model, candidate, inputs, progress=False)
        assert good.agrees
        assert good.coverage.compared > 1
    with torch.no_grad():
        model[2].weight[3] += 0.1
    for candidate in (str(path), path, onnx.load(path, load_external_data=False)):
        bad = layerdiff.trace(model, candidate, inputs, progress=False)
        assert bad.first_divergence is not None
        assert bad.first_divergence.layer == "2"
        assert [d.cause for d in bad.diagnoses] == ["weights"]


def test_a_model_without_its_data_is_refused_with_what_to_give_instead(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = onnx.load(one_file(onnx.load(saved), tmp_path), load_external_data=False)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    with pytest.raises(layerdiff.ModelFileError, match=r"does not say in which folder .* give the path of the .onnx"):
        layerdiff.trace(wide(), bare, noise("wide", 2, 160), progress=False)


def test_a_worker_process_finds_weights_that_are_outside(saved: Path) -> None:
    report = layerdiff.trace(wide(), saved, noise("wide", 2, 160), isolate="process", progress=False)
    assert report.agrees
    assert report.coverage.compared > 1


def test_a_file_that_is_reached_through_a_link_has_its_weights(saved: Path, tmp_path: Path) -> None:
    link = tmp_path / "cache" / "model.onnx"
    link.parent.mkdir()
    link.symlink_to(saved)
    assert layerdiff.trace(wide(), link, noise("wide", 2, 160), progress=False).agrees


def test_a_file_that_was_overwritten_meanwhile_is_not_read_as_if_it_were_the_same(saved: Path) -> None:
    graph = Graph(load(saved))
    name = outside(graph.model)[0].name
    saved.write_bytes(saved.read_bytes()[:5000])
    with pytest.raises(layerdiff.ModelFileError, match=r"wide.onnx: cannot be read any more .* trace again"):
        graph.initializer(name)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "sub/../../secret.bin"])
def test_a_path_that_leads_out_of_the_folder_is_refused(saved: Path, location: str) -> None:
    model = onnx.load(saved)
    (saved.parent.parent / "secret.bin").write_bytes(bytes(200_000))
    weight = next(t for t in model.graph.initializer if len(t.raw_data) > external.LARGE)
    set_external_data(weight, location, 0, len(weight.raw_data))
    weight.ClearField("raw_data")
    saved.write_bytes(model.SerializeToString())
    with pytest.raises(
        layerdiff.ModelFileError, match=r"which is not in the folder of the model; only files beside it"
    ):
        load(saved)


@pytest.mark.parametrize("span", [("-5", "100000"), ("0", "99999999"), ("many", "1")])
def test_a_place_outside_of_the_data_file_is_refused(saved: Path, span: tuple[str, str]) -> None:
    model = onnx.load(saved)
    weight = next(t for t in model.graph.initializer if len(t.raw_data) > external.LARGE)
    (saved.parent / "w.bin").write_bytes(weight.raw_data)
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "w.bin"), ("offset", span[0]), ("length", span[1])):
        entry = weight.external_data.add()
        entry.key, entry.value = key, value
    saved.write_bytes(model.SerializeToString())
    with pytest.raises(layerdiff.ModelFileError, match=r"external data cannot be read .*w.bin"):
        load(saved)


@pytest.mark.parametrize("cut", [10, 100, 5_000, 100_000, 150_000])
def test_a_file_that_is_cut_off_anywhere_is_refused(saved: Path, cut: int) -> None:
    saved.write_bytes(saved.read_bytes()[:cut])
    with pytest.raises(layerdiff.ModelFileError, match=r"not an ONNX model, or truncated"):
        load(saved)


def test_weights_of_every_type_are_read_alike_inside_and_outside(tmp_path: Path) -> None:
    arrays = {k: (noise(k, 300, 300).numpy() * 50) for k in ("float32", "float16", "float64", "int8", "int64", "bool")}
    stored = [numpy_helper.from_array(array.astype(kind), kind) for kind, array in arrays.items()]
    stored.append(helper.make_tensor("bfloat16", TensorProto.BFLOAT16, [300, 300], noise("b", 90_000).tolist()))
    narrow = TensorProto(name="int4", data_type=TensorProto.INT4, dims=[400, 400], raw_data=bytes(range(250)) * 320)
    graph = helper.make_graph([], "g", [], [], [*stored, narrow])
    path = tmp_path / "types.onnx"
    onnx.save(helper.make_model(graph), path)
    model = load(path)
    assert len(outside(model)) >= 7
    for own, whole in zip(model.graph.initializer, onnx.load(path).graph.initializer, strict=True):
        np.testing.assert_array_equal(
            external.numbers(own, external.folder_of(model)).astype(np.float64),
            numpy_helper.to_array(whole).astype(np.float64),
        )
