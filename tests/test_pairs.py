"""Pairs that the user settles, from a dict or from the file that a report writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
import yaml
from torch import Tensor, nn

from layerdiff import InputError, Status
from layerdiff.model import Evidence
from tests.conftest import graph_of, with_initializer
from tests.zoo.exports import Exporter, export
from tests.zoo.scramble import scrambled
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report

    Trace = Callable[..., Report]

CONV = "/block/block.0/Conv_output_0"


def evidence(report: Report) -> dict[str, Evidence | None]:
    return {row.key: row.evidence for row in report.layers}


class Twice(nn.Module):
    """One activation called twice, and a layer that returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.first, self.second = nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4)
        self.split = Halves()

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.split(self.act(self.second(self.act(self.first(x)))))
        return left * 2 + right


class Halves(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, :2].exp(), x[:, 2:].sin()


# What a given pair does.


@pytest.mark.parametrize("key", ["block.0", ("block.0", 0), "block.0:aten.convolution"])
def test_a_given_pair_is_used_and_said_to_be_given(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, key: Any
) -> None:
    report = trace(classifier, broken, image, pairs={key: CONV})
    assert evidence(report)["block.0"] is Evidence.GIVEN
    assert report.first_divergence.layer == "block.0"
    assert report.first_divergence.healed.agrees
    assert report.warnings == ()


def test_a_given_pair_of_a_healthy_export_changes_no_verdict(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(classifier, healthy, image, pairs={"block.0": CONV})
    assert report.agrees
    assert report.confined == report.divergences == report.warnings == ()
    assert evidence(report)["block.0"] is Evidence.GIVEN
    assert {row.status for row in report.layers} <= {Status.AGREES, Status.FOLDED}


def test_a_pair_settles_what_was_left_open(trace: Trace) -> None:
    """The nodes compute something else than the model in an order of their own: nothing but the user can tell."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Powered(2), Powered(3)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.b(self.a(x)) - 1)

    class Powered(nn.Module):
        def __init__(self, exponent: int) -> None:
            super().__init__()
            self.exponent = exponent

        def forward(self, x: Tensor) -> Tensor:
            return (x**self.exponent).cumsum(-1)

    nodes = [
        onnx.helper.make_node("Erf", ["x"], ["u"]),
        onnx.helper.make_node("Cos", ["u"], ["v"]),
        onnx.helper.make_node("Sub", ["v", "one"], ["w"]),
        onnx.helper.make_node("Relu", ["w"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": (2, 5)}, ["y"], {"one": np.float32(1)})
    x = noise("pairs.two", 2, 5)
    alone = trace(Two(), proto, x)
    assert {row.key: row.onnx_tensor for row in alone.layers}["b"] is None
    left = next(row for row in alone.layers if row.key == "b")
    assert left.shape == (2, 5)
    assert "v" in left.suggestions
    given = trace(Two(), proto, x, pairs={"b": "v"})
    row = next(row for row in given.layers if row.key == "b")
    assert (row.onnx_tensor, row.evidence) == ("v", Evidence.GIVEN)
    assert row.accumulated.max_abs > 0
    assert [d.tensor for d in given.divergences] == ["v"]
    assert given.divergences[-1].healed.agrees


def test_a_later_call_a_second_tensor_and_an_operator_have_names_of_their_own(trace: Trace) -> None:
    model, x = fill(Twice()).eval(), noise("pairs.twice", 3, 4)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    broken = with_initializer(proto, "second.bias", lambda bias: bias + 1)
    ops = {node.op_type: node.output[0] for node in broken.graph.node}
    tanh = [node.output[0] for node in broken.graph.node if node.op_type == "Tanh"]
    pairs = {"act#1": tanh[1], "split[1]": ops["Sin"], "(root):aten.mul.Tensor": ops["Mul"]}
    report = trace(model, broken, x, pairs=pairs)
    assert report.first_divergence.layer == "second"
    assert evidence(report)["act#1"] is Evidence.GIVEN
    assert evidence(report)["act"] is Evidence.VALUES
    assert evidence(trace(model, broken, x, pairs={("act", 1): tanh[1]}))["act#1"] is Evidence.GIVEN
    rows = trace(model, broken, x, pairs=pairs, granularity="op").layers
    assert {row.key for row in rows if row.evidence is Evidence.GIVEN} >= {"(root):aten.mul.Tensor"}


def test_a_pair_that_no_run_confirms_is_doubted(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(classifier, broken, image, pairs={"block.0": "/act/Relu_output_0"})
    assert len(report.warnings) == 1
    assert "block.0 = /act/Relu_output_0 was given, but no run confirms it" in report.warnings[0]


def test_pairs_hold_for_samples_of_every_size(trace: Trace) -> None:
    model = nn.Sequential(nn.Tanh(), nn.Sigmoid())
    nodes = [onnx.helper.make_node("Tanh", ["x"], ["t"]), onnx.helper.make_node("Sigmoid", ["t"], ["y"])]
    proto = graph_of(nodes, {"x": ("n", 3)}, ["y"])
    report = trace(model, proto, [noise("pairs.n", n, 3) for n in (1, 4)], pairs={"0": "t"})
    assert report.agrees
    assert evidence(report)["0"] is Evidence.GIVEN


# What is refused.


@pytest.mark.parametrize(
    ("pairs", "text"),
    [
        ({"blok.0": CONV}, r"pairs\['blok.0'\]: the model ran no layer of that name; did you mean 'block.0'"),
        ({"block.0#1": CONV}, r"pairs\['block.0#1'\]: the model ran no layer of that name; did you mean .*'block.0'"),
        ({"block.0": "/block/block0/Conv_output_0"}, f"is no tensor of the graph; did you mean '{CONV}'"),
        (
            {"block.0": "block.0.weight"},
            "'block.0.weight' is a constant of the graph, it does not depend",
        ),
        ({"block.0": "image"}, "'image' is an input of the graph, inputs are paired by themselves"),
        (
            {"pool": CONV},
            r"the layer returns float32\(2, 8, 1, 1\), .* is float32\(2, 8, 10, 10\); tensors of its shape: /pool/",
        ),
        ({"head": "/Flatten_output_0"}, r"the layer returns float32\(2, 5\), '/Flatten_output_0' is float32\(2, 8\)"),
        ({"block.0": CONV, "block.1": CONV}, rf"pairs\['block.1'\]: '{CONV}' contradicts pairs\['block.0'\]"),
        ({3: CONV}, "pairs: 3 names no layer; wanted 'layer', 'layer#1' for its second call"),
        ({"block.0": 3}, "pairs: block.0: wanted the name of a tensor, got 3"),
        (3, "pairs: wanted a mapping of layers to tensors, got a int"),
        ("nowhere.yaml", "nowhere.yaml: no such file; Report.write_pairs"),
    ],
)
def test_a_pair_that_cannot_be_is_refused(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, pairs: Any, text: str
) -> None:
    renamed = onnx.ModelProto()
    renamed.CopyFrom(broken)
    old, renamed.graph.input[0].name = renamed.graph.input[0].name, "image"
    for node in renamed.graph.node:
        for slot, name in enumerate(node.input):
            if name == old:
                node.input[slot] = "image"
    with pytest.raises(InputError, match=text):
        trace(classifier, renamed, image, pairs=pairs)


def test_a_final_output_is_not_paired_with_anything_else(trace: Trace) -> None:
    nodes = [onnx.helper.make_node("Tanh", ["x"], ["t"]), onnx.helper.make_node("Sin", ["t"], ["y"])]
    proto = graph_of(nodes, {"x": (2, 3)}, ["y"])
    model, x = nn.Sequential(nn.Tanh(), nn.Sigmoid()), noise("pairs.output", 2, 3)
    with pytest.raises(InputError, match="is a final output, and the graph's output for it is 'y', not 't'"):
        trace(model, proto, x, pairs={"1": "t"})
    assert trace(model, proto, x, pairs={"1": "y"}).first_divergence.layer == "1"


def test_a_tensor_that_reaches_no_output_is_refused(trace: Trace) -> None:
    nodes = [onnx.helper.make_node("Tanh", ["x"], ["dead"]), onnx.helper.make_node("Sin", ["x"], ["y"])]
    proto = graph_of(nodes, {"x": (2, 3)}, ["y"])
    with pytest.raises(InputError, match="'dead' reaches no output of the graph"):
        trace(nn.Sequential(nn.Tanh(), nn.Sigmoid()), proto, noise("pairs.dead", 2, 3), pairs={"0": "dead"})


# The file.


def test_the_file_of_a_report_can_be_edited_and_read_back(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "mapping.yaml"
    first = trace(classifier, broken, image)
    assert first.write_pairs(path) == path
    text = path.read_text(encoding="utf-8")
    assert f"# block.0: {CONV}  # {evidence(first)['block.0']}, diverges\n" in text
    assert "\n# stem:\n" in text
    assert yaml.safe_load(text) is None  # nothing is settled before somebody has edited it
    unedited = trace(classifier, broken, image, pairs=path)
    assert unedited.layers == first.layers
    path.write_text(text.replace(f"# block.0: {CONV}", f"block.0: {CONV}"), encoding="utf-8")
    report = trace(classifier, broken, image, pairs=str(path))
    assert evidence(report)["block.0"] is Evidence.GIVEN
    report.write_pairs(path)
    assert yaml.safe_load(path.read_text(encoding="utf-8")) == {"block.0": CONV}
    assert evidence(trace(classifier, broken, image, pairs=path))["block.0"] is Evidence.GIVEN


def test_what_has_no_counterpart_is_asked_for_with_candidates(trace: Trace, tmp_path: Path) -> None:
    nodes = [
        onnx.helper.make_node("Erf", ["x"], ["u"]),
        onnx.helper.make_node("Relu", ["u"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": (2, 5)}, ["y"])
    model = nn.Sequential(nn.Softmax(-1), nn.Softplus(), nn.Tanh())
    report = trace(model, proto, noise("pairs.open", 2, 5))
    text = report.write_pairs(tmp_path / "open.yaml").read_text(encoding="utf-8")
    free = [row for row in report.layers if row.onnx_tensor is None]
    assert free
    for row in free:
        assert f"'{row.key}':" in text  # a name that YAML would read as a number is quoted
        assert f"(2, 5): {row.reason}" in text


def test_names_that_yaml_would_read_as_something_else_survive(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("1.10: 18\nnull: on\nempty:\nquoted: ''\n'(root)': '# no comment'\n", encoding="utf-8")
    from layerdiff.pairs import read_pairs

    assert read_pairs(path) == {"1.10": "18", "null": "on", "(root)": "# no comment"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n- b\n", "wanted a mapping of layers to tensors, got a list"),
        ("a: [b\n", "not a YAML file"),
        ("a: {b: c}\n", "a: wanted the name of a tensor, got {'b': 'c'}"),
        ("!!python/object/apply:os.getcwd []\n", "wanted a mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(
    trace: Trace,
    classifier: nn.Module,
    healthy: onnx.ModelProto,
    image: Tensor,
    tmp_path: Path,
    text: str,
    message: str,
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=message):
        trace(classifier, healthy, image, pairs=path)


def test_keys_name_every_call_once(trace: Trace) -> None:
    model, x = fill(Twice()).eval(), noise("pairs.twice", 3, 4)
    report = trace(model, scrambled(export(model, (x,), Exporter.TORCHSCRIPT)), x)
    keys = [row.key for row in report.layers]
    assert len(set(keys)) == len(keys)
    assert {"act", "act#1", "first", "(root)"} <= set(keys)
