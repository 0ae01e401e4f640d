"""What counts: differences at padded or masked positions are told, and fail nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from layerdiff import InputError, Status
from tests.conftest import graph_of, with_initializer
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

    Trace = Callable[..., Report]


class Attention(nn.Module):
    """One head over padded sequences; a padded query is masked against every key. `pooled` reads the first token."""

    def __init__(self, *, pooled: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.softmax = nn.Softmax(-1)
        self.project = nn.Linear(8, 8)
        self.pooled = pooled

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        scores = self.query(tokens) @ self.key(tokens).transpose(1, 2)
        scores = scores.masked_fill(~(mask[:, :, None] & mask[:, None, :]), -1e9)
        mixed = self.project(self.softmax(scores) @ self.value(tokens))
        return mixed[:, 0] if self.pooled else mixed


MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]]).bool()


def tokens(name: str = "valid.tokens") -> Tensor:
    return noise(name, 2, 6, 8)


def with_infinite_masks(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with -inf for -1e9: a row that is masked as a whole is NaN, all others are as they were."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    stored = list(copy.graph.initializer)
    stored += [a.t for node in copy.graph.node for a in node.attribute if node.op_type == "Constant"]
    found = [t for t in stored if t.data_type == onnx.TensorProto.FLOAT and onnx.numpy_helper.to_array(t).min() < -1e8]
    assert len(found) == 1
    found[0].CopyFrom(onnx.numpy_helper.from_array(np.float32(-np.inf), found[0].name))
    return copy


def exported(model: nn.Module) -> onnx.ModelProto:
    return export(model, (tokens(), MASK), Exporter.TORCHSCRIPT)


def test_fully_masked_rows_that_valid_excludes_do_not_fail_the_verdict(trace: Trace) -> None:
    model = fill(Attention()).eval()
    report = trace(model, with_infinite_masks(exported(model)), (tokens(), MASK), valid={"mask": MASK})
    assert report.agrees
    assert report.divergences == ()
    assert report.confined[0].op.startswith("aten.masked_fill")
    assert report.confined[0].healed.agrees  # with PyTorch's value put in, the excluded rows agree, too
    assert report.outputs[0].everywhere.nonfinite_mismatches == 2 * 8
    assert (
        "differ only at positions that `valid` excludes (NaN or infinity on one side at 16 elements)" in report.verdict
    )
    assert "first at (root) [Attention" in report.verdict
    rows = {row.layer: row for row in report.layers}
    assert rows["query"].status is Status.AGREES
    assert rows["softmax"].status is rows["project"].status is Status.CONFINED
    assert rows["softmax"].reason == "differs at 0.17 of its elements, and no output that counts depends on that"
    assert report.coverage.compared == len(report.layers)


def test_the_same_rows_fail_the_verdict_where_they_count(trace: Trace) -> None:
    model = fill(Attention()).eval()
    report = trace(model, with_infinite_masks(exported(model)), (tokens(), MASK))
    assert not report.agrees
    assert report.confined == ()
    assert report.first_divergence.op.startswith("aten.masked_fill")
    assert report.first_divergence.healed.agrees


def test_a_healthy_export_with_a_mask_has_nothing_to_tell(trace: Trace) -> None:
    model = fill(Attention()).eval()
    report = trace(model, exported(model), (tokens(), MASK), valid={"mask": MASK})
    assert report.agrees
    assert report.confined == ()
    assert "excludes" not in report.verdict
    assert {row.status for row in report.layers} <= {Status.AGREES, Status.FOLDED}


def test_a_fault_at_positions_that_count_fails_whatever_is_excluded(trace: Trace) -> None:
    model = fill(Attention()).eval()
    wrong = with_initializer(exported(model), "project.bias", lambda bias: bias + 0.5)
    report = trace(model, wrong, (tokens(), MASK), valid={"mask": MASK})
    assert not report.agrees
    assert report.first_divergence.layer == "project"
    assert report.confined == ()


def test_of_two_faults_the_one_at_excluded_positions_is_set_aside(trace: Trace) -> None:
    model = fill(Attention()).eval()
    wrong = with_initializer(with_infinite_masks(exported(model)), "project.bias", lambda bias: bias + 0.5)
    report = trace(model, wrong, (tokens(), MASK), valid={"mask": MASK})
    assert not report.agrees
    assert [d.layer for d in report.divergences] == ["project"]
    assert report.divergences[0].healed.agrees
    assert [d.layer for d in report.confined] == [""]
    assert "(root) [Attention" in report.verdict
    everything = trace(model, wrong, (tokens(), MASK))
    assert [d.layer for d in everything.divergences] == ["", "project"]


def test_a_difference_that_reaches_no_output_is_confined_without_any_mask(trace: Trace) -> None:
    model = fill(Attention(pooled=True)).eval()
    report = trace(model, with_infinite_masks(exported(model)), (tokens(), MASK))
    assert report.agrees
    assert report.divergences == ()
    assert [d.layer for d in report.confined] == [""]
    assert "differs, but no output that counts shows it" in report.verdict
    status = {row.layer: row.status for row in report.layers}
    assert status["softmax"] is status["project"] is Status.CONFINED
    assert status["value"] is Status.AGREES


def test_a_wrong_branch_that_is_scaled_away_is_confined(trace: Trace) -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.side = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.main(x) + 1e-12 * torch.tanh(self.side(x)))

    model, x = fill(Gated()).eval(), noise("valid.gated", 3, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    report = trace(model, with_initializer(proto, "side.bias", lambda bias: bias + 1), x)
    assert report.agrees
    assert [d.layer for d in report.confined] == ["side"]
    assert {row.layer: row.status for row in report.layers}["side"] is Status.CONFINED
    assert trace(model, proto, x).confined == ()


# Masks by name.


def noisy_last_row() -> tuple[nn.Module, onnx.ModelProto, Tensor]:
    """A model and a graph that differ in the last of three rows only."""
    x = noise("valid.rows", 3, 4)
    shift = np.zeros((3, 1), np.float32)
    shift[2] = 1
    nodes = [onnx.helper.make_node("Add", ["x", "shift"], ["s"]), onnx.helper.make_node("Tanh", ["s"], ["y"])]
    return nn.Tanh(), graph_of(nodes, {"x": ("rows", 4)}, ["y"], {"shift": shift}), x


@pytest.mark.parametrize("name", ["y", "input"])
@pytest.mark.parametrize("form", [np.asarray, torch.as_tensor, list])
def test_a_mask_goes_by_the_name_of_an_output_or_an_input(trace: Trace, name: str, form: Callable[..., Any]) -> None:
    model, proto, x = noisy_last_row()
    assert trace(model, proto, x, valid={name: form([True, True, False])}).agrees
    assert not trace(model, proto, x, valid={name: form([True, False, True])}).agrees
    assert not trace(model, proto, x).agrees


def test_the_name_of_an_input_alone_takes_each_samples_own_mask(trace: Trace) -> None:
    model = fill(Attention()).eval()
    proto = with_infinite_masks(exported(model))
    shorter = MASK.clone()
    shorter[1, 2:] = False
    first, second = (tokens(), MASK), (tokens("valid.others"), shorter)
    assert trace(model, proto, [first, second], valid="mask").agrees
    assert trace(model, proto, [first, second], valid=[{"mask": MASK}, {"mask": shorter}]).agrees
    swapped = trace(model, proto, [first, second], valid=[{"mask": MASK}, {"mask": MASK}])
    assert [sample.agrees for sample in swapped.samples] == [True, False]
    assert swapped.sample == 1


@pytest.mark.parametrize(
    ("valid", "text"),
    [
        (
            {"z": [True]},
            r"valid\['z'\]: a mask of shape \(1,\) fits no output of that name; the outputs are y \(3, 4\)",
        ),
        ({"y": [True, False]}, r"valid\['y'\]: a mask of shape \(2,\) fits no output"),
        ("mask", "valid='mask': no input of that name; the inputs are input"),
        ({"y": [False] * 3}, "valid: excludes every position of every output, so nothing is left to compare"),
        (3, "valid: wanted the name of an input that is a mask, masks by name, or a list"),
        ([], "valid: a list of 0, and a sample 1; give one item for each sample"),
    ],
)
def test_a_mask_that_fits_nothing_is_refused(trace: Trace, valid: Any, text: str) -> None:
    model, proto, x = noisy_last_row()
    with pytest.raises(InputError, match=text):
        trace(model, proto, x, valid=valid)


def test_an_output_that_is_excluded_as_a_whole_is_told(trace: Trace) -> None:
    model, x = nn.Module(), noise("valid.two", 2, 3)
    model.forward = lambda x: (x.tanh(), x.sin())
    nodes = [onnx.helper.make_node("Tanh", ["x"], ["a"]), onnx.helper.make_node("Cos", ["x"], ["b"])]
    report = trace(model, graph_of(nodes, {"x": (2, 3)}, ["a", "b"]), x, valid={"b": np.zeros((2, 3))})
    assert report.agrees
    assert report.warnings == ("not compared, because `valid` excludes all of it: output b",)
