"""Changes to an ONNX model: each does what it says, and leaves a graph that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import helper

from layerdiff.errors import PatchError
from layerdiff.patch import (
    IDENTITY,
    Rewire,
    SetAttribute,
    SetConstant,
    SetOperator,
    Splice,
    patched,
    with_reshaped_input,
    with_reshaped_output,
    with_turned_input,
    with_turned_output,
    within,
)
from tests.conftest import graph_of, run

if TYPE_CHECKING:
    from layerdiff.patch import Change

X = np.array([[-1.0, 2.0, 3.0]], np.float32)


def node(op: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), [output], **attributes)


@pytest.fixture
def model() -> onnx.ModelProto:
    """y = 2 relu(x) + relu(x), and z = -relu(x)."""
    nodes = [
        node("Relu", "x", "r"),
        node("Mul", "r two", "m"),
        node("Add", "m r", "y"),
        node("Neg", "r", "z"),
    ]
    return graph_of(nodes, {"x": (1, 3)}, ["y", "z"], {"two": np.float32(2)})


def outputs(model: onnx.ModelProto, *changes: Change) -> dict[str, list[float]]:
    changed = patched(model, changes)
    return {name: array.ravel().tolist() for name, array in run(changed, {"x": X}).items()}


def small(*nodes: onnx.NodeProto, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from x to y that is spliced in."""
    return graph_of(nodes, {"x": (1, 3)}, ["y"], constants)


def test_no_change_changes_nothing(model: onnx.ModelProto) -> None:
    assert outputs(model) == {"y": [0, 6, 9], "z": [0, -2, -3]}


def test_the_model_that_was_given_stays_as_it_was(model: onnx.ModelProto) -> None:
    before = model.SerializeToString(deterministic=True)
    patched(model, [SetOperator("r", "Abs"), Splice("m", IDENTITY, (("x", "r"),))])
    assert model.SerializeToString(deterministic=True) == before


def test_an_attribute_is_set_replaced_and_removed() -> None:
    leaky = graph_of([node("LeakyRelu", "x", "y", alpha=0.5)], {"x": (1, 3)}, ["y"])
    assert outputs(leaky, SetAttribute("y", "alpha", 0.25))["y"] == [-0.25, 2, 3]
    assert outputs(leaky, SetAttribute("y", "alpha", None))["y"] == pytest.approx([-0.01, 2, 3])


def test_a_batchnorm_that_no_longer_trains_has_one_output() -> None:
    norm = helper.make_node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y", "a", "c"], training_mode=1)
    ones, zeros = np.ones(3, np.float32), np.zeros(3, np.float32)
    model = graph_of([norm], {"x": (1, 3)}, ["y"], {"s": ones, "b": zeros, "m": zeros, "v": ones})
    assert outputs(model, SetAttribute("y", "training_mode", 0))["y"] == pytest.approx(X.ravel(), rel=1e-4)


def test_a_constant_is_changed_for_one_reader_only(model: onnx.ModelProto) -> None:
    model.graph.node[3].CopyFrom(node("Mul", "r two", "z"))
    assert outputs(model, SetConstant("m", 1, np.float32(5)))["z"] == [0, 4, 6]
    assert outputs(model, SetConstant("m", 1, np.float32(5)))["y"] == [0, 12, 18]


def test_a_constant_in_a_slot_that_the_node_left_out_is_added() -> None:
    clip = graph_of([node("Clip", "x", "y")], {"x": (1, 3)}, ["y"])
    assert outputs(clip, SetConstant("y", 2, np.float32(2.5)))["y"] == [-1, 2, 2.5]


def test_two_corrected_constants_of_one_slot_have_names_of_their_own(model: onnx.ModelProto) -> None:
    changes = (SetConstant("m", 1, np.float32(3)), SetConstant("m", 1, np.float32(4)))
    assert outputs(model, *changes)["y"] == [0, 10, 15]


def test_a_node_reads_another_tensor(model: onnx.ModelProto) -> None:
    assert outputs(model, Rewire("z", 0, "x"))["z"] == [1, -2, -3]


def test_a_node_that_reads_what_is_made_behind_it_is_moved(model: onnx.ModelProto) -> None:
    changed = patched(model, [Rewire("m", 0, "z")])
    assert [n.op_type for n in changed.graph.node] == ["Relu", "Neg", "Mul", "Add"]
    assert run(changed, {"x": X})["y"].ravel().tolist() == [0, -2, -3]


def test_a_change_that_closes_a_circle_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(PatchError, match="depend on itself"):
        patched(model, [Rewire("r", 0, "y")])


def test_a_node_becomes_another_operator_with_its_attributes_only(model: onnx.ModelProto) -> None:
    assert outputs(model, SetOperator("r", "LeakyRelu", (("alpha", 0.5),)))["z"] == [0.5, -2, -3]
    assert outputs(model, SetOperator("r", "Abs"))["z"] == [-1, -2, -3]


@pytest.mark.parametrize(
    "change", [SetAttribute("q", "alpha", 1.0), SetConstant("q", 0, X), Rewire("q", 0, "x"), SetOperator("q", "Abs")]
)
def test_a_change_of_a_node_that_is_not_there_is_refused_by_its_name(model: onnx.ModelProto, change: Change) -> None:
    with pytest.raises(PatchError, match="no node of the graph computes 'q'"):
        patched(model, [change])


def test_every_reader_reads_what_was_spliced_in(model: onnx.ModelProto) -> None:
    absolute = small(node("Abs", "x", "y"))
    assert outputs(model, Splice("r", absolute, (("x", "x"),))) == {"y": [3, 6, 9], "z": [-1, -2, -3]}


def test_only_the_given_edges_read_what_was_spliced_in(model: onnx.ModelProto) -> None:
    absolute = small(node("Abs", "x", "y"))
    assert outputs(model, Splice("r", absolute, (("x", "x"),), (("z", 0),))) == {"y": [0, 6, 9], "z": [-1, -2, -3]}


def test_a_splice_may_read_the_tensor_that_it_replaces(model: onnx.ModelProto) -> None:
    doubled = small(node("Add", "x x", "y"))
    assert outputs(model, Splice("r", doubled, (("x", "r"),))) == {"y": [0, 12, 18], "z": [0, -4, -6]}


def test_a_graph_output_keeps_its_name_when_it_is_spliced(model: onnx.ModelProto) -> None:
    absolute = small(node("Abs", "x", "y"))
    assert outputs(model, Splice("z", absolute, (("x", "x"),))) == {"y": [0, 6, 9], "z": [1, 2, 3]}


def test_a_splice_into_an_output_may_read_what_was_there(model: onnx.ModelProto) -> None:
    doubled = small(node("Add", "x x", "y"))
    assert outputs(model, Splice("z", doubled, (("x", "z"),)))["z"] == [0, -4, -6]


def test_names_of_what_is_spliced_in_do_not_collide(model: onnx.ModelProto) -> None:
    """The small model's tensors are called as those of the large one are."""
    same = small(node("Mul", "x two", "r"), node("Neg", "r", "m"), node("Abs", "m", "y"), two=np.float32(10))
    changes = (Splice("m", same, (("x", "r"),)), Splice("z", same, (("x", "r"),)))
    assert outputs(model, *changes) == {"y": [0, 22, 33], "z": [0, 20, 30]}


def test_the_same_splice_twice_finds_fresh_names(model: onnx.ModelProto) -> None:
    doubled = small(node("Add", "x x", "y"))
    once = Splice("r", doubled, (("x", "x"),), (("z", 0),))
    again = Splice("r", doubled, (("x", "x"),), (("m", 0),))
    changed = patched(model, [once, again])
    names = [name for n in changed.graph.node for name in n.output]
    assert len(names) == len(set(names))
    assert run(changed, {"x": X})["z"].ravel().tolist() == [2, -4, -6]


def test_a_splice_brings_the_domains_that_it_needs(model: onnx.ModelProto) -> None:
    fused = small(helper.make_node("QuickGelu", ["x"], ["y"], domain="com.microsoft", alpha=1.0))
    fused.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    changed = patched(model, [Splice("r", fused, (("x", "x"),))])
    assert {entry.domain for entry in changed.opset_import} == {"", "com.microsoft"}
    assert run(changed, {"x": X})["z"].ravel() == pytest.approx(-X.ravel() / (1 + np.exp(-X.ravel())), rel=1e-5)


def test_a_splice_leaves_no_metadata_of_the_machine_that_made_it(model: onnx.ModelProto) -> None:
    absolute = small(node("Abs", "x", "y"))
    absolute.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="File somewhere")
    changed = patched(model, [Splice("r", absolute, (("x", "x"),))])
    assert not any(n.metadata_props for n in changed.graph.node)


def test_what_nothing_reads_any_more_is_removed(model: onnx.ModelProto) -> None:
    changed = patched(model, [Splice("m", IDENTITY, (("x", "r"),))])
    assert "Mul" not in [n.op_type for n in changed.graph.node]
    assert not changed.graph.initializer


def test_what_a_branch_reads_is_kept() -> None:
    inside = helper.make_graph([node("Neg", "r", "b")], "then", [], [helper.make_empty_tensor_value_info("b")])
    other = helper.make_graph([node("Abs", "x", "c")], "else", [], [helper.make_empty_tensor_value_info("c")])
    branch = helper.make_node("If", ["yes"], ["y"], then_branch=inside, else_branch=other)
    model = graph_of([branch, node("Relu", "x", "r")], {"x": (1, 3)}, ["y"], {"yes": np.array(True)})
    assert outputs(model)["y"] == [0, -2, -3]


def test_of_a_patch_only_what_a_part_has_is_left(model: onnx.ModelProto) -> None:
    edges = Splice("r", IDENTITY, (("x", "x"),), (("z", 0), ("elsewhere", 1)))
    kept = within(model, [Rewire("elsewhere", 0, "x"), Rewire("z", 0, "x"), edges])
    assert kept[0] == Rewire("z", 0, "x")
    assert kept[1].edges == (("z", 0),)
    assert len(kept) == 2


def test_an_input_and_an_output_are_turned_and_reshaped() -> None:
    square = graph_of([node("Mul", "x two", "y")], {"x": (2, 3)}, ["y"], {"two": np.float32(2)})
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert only_output(with_turned_output(square, (1, 0)), x).tolist() == (2 * x.T).tolist()
    assert only_output(with_reshaped_output(square, (3, 2)), x).tolist() == (2 * x).reshape(3, 2).tolist()
    free = graph_of([node("Mul", "x two", "y")], {"x": ("a", "b")}, ["y"], {"two": np.float32(2)})
    assert only_output(with_turned_input(free, "x", (1, 0)), x.T.copy()).tolist() == (2 * x).tolist()
    assert only_output(with_reshaped_input(free, "x", (2, 3)), x.reshape(3, 2)).tolist() == (2 * x).tolist()


def only_output(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    model.graph.output[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    model.graph.output[0].type.tensor_type.ClearField("shape")
    (result,) = run(model, {"x": x}).values()
    return result
