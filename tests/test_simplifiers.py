"""One ONNX file against another: what was changed, by which pass of which simplifier."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from typer.testing import CliRunner

import layerdiff
from layerdiff import simplifiers
from layerdiff.cli import app
from layerdiff.errors import InputError
from tests.conftest import graph_of, with_initializer
from tests.test_onnx_pairs import unfolded
from tests.zoo.exports import Exporter, Treatment, export, treat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor, nn

    from layerdiff.report import Report

    Trace = Callable[..., Report]

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 3, 9, 9)).astype(np.float32)
WEIGHT = RNG.normal(size=(4, 3, 3, 3)).astype(np.float32)


def padded(axes: tuple[int, ...]) -> onnx.ModelProto:
    """A Pad that lists the axes it pads in an order of its own, and a convolution behind it."""
    pads = {2: (0, 1), 3: (1, 0)}  # height only below, width only on the left
    begins, ends = ([pads.get(axis, (0, 0))[side] for axis in axes] for side in (0, 1))
    nodes = [
        helper.make_node("Pad", ["x", "pads", "", "axes"], ["padded"], name="pad"),
        helper.make_node("Conv", ["padded", "w"], ["conv"], name="conv"),
        helper.make_node("Relu", ["conv"], ["y"], name="act"),
    ]
    constants = {"pads": np.array(begins + ends), "axes": np.array(axes), "w": WEIGHT}
    model = graph_of(nodes, {"x": X.shape}, ["y"], constants, opsets=[helper.make_opsetid("", 18)])
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, (1, 4, 8, 8)))
    return model


BROKEN, FINE = padded((0, 1, 3, 2)), padded((0, 1, 2, 3))


# The pass that did it. OnnxSlim 0.1 does not look at the axes of a Pad when it takes it into the convolution.


def test_the_pass_of_a_simplifier_that_changed_the_numbers_is_named() -> None:
    after = treat(BROKEN, Treatment.ONNXSLIM)
    found = layerdiff.guilty_passes(BROKEN, after, X, tool="onnxslim")
    assert found is not None
    assert (found.cause, found.verified, found.evidence["passes"]) == ("simplifier", True, ["FusionPadConv"])
    assert found.remedy == "onnxslim.slim(model, skip_fusion_patterns=['FusionPadConv'])"


def test_a_simplifier_that_changed_nothing_has_no_guilty_pass() -> None:
    for tool in (Treatment.ONNXSLIM, Treatment.ONNXSIM):
        assert layerdiff.guilty_passes(FINE, treat(FINE, tool), X, tool=tool.value) is None


def test_a_file_that_the_tool_did_not_make_so_is_not_blamed_on_a_pass() -> None:
    after = with_initializer(treat(FINE, Treatment.ONNXSIM), "w", lambda w: w * 2)
    found = layerdiff.guilty_passes(FINE, after, X, tool="onnxsim")
    assert found is not None
    assert (found.verified, found.evidence["passes"]) == (False, [])
    assert "makes a file that agrees" in found.summary


def test_an_unknown_tool_and_one_that_is_not_installed_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="wanted one of onnxsim, onnxslim, got 'onnxsmall'"):
        layerdiff.guilty_passes(FINE, FINE, X, tool="onnxsmall")
    monkeypatch.setattr(simplifiers, "import_module", _missing)
    with pytest.raises(InputError, match="onnxsim is not installed; pip install onnxsim"):
        layerdiff.guilty_passes(FINE, FINE, X, tool="onnxsim")


def _missing(name: str) -> None:
    raise ImportError(name)


def test_the_command_line_names_the_pass(tmp_path: Path) -> None:
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(BROKEN, before)
    onnx.save(treat(BROKEN, Treatment.ONNXSLIM), after)
    np.save(tmp_path / "x.npy", X)
    result = CliRunner().invoke(
        app, ["diff", str(before), str(after), "-i", str(tmp_path / "x.npy"), "--tool", "onnxslim", "-q"]
    )
    assert result.exit_code == 1
    assert "by its pass FusionPadConv; without it the outputs agree" in result.stdout


# What was changed: the reference's own nodes are what should be there.


def test_a_changed_attribute_is_named_and_verified(trace: Trace) -> None:
    soft = [helper.make_node("Softmax", ["x"], ["s"], axis=1), helper.make_node("Relu", ["s"], ["y"])]
    before = graph_of(soft, {"x": (2, 3, 4)}, ["y"])
    after = onnx.ModelProto()
    after.CopyFrom(before)
    after.graph.node[0].attribute[0].i = 2
    x = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    report = trace(before, after, x)
    assert [(d.cause, d.verified) for d in report.diagnoses] == [("axis", True)]
    assert trace(before, before, x).diagnoses == ()


def test_a_changed_weight_is_named_by_the_initializer(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    proto = unfolded(classifier, (image,))
    after = with_initializer(treat(proto, Treatment.ONNXSLIM), "head.weight", lambda w: w * 2)
    found = trace(proto, after, image).diagnoses[0]
    assert (found.cause, found.verified) == ("weights", True)
    assert found.summary == "head.weight is multiplied by 2 in the file."


def test_a_fold_with_another_epsilon_is_worked_out(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    proto = unfolded(classifier, (image,))
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    norm = next(node for node in changed.graph.node if node.op_type == "BatchNormalization")
    next(a for a in norm.attribute if a.name == "epsilon").f = 0.1
    found = trace(proto, treat(changed, Treatment.ONNXSIM), image).diagnoses[0]
    assert (found.cause, found.verified) == ("bn-folding", True)
    assert found.evidence["epsilon_got"] == pytest.approx(0.1, rel=1e-2)


def test_a_removed_node_is_put_back_from_the_file_before(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    proto = unfolded(classifier, (image,))
    cut = onnx.ModelProto()
    cut.CopyFrom(proto)
    next(node for node in cut.graph.node if node.op_type == "Relu").op_type = "Identity"
    found = trace(proto, cut, image).diagnoses[0]
    assert (found.cause, found.verified) in (("dropped-op", True), ("activation", True))


def test_files_of_two_opsets_are_compared_at_the_later_ones_opset(
    trace: Trace, classifier: nn.Module, image: Tensor
) -> None:
    before = export(classifier, (image,), Exporter.TORCHSCRIPT)
    after = onnx.version_converter.convert_version(export(classifier, (image,), Exporter.DYNAMO), 18)
    name = next(t.name for t in after.graph.initializer if tuple(t.dims) == (5, 8))
    assert trace(before, after, image).diagnoses == ()
    found = trace(before, with_initializer(after, name, np.zeros_like), image).diagnoses[0]
    assert (found.cause, found.verified) == ("weights", True)
    assert "all zeros" in found.summary


def test_stored_numbers_are_kept(trace: Trace) -> None:
    """A table that only a constant node holds is an operand like any other."""
    table = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(3, 4))
    nodes = [helper.make_node("Constant", [], ["t"], value=table), helper.make_node("Add", ["x", "t"], ["y"])]
    before = graph_of(nodes, {"x": (3, 4)}, ["y"])
    after = onnx.ModelProto()
    after.CopyFrom(before)
    after.graph.node[0].attribute[0].t.CopyFrom(numpy_helper.from_array(np.ones((3, 4), np.float32)))
    found = trace(before, after, RNG.normal(size=(3, 4)).astype(np.float32)).diagnoses[0]
    assert found.verified
    assert found.cause in ("weights", "constant")
