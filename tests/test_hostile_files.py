"""Files that were made to do harm, or that claim what cannot be."""

from __future__ import annotations

import hashlib
import json
import os
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import AttributeProto, TensorProto, helper
from torch import Tensor, nn

import layerdiff
from layerdiff import BackendError, InputError, LayerdiffError, ModelFileError
from layerdiff.graph import Graph
from tests.conftest import graph_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report

    Trace = Callable[..., Report]

node = helper.make_node
X = torch.full((2, 3), 0.5)


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x)


def exponential() -> onnx.ModelProto:
    return graph_of([node("Exp", ["x"], ["y"])], {"x": (2, 3)}, ["y"])


def refusal(trace: Trace, model: Any, kind: type[LayerdiffError] = LayerdiffError) -> str:
    """The text with which a model is refused, in time."""
    begin = time.monotonic()
    with pytest.raises(kind) as caught:
        trace(Exp(), model, X)
    assert time.monotonic() - begin < 10
    return str(caught.value)


# Graphs.


def test_a_graph_that_goes_in_circles_is_refused(trace: Trace) -> None:
    nodes = [node("Add", ["x", "v"], ["y"], name="one"), node("Neg", ["y"], ["v"], name="two")]
    assert "acyclic" in refusal(trace, graph_of(nodes, {"x": (2, 3)}, ["y"]), BackendError)


def test_a_node_that_reads_itself_is_refused(trace: Trace) -> None:
    refusal(trace, graph_of([node("Add", ["x", "y"], ["y"])], {"x": (2, 3)}, ["y"]), BackendError)


def test_a_tensor_that_is_made_twice_is_refused(trace: Trace) -> None:
    nodes = [node("Exp", ["x"], ["y"]), node("Neg", ["x"], ["y"])]
    assert "y" in refusal(trace, graph_of(nodes, {"x": (2, 3)}, ["y"]), BackendError)


def test_two_nodes_of_one_name_are_refused_by_the_runtime(trace: Trace) -> None:
    nodes = [node("Neg", ["x"], ["v"], name="same"), node("Exp", ["v"], ["y"], name="same")]
    assert "same" in refusal(trace, graph_of(nodes, {"x": (2, 3)}, ["y"]), BackendError)


def test_an_initializer_named_like_the_result_of_a_node_is_refused(trace: Trace) -> None:
    model = graph_of([node("Exp", ["x"], ["y"])], {"x": (2, 3)}, ["y"], {"y": np.ones((2, 3), np.float32)})
    assert "y" in refusal(trace, model, BackendError)


def test_a_graph_output_that_is_an_initializer_is_compared(trace: Trace) -> None:
    model = graph_of([], {"x": (2, 3)}, ["c"], {"c": np.full((2, 3), np.exp(np.float32(0.5)), np.float32)})
    assert trace(Exp(), model, X).agrees


def test_an_input_without_a_type_is_refused(trace: Trace) -> None:
    model = exponential()
    model.graph.input[0].ClearField("type")
    refusal(trace, model)


def test_an_output_without_a_type_is_inferred(trace: Trace) -> None:
    model = exponential()
    model.graph.output[0].ClearField("type")
    assert trace(Exp(), model, X).agrees


@pytest.mark.parametrize("name", ["reads nothing", "no node makes it"])
def test_names_without_a_maker_are_refused(trace: Trace, name: str) -> None:
    nodes = [node("Exp", ["nowhere" if name == "reads nothing" else "x"], ["v"])]
    refusal(trace, graph_of(nodes, {"x": (2, 3)}, ["y" if name == "no node makes it" else "v"]))


@pytest.mark.parametrize("shape", [(2**62, 2**62), (2**31, 2**31, 2**31), (1 << 40,)], ids=str)
def test_an_absurd_shape_of_an_input_is_refused(trace: Trace, shape: tuple[int, ...]) -> None:
    refusal(trace, graph_of([node("Exp", ["x"], ["y"])], {"x": shape}, ["y"]))


@pytest.mark.parametrize("dims", [[-1], [2, -3], [-(2**63)]], ids=str)
def test_a_negative_size_of_a_weight_is_refused(trace: Trace, dims: list[int]) -> None:
    model = graph_of([node("Mul", ["x", "w"], ["y"])], {"x": (2, 3)}, ["y"])
    model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=dims, raw_data=b"\0" * 24))
    text = refusal(trace, model, ModelFileError)
    assert "initializer 'w' of the graph: a negative size in shape" in text


@pytest.mark.parametrize("dims", [[1 << 40], [1 << 31, 1 << 31], [2**62, 2**62]], ids=str)
@pytest.mark.parametrize("where", ["initializer", "attribute", "subgraph"])
def test_a_weight_that_claims_terabytes_is_refused(trace: Trace, dims: list[int], where: str) -> None:
    claim = TensorProto(name="w", data_type=1, dims=dims, raw_data=b"\0" * 16)
    model = exponential()
    if where == "initializer":
        model.graph.initializer.append(claim)
    elif where == "attribute":
        model.graph.node.append(node("Constant", [], ["w"], value=claim))
    else:
        body = helper.make_graph([node("Exp", ["x"], ["b"])], "body", [], [helper.make_empty_tensor_value_info("b")])
        body.initializer.append(claim)
        model.graph.node.append(node("If", ["x"], ["v"], then_branch=body, else_branch=body))
    text = refusal(trace, model, ModelFileError)
    assert "the file holds 16; it is damaged" in text or "no memory holds shape" in text
    assert ("initializer 'w'" if where != "attribute" else "attribute 'value' of node") in text


@pytest.mark.parametrize("size", [3, 10_000])
def test_a_weight_of_texts_as_raw_bytes_is_refused(trace: Trace, tmp_path: Path, size: int) -> None:
    """numpy's objects take 8 bytes each, which such a tensor can have; a large one is left in its file."""
    model = exponential()
    raw = b"\0" * 8 * size
    model.graph.initializer.append(TensorProto(name="w", dims=[size], data_type=TensorProto.STRING, raw_data=raw))
    path = tmp_path / "texts.onnx"
    path.write_bytes(model.SerializeToString())
    assert "initializer 'w' of the graph: texts that are kept as raw bytes" in refusal(trace, path, ModelFileError)


def test_a_weight_of_texts_that_are_none_is_refused_when_it_is_read() -> None:
    model = exponential()
    model.graph.initializer.append(TensorProto(name="w", dims=[1], data_type=TensorProto.STRING, string_data=[b"\xff"]))
    with pytest.raises(ModelFileError, match=r"tensor 'w' cannot be read by onnx .*UnicodeDecodeError"):
        Graph(model).initializer("w")


@pytest.mark.parametrize(
    ("dims", "text"),
    [
        ([0, 8448, 16383, 67, 8064, 8064, 8064], "no memory holds shape (0, 8448, "),  # each size alone is possible
        ([1] * 65, "65 axes"),
        ([2**40] * 100_000, "100000 axes"),  # multiplied out, this is a number of four million digits
    ],
)
def test_a_weight_that_holds_nothing_in_a_shape_that_numpy_refuses_is_refused(
    trace: Trace, dims: list[int], text: str
) -> None:
    model = exponential()
    values = [0.0] if 0 not in dims else []
    model.graph.initializer.append(TensorProto(name="w", dims=dims, data_type=TensorProto.FLOAT, float_data=values))
    assert f"initializer 'w' of the graph: {text}" in refusal(trace, model, ModelFileError)


def nested(depth: int) -> onnx.ModelProto:
    """If nodes, one in the branch of the other."""
    model = graph_of([], {"x": (2, 3)}, ["o"], {"c": np.array(True)})
    graph = model.graph
    for _ in range(depth):
        added = graph.node.add(op_type="If", input=["c"], output=["o"])
        added.attribute.add(name="else_branch", type=AttributeProto.GRAPH).g.MergeFrom(outer_leaf())
        graph = added.attribute.add(name="then_branch", type=AttributeProto.GRAPH).g
        graph.name = "b"
        graph.output.add().MergeFrom(outer_leaf().output[0])
    graph.node.extend(outer_leaf().node)
    return model


def outer_leaf() -> onnx.GraphProto:
    return helper.make_graph([node("Exp", ["x"], ["o"])], "b", [], [helper.make_tensor_value_info("o", 1, None)])


def test_subgraphs_eight_deep_are_compared(trace: Trace) -> None:
    assert trace(Exp(), nested(8), X).agrees


@pytest.mark.parametrize("depth", [33, 200])
def test_subgraphs_that_no_file_can_hold_are_refused(trace: Trace, depth: int) -> None:
    assert "more than 32 deep" in refusal(trace, nested(depth), ModelFileError)


def test_a_file_with_subgraphs_two_hundred_deep_is_refused(trace: Trace, tmp_path: Path) -> None:
    """Written by hand, message by message, since protobuf's own writer gives up before."""

    def field(number: int, content: bytes) -> bytes:
        size, length = b"", len(content)
        while length > 127:
            size, length = size + bytes([length & 127 | 128]), length >> 7
        return bytes([number << 3 | 2]) + size + bytes([length]) + content

    graph = outer_leaf().SerializeToString()
    for _ in range(200):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        graph = field(1, field(1, b"c") + field(2, b"o") + field(4, b"If") + field(5, attribute)) + field(2, b"g")
    path = tmp_path / "deep.onnx"
    path.write_bytes(b"\x08\x08" + field(7, graph))
    assert "deep.onnx: " in refusal(trace, path, ModelFileError)


def test_a_split_into_fewer_parts_than_it_has_outputs_does_not_bring_the_caller_down() -> None:
    """It ends ONNX Runtime 1.31 and 1.32 (SIGABRT); a runtime that refuses it may say so."""
    split = node("Split", ["x"], ["y", "z", "w"], name="uneven", axis=1, num_outputs=2)
    opsets = [helper.make_opsetid("", 20)]
    model = graph_of([split, node("Exp", ["x"], ["e"])], {"x": (2, 3)}, ["e", "y"], opsets=opsets)
    try:
        report = layerdiff.trace(Exp(), model, X, isolate="process", progress=False)
    except LayerdiffError as error:
        assert "uneven" in str(error)  # noqa: PT017  either end is right
    else:
        assert not report.agrees
        assert "uneven" in report.verdict
        assert report.diagnoses[0].evidence["how"] == "crashed"


def test_nothing_is_printed_about_a_branch_that_writes_what_it_reads(capfd: pytest.CaptureFixture[str]) -> None:
    branch = helper.make_graph([node("Exp", ["x"], ["x"])], "branch", [], [helper.make_empty_tensor_value_info("y")])
    model = graph_of([node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)], {"x": (2, 3)}, ["y"])
    Graph(model).rewritten(["y"])
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed_about_an_attribute_that_holds_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    model = exponential()
    model.graph.node[0].attribute.append(AttributeProto(name="value", type=AttributeProto.TENSOR))
    Graph(model).rewritten(["y"])
    assert capfd.readouterr() == ("", "")


def test_a_function_that_calls_itself_is_refused(trace: Trace) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F", ["a"], ["b"], [node("F", ["a"], ["b"], domain="own")], opsets)]
    model = graph_of([node("F", ["x"], ["y"], domain="own")], {"x": (2, 3)}, ["y"], opsets=opsets, functions=functions)
    refusal(trace, model)


def test_functions_that_double_and_double_do_not_fill_the_memory(trace: Trace) -> None:
    """Forty functions that call each other twice are a trillion nodes when they are all written out."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    functions = [helper.make_function("own", "F0", ["a"], ["b"], [node("Neg", ["a"], ["b"])], opsets)]
    for i in range(1, 40):
        twice = [node(f"F{i - 1}", ["a"], ["m"], domain="own"), node(f"F{i - 1}", ["m"], ["b"], domain="own")]
        functions.append(helper.make_function("own", f"F{i}", ["a"], ["b"], twice, opsets))
    model = graph_of(
        [node("F39", ["x"], ["y"], domain="own")], {"x": (2, 3)}, ["y"], opsets=opsets, functions=functions
    )
    assert "function" in refusal(trace, model, ModelFileError)


def test_an_empty_list_as_an_attribute_is_kept(trace: Trace) -> None:
    """It has a kind, and nothing in it."""
    reduce = node("ReduceMean", ["x"], ["m"], keepdims=1)
    reduce.attribute.append(AttributeProto(name="axes", type=AttributeProto.INTS))
    model = graph_of(
        [reduce, node("Mul", ["m", "zero"], ["z"]), node("Exp", ["x"], ["e"]), node("Add", ["e", "z"], ["y"])],
        {"x": (2, 3)},
        ["y"],
        {"zero": np.float32(0)},
    )
    assert trace(Exp(), model, X).agrees


def damaged(what: str) -> bytes:
    """A file with one thing in it that fuzzing found to be believed."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "F", ["a"], ["b"], [node("Neg", ["a"], ["b"])], opsets)
    softmax = node("Softmax", ["x"], ["y"], name="soft", axis=1)
    model = graph_of([softmax], {"x": (2, 3)}, ["y"], opsets=opsets, functions=[function])
    if what == "a kind of attribute that there is not":
        return model.SerializeToString().replace(b"\xa0\x01\x02", b"\xa0\x01\x4d")
    if what == "a function that is there twice":
        model.functions.append(function)
    elif what == "an opaque type":
        model.graph.input[0].type.opaque_type.SetInParent()
    elif what == "a kind of tensor that there is not":
        model.graph.initializer.append(TensorProto(name="w", data_type=77, dims=[1], raw_data=b"1"))
    elif what == "too few numbers":
        model.graph.initializer.append(TensorProto(name="w", data_type=1, dims=[3], float_data=[1, 2]))
    content = model.SerializeToString()
    if what == "a name that is no text":
        return content.replace(b"soft", b"\xff\xfe\xef\x80")
    if what == "an attribute's name that is no text":
        return content.replace(b"axis", b"\xff\xfe\xef\x80")
    if what == "an operator that is no text":
        return content.replace(b"Softmax", b"\xd9\xff\xef\x80max")
    return content


@pytest.mark.parametrize(
    "what",
    [
        "a kind of attribute that there is not",
        "a function that is there twice",
        "an opaque type",
        "a kind of tensor that there is not",
        "too few numbers",
        "a name that is no text",
        "an attribute's name that is no text",
        "an operator that is no text",
    ],
)
def test_what_fuzzing_found_is_refused_with_its_place(trace: Trace, tmp_path: Path, what: str) -> None:
    path = tmp_path / "damaged.onnx"
    path.write_bytes(damaged(what))
    assert "damaged.onnx" in refusal(trace, path, ModelFileError)


def test_a_graph_whose_name_is_no_text_is_compared(trace: Trace, tmp_path: Path) -> None:
    model = graph_of([node("Exp", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    model.graph.name = "called"
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString().replace(b"called", b"\xff\xfe\xef\x80\xf0\xe3"))
    assert trace(Exp(), path, X).agrees


# Weights outside the file.


@pytest.fixture
def outside(tmp_path: Path) -> Callable[[str], Path]:
    """A model in a folder, whose weight lies at a given place; a secret lies in the folder above."""
    (tmp_path / "secret.bin").write_bytes(np.ones(6, np.float32).tobytes())
    folder = tmp_path / "model"
    folder.mkdir()

    def made(place: str) -> Path:
        model = graph_of([node("Mul", ["x", "w"], ["m"]), node("Exp", ["m"], ["y"])], {"x": (2, 3)}, ["y"])
        weight = model.graph.initializer.add(name="w", data_type=1, dims=[2, 3], data_location=TensorProto.EXTERNAL)
        for key, value in (("location", place), ("offset", "0"), ("length", "24")):
            weight.external_data.add(key=key, value=value)
        (folder / "model.onnx").write_bytes(model.SerializeToString())
        return folder / "model.onnx"

    return made


@pytest.mark.parametrize(
    "place",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "..\\secret.bin",
        "/etc/passwd",
        "C:\\Windows\\win.ini",
        "\\\\host\\share",
        "a\0b",
        "",
    ],
    ids=repr,
)
def test_weights_outside_the_folder_are_refused(trace: Trace, outside: Callable[[str], Path], place: str) -> None:
    text = refusal(trace, outside(place), ModelFileError)
    assert "tensor 'w' wants its numbers from" in text or place == ""


def test_an_absolute_place_is_refused_even_inside_the_folder(
    trace: Trace, outside: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "model" / "w.bin").write_bytes(bytes(24))
    refusal(trace, outside(str(tmp_path / "model" / "w.bin")), ModelFileError)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused(
    trace: Trace, outside: Callable[[str], Path], tmp_path: Path, what: str
) -> None:
    link = tmp_path / "model" / "link"
    link.symlink_to(tmp_path / "secret.bin" if what == "file" else tmp_path)
    text = refusal(trace, outside("link" if what == "file" else "link/secret.bin"), ModelFileError)
    assert "only files beside it are read" in text


def test_a_pipe_as_weights_does_not_block(trace: Trace, outside: Callable[[str], Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model" / "pipe")
    assert "pipe" in refusal(trace, outside("pipe"), ModelFileError)


def test_weights_in_an_attribute_are_looked_at_too(trace: Trace, outside: Callable[[str], Path]) -> None:
    path = outside("../secret.bin")
    model = onnx.load(path, load_external_data=False)
    weight = model.graph.initializer.pop()
    model.graph.node.insert(0, node("Constant", [], ["w"], value=weight))
    path.write_bytes(model.SerializeToString())
    assert "'../secret.bin'" in refusal(trace, path, ModelFileError)


def test_a_file_does_not_say_itself_in_which_folder_its_weights_lie(
    trace: Trace, outside: Callable[[str], Path], tmp_path: Path
) -> None:
    path = outside("secret.bin")
    model = onnx.load(path, load_external_data=False)
    model.metadata_props.add(key="layerdiff.folder", value=str(tmp_path))
    path.write_bytes(model.SerializeToString())
    assert "external data cannot be read" in refusal(trace, path, ModelFileError)


def test_weights_beside_the_model_are_read(trace: Trace, outside: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "model" / "sub").mkdir()
    (tmp_path / "model" / "sub" / "w.bin").write_bytes(np.ones(6, np.float32).tobytes())
    assert trace(Exp(), outside("sub/w.bin"), X).agrees


@pytest.mark.parametrize(
    ("key", "value"),
    [("offset", "-8"), ("offset", "99999999999999"), ("length", "99999999999999"), ("length", "-1"), ("offset", "x")],
)
def test_places_beyond_the_end_of_the_weights_are_refused(
    trace: Trace, outside: Callable[[str], Path], tmp_path: Path, key: str, value: str
) -> None:
    (tmp_path / "model" / "w.bin").write_bytes(bytes(24))
    path = outside("w.bin")
    model = onnx.load(path, load_external_data=False)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == key).value = value
    path.write_bytes(model.SerializeToString())
    refusal(trace, path)


def test_the_model_file_is_never_written(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(broken, path)
    path.chmod(0o444)
    before = hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns
    report = trace(classifier, path, image)
    report.repair(tmp_path / "fixed.onnx")
    report.reproduce(tmp_path / "case")
    with pytest.raises(LayerdiffError):
        report.repair(path)
    assert (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns) == before


# Reports.


@pytest.fixture
def saved(trace: Trace, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    path = trace(Exp(), exponential(), X).save(tmp_path / "report.json")
    return path, json.loads(path.read_text("utf-8"))


def edited(saved: tuple[Path, dict[str, Any]], **changes: Any) -> Path:
    path, content = saved
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": 999}, "report version 999"),
        ({"format": "other"}, "not a layerdiff report"),
        ({"layers": 7}, "report.layers: wanted list, got 7"),
        ({"layers": [3]}, r"report.layers\[0\]: wanted dict, got 3"),
        ({"coverage": None}, "report.coverage: wanted dict, got None"),
        ({"coverage": {"compared": 1}}, "report.coverage has no 'folded'"),
        ({"sample": True}, "report.sample: wanted int, got True"),
        ({"sample": "1"}, "report.sample: wanted int, got '1'"),
        ({"warnings": [None]}, r"report.warnings\[0\]: wanted str, got None"),
        ({"environment": {"a": {"__class__": "os.system"}}}, r"report.environment\['a'\]: wanted str"),
    ],
)  # fmt: skip
def test_a_damaged_report_is_refused_with_the_place(saved: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        layerdiff.load(edited(saved, **changes))


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        "NaN",
        "1" * 10_000,
        "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"),
        "",
    ],
    ids=lambda t: t[:5],
)
def test_text_that_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"report\.json"):
        layerdiff.load(path)


@pytest.mark.parametrize("number", ["1e999", "-1e999", "9" * 400])
def test_numbers_beyond_float_do_not_pass(saved: Any, number: str) -> None:
    path, content = saved
    text = json.dumps(content)
    path.write_text(
        text.replace(
            f'"max_abs": {json.dumps(content["outputs"][0]["shipped"]["max_abs"])}', f'"max_abs": {number}', 1
        ),
        encoding="utf-8",
    )
    if "e" in number:
        assert abs(layerdiff.load(path).outputs[0].shipped.max_abs) == float("inf")
    else:
        with pytest.raises(InputError, match="damaged"):
            layerdiff.load(path)


def test_a_report_holds_no_pickle(saved: Any) -> None:
    """What a report is made of comes from the dataclasses: no name in the file is looked up or called."""
    path, content = saved
    content["diagnoses"] = [
        {
            "cause": "weights",
            "layer": "",
            "summary": "s",
            "remedy": "r",
            "verified": False,
            "evidence": {"__reduce__": ["os.system", "exit 7"], "x": "Infinity"},
        }
    ]
    path.write_text(json.dumps(content), encoding="utf-8")
    evidence = layerdiff.load(path).diagnoses[0].evidence
    assert evidence == {"__reduce__": ["os.system", "exit 7"], "x": float("inf")}
