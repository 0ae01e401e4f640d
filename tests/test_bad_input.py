"""What cannot be used is refused with a text that says what, where, got versus wanted, and the next step."""

from __future__ import annotations

import logging
import re
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from layerdiff import (
    AlignmentError,
    BackendError,
    InputError,
    LayerdiffError,
    ModelFileError,
    ReferenceFailedError,
    SampleError,
    Tolerance,
    compare_inputs,
)
from layerdiff.backends import OnnxRuntime
from tests.conftest import graph_of
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report

    Trace = Callable[..., Report]

node = helper.make_node


class Function(nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body

    def forward(self, *args: Tensor) -> Any:
        return self.body(*args)


def exponential(shape: tuple[int | str, ...] = (2, 3)) -> onnx.ModelProto:
    return graph_of([node("Exp", ["x"], ["y"])], {"x": shape}, ["y"])


class Branches(nn.Module):
    """The shape of one branch is changed in the middle of the network."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 12)
        self.fold = nn.Unflatten(1, (3, 4))
        self.last = nn.Linear(4, 5)
        self.other = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.relu(self.first(x))
        folded = self.fold(first)
        return self.other(torch.sigmoid(first))[:, None] + self.last(folded)


EXP = Function(torch.exp)
X = noise("bad.x", 2, 3)


def refused(kind: type[LayerdiffError], *words: str) -> Any:
    """Exactly this error, with all of these words in this order."""
    return pytest.raises(kind, match=".*".join(re.escape(word) for word in words))


# Files.


def test_a_file_that_is_not_there_is_named(trace: Trace, tmp_path: Path) -> None:
    with refused(ModelFileError, "missing.onnx: no such file; give the path of an .onnx file"):
        trace(EXP, tmp_path / "missing.onnx", X)


def test_a_folder_is_no_file(trace: Trace, tmp_path: Path) -> None:
    with refused(ModelFileError, str(tmp_path), "no such file"):
        trace(EXP, tmp_path, X)


@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n", b"\x89PNG\r\n\x1a\n" + bytes(64), b"PK\x03\x04" + bytes(64), bytes(1000), b"version https://git-lfs.github.com/spec/v1\n"],
    ids=["empty", "text", "png", "zip", "zeros", "git-lfs pointer"],
)  # fmt: skip
def test_a_file_that_is_not_onnx_is_refused(trace: Trace, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with refused(ModelFileError, "model.onnx: ", "ONNX"):
        trace(EXP, path, X)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, tmp_path: Path, share: float
) -> None:
    content = healthy.SerializeToString()
    path = tmp_path / "half.onnx"
    path.write_bytes(content[: int(share * len(content))])
    with refused(ModelFileError, "half.onnx: "):
        trace(classifier, path, image)


def with_external_data(healthy: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(healthy, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def test_missing_external_data_is_named(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    path = with_external_data(healthy, tmp_path)
    (tmp_path / "weights.bin").unlink()
    with refused(
        ModelFileError, "model.onnx: external data cannot be read", "it belongs beside the model as weights.bin"
    ):
        trace(classifier, path, image)


def test_truncated_external_data_is_refused(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    path = with_external_data(healthy, tmp_path)
    content = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").write_bytes(content[: len(content) // 2])
    with refused(ModelFileError, "model.onnx: ", "weights.bin"):
        trace(classifier, path, image)


@pytest.mark.parametrize("candidate", [None, 7, b"bytes", nn.Linear], ids=lambda c: type(c).__name__)
def test_a_candidate_of_another_kind_is_refused(trace: Trace, candidate: Any) -> None:
    with refused(InputError, type(candidate).__name__):
        trace(EXP, candidate, X)


# The graph.


def test_an_operator_that_the_runtime_does_not_know_is_named(trace: Trace) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("my.domain", 1)]
    proto = graph_of([node("Frobnicate", ["x"], ["y"], domain="my.domain")], {"x": (2, 3)}, ["y"], opsets=opsets)
    with refused(BackendError, "onnxruntime", "Frobnicate"):
        trace(EXP, proto, X)


def test_a_newer_opset_than_the_runtime_knows_is_refused(trace: Trace) -> None:
    proto = graph_of([node("Exp", ["x"], ["y"])], {"x": (2, 3)}, ["y"], opsets=[helper.make_opsetid("", 9999)])
    with refused(BackendError, "onnxruntime", "opset"):
        trace(EXP, proto, X)


def test_a_graph_that_fails_while_it_runs_says_so(trace: Trace) -> None:
    proto = graph_of([node("Gather", ["x", "far"], ["y"], axis=1)], {"x": ("n", "m")}, ["y"], {"far": np.int64(99)})
    with refused(BackendError, "failed while running"):
        trace(EXP, proto, X)


@pytest.mark.parametrize("exporter", Exporter)
def test_a_node_that_fails_in_the_middle_is_named_with_its_layer(trace: Trace, exporter: Exporter) -> None:
    """Two branches: what comes later in the file than the node, and does not depend on it, is not blamed."""
    model, x = fill(Branches()), noise("refused.branches", 2, 4)
    proto = export(model, (x,), exporter)
    bad = next(n for n in proto.graph.node if n.op_type == "Reshape" and "elu" in n.input[0])
    proto.graph.initializer.append(numpy_helper.from_array(np.array([99], np.int64), "wrong.shape"))
    bad.CopyFrom(node("Reshape", [bad.input[0], "wrong.shape"], bad.output, name=bad.name))
    with refused(BackendError, f"fails is Reshape node '{bad.name}', in layer fold: what it reads agrees"):
        trace(model, proto, x)


def test_a_pass_of_the_runtime_without_which_a_file_runs_is_named(trace: Trace) -> None:
    nodes = [
        node("Exp", ["x"], ["e"]),
        node("Pad", ["e", "pads"], ["p"]),
        node("AveragePool", ["p"], ["y"], kernel_shape=[3], pads=[1, 1], count_include_pad=1),
    ]
    pads = np.array([0, 0, 2, 0, 0, 2], np.int64)
    proto = graph_of(nodes, {"x": (1, 2, 8)}, ["y"], {"pads": pads})
    model = nn.Sequential(Function(torch.exp), nn.ConstantPad1d(2, 0.0), nn.AvgPool1d(3, 1, 1))
    x = noise("refused.pass", 1, 2, 8)
    try:
        ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    except ort.capi.onnxruntime_pybind11_state.Fail:
        with refused(BackendError, "Pad should be smaller", "runs without Pad_Fusion", "disabled_optimizers"):
            trace(model, proto, x)
    else:  # another version of the runtime
        assert trace(model, proto, x).agrees


def test_a_missing_execution_provider_is_named_with_those_that_are_there() -> None:
    with refused(BackendError, "has no ImaginaryExecutionProvider", "CPUExecutionProvider"):
        OnnxRuntime(providers=("ImaginaryExecutionProvider",))


def test_a_graph_without_nodes_is_compared_by_its_outputs(trace: Trace) -> None:
    """A graph that passes its input on is a legal file: it agrees with a model that does, and with no other."""
    proto = graph_of([], {"x": (2, 3)}, ["x"])
    assert trace(nn.Identity(), proto, X).agrees
    report = trace(EXP, proto, X)
    assert not report.agrees
    assert report.outputs[0].shipped.max_abs > 0


def test_a_graph_of_constants_only_is_compared_by_its_outputs(trace: Trace) -> None:
    proto = graph_of([node("Identity", ["c"], ["y"])], {"x": (2, 3)}, ["y"], {"c": np.ones((2, 3), np.float32)})
    assert trace(Function(lambda x: x * 0 + 1), proto, X).agrees
    assert not trace(EXP, proto, X).agrees


def test_a_graph_without_outputs_cannot_be_paired(trace: Trace) -> None:
    proto = graph_of([node("Exp", ["x"], ["y"])], {"x": (2, 3)}, [])
    with pytest.raises(LayerdiffError):
        trace(EXP, proto, X)


def test_outputs_that_cannot_be_paired_are_listed_with_their_shapes(trace: Trace) -> None:
    proto = graph_of([node("Exp", ["x"], ["y"]), node("Neg", ["x"], ["z"])], {"x": (2, 3)}, ["y", "z"])
    for port in proto.graph.output:
        for size in (7, 7):
            port.type.tensor_type.shape.dim.add().dim_value = size
    model = Function(lambda x: x.sum())
    with refused(AlignmentError, "the model returns", "output ()", "the graph", "is it an export of this model?"):
        trace(model, proto, X)


def test_a_model_that_returns_no_tensor_cannot_be_paired(trace: Trace) -> None:
    with refused(AlignmentError, "the model returns no tensor"):
        trace(Function(lambda _: None), exponential(), X)


def test_an_output_that_is_no_tensor_is_told_and_the_others_are_compared(trace: Trace) -> None:
    nodes = [node("Exp", ["x"], ["y"]), node("SequenceConstruct", ["x", "y"], ["s"])]
    proto = graph_of(nodes, {"x": (2, 3)}, ["y"])
    element = helper.make_tensor_type_proto(TensorProto.FLOAT, (2, 3))
    proto.graph.output.append(helper.make_value_info("s", helper.make_sequence_type_proto(element)))
    report = trace(EXP, proto, X)
    assert report.outputs[0].agrees
    assert any("output s" in warning for warning in report.warnings)


# Samples.


@pytest.mark.parametrize("inputs", [None, 7, 2.5, object()], ids=lambda value: type(value).__name__)
def test_what_is_no_sample_is_refused_with_what_may_be_given(trace: Trace, inputs: Any) -> None:
    with refused(SampleError, f"a {type(inputs).__name__} is no sample", "give a tensor"):
        trace(EXP, exponential(), inputs)


@pytest.mark.parametrize("inputs", [[], (), iter(())], ids=["list", "tuple", "generator"])
def test_no_samples_at_all_are_refused(trace: Trace, inputs: Any) -> None:
    with refused(SampleError, "inputs: an empty"):
        trace(EXP, exponential(), inputs)


def test_a_missing_input_file_is_named(trace: Trace, tmp_path: Path) -> None:
    with refused(SampleError, "missing.npz: no such file"):
        trace(EXP, exponential(), tmp_path / "missing.npz")


def test_an_input_file_that_is_no_array_is_refused(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    path.write_text("not numbers")
    with refused(SampleError, "x.npy: not an .npy or .npz file"):
        trace(EXP, exponential(), path)


def test_an_input_file_with_pickled_objects_is_not_opened(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    np.save(path, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with refused(SampleError, "x.npy: not an .npy or .npz file", "pickled objects"):
        trace(EXP, exponential(), path)


@pytest.mark.parametrize("kept", [60, 400])
def test_an_npz_that_is_cut_off_is_refused_by_whatever_reads_it(kept: int, trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros(100))
    path.write_bytes(path.read_bytes()[:kept])
    with refused(SampleError, "x.npz: not an .npy or .npz file"):
        trace(EXP, exponential(), path)
    with refused(InputError, "x.npz: not an .npy or .npz file"):
        compare_inputs(path, path)


def test_an_npz_with_pickled_objects_is_not_opened(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.array([{"a": 1}], dtype=object))
    with refused(SampleError, "x.npz: not an .npy or .npz file", "pickled objects"):
        trace(EXP, exponential(), path)


def test_too_few_inputs_are_listed_on_both_sides(trace: Trace) -> None:
    proto = graph_of([node("Add", ["a", "b"], ["y"])], {"a": (2, 3), "b": ("n", 3)}, ["y"])
    with refused(
        SampleError,
        "the ONNX model has 2 inputs (a float32(2, 3), b float32(?, 3))",
        "the sample has 1 input (",
        "float32(2, 3)",
    ):
        trace(EXP, proto, X)


def test_too_many_inputs_are_listed_on_both_sides(trace: Trace) -> None:
    with refused(SampleError, "the ONNX model has 1 input (x float32(2, 3))", "the sample has 2 inputs ("):
        trace(Function(torch.add), exponential(), (X, X))


def test_a_wrong_shape_is_named_with_the_shape_that_is_wanted(trace: Trace) -> None:
    with refused(SampleError, "input 'x': the ONNX model wants shape (2, 3), the sample has (5, 3)", "dynamic axes"):
        trace(EXP, exponential(), noise("bad.shape", 5, 3))


def test_a_wrong_rank_is_named(trace: Trace) -> None:
    with refused(SampleError, "input 'x': the ONNX model wants shape (?, 3), the sample has (3,)"):
        trace(EXP, exponential(("n", 3)), noise("bad.rank", 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_a_wrong_dtype_is_named_with_the_one_that_is_wanted(trace: Trace, dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with refused(SampleError, f"input 'x': the ONNX model wants float32, the sample has {name}; convert it"):
        trace(EXP, exponential(), torch.ones(2, 3, dtype=dtype))


def test_an_unknown_keyword_is_named(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    with refused(LayerdiffError, "imge"):
        trace(classifier, healthy, {"imge": image})


def test_an_array_of_objects_is_refused(trace: Trace) -> None:
    with pytest.raises(SampleError, match="object"):
        trace(EXP, exponential(), np.array([[1, None, "x"]] * 2, dtype=object))


@pytest.mark.parametrize(
    "array",
    [X.numpy()[::-1], X.numpy().astype(">f4"), np.broadcast_to(np.float32(2), (2, 3))],
    ids=["reversed", "big-endian", "read-only"],
)
def test_arrays_that_torch_does_not_like_are_copied(trace: Trace, array: np.ndarray) -> None:
    assert trace(EXP, exponential(), array).agrees


def test_tensors_of_no_elements_agree(trace: Trace) -> None:
    report = trace(EXP, exponential(("n", 3)), torch.zeros(0, 3))
    assert report.agrees
    assert report.outputs[0].expected_shape == (0, 3)


def test_a_network_fed_no_elements_agrees(trace: Trace) -> None:
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with_rows = export(model, (X,), Exporter.TORCHSCRIPT)
    for port in (*with_rows.graph.input, *with_rows.graph.output):
        port.type.tensor_type.shape.dim[0].dim_param = "n"
    assert trace(model, with_rows, torch.zeros(0, 3)).agrees


# The reference.


@pytest.mark.parametrize("reference", [None, torch.exp, nn.Linear], ids=["None", "function", "class"])
def test_a_reference_that_is_no_module_is_refused(trace: Trace, reference: Any) -> None:
    with refused(InputError, "reference: wanted a torch.nn.Module", f"got a {type(reference).__name__}"):
        trace(reference, exponential(), X)


def test_a_model_without_modules_is_compared_as_a_whole(trace: Trace) -> None:
    report = trace(EXP, exponential(), X)
    assert report.agrees
    assert [row.layer for row in report.layers] == [""]
    wrong = trace(Function(torch.sin), exponential(), X)
    assert wrong.first_divergence.layer == ""
    assert wrong.verdict.startswith("(root) [Function, operator aten.sin] is the first layer that diverges")


def test_a_forward_that_raises_keeps_its_own_traceback(trace: Trace) -> None:
    class Failing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(3, 3), Function(self.fail))

        @staticmethod
        def fail(_: Tensor) -> Tensor:
            raise ZeroDivisionError("seven cannot be divided")

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Failing()
    with refused(ReferenceFailedError, "raised ZeroDivisionError in inner.1: seven cannot be divided") as caught:
        trace(model, exponential(), X)
    cause = caught.value.__cause__
    assert isinstance(cause, ZeroDivisionError)
    assert "fail" in [frame.name for frame in traceback.extract_tb(cause.__traceback__)]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_an_interrupted_forward_leaves_no_hooks(trace: Trace) -> None:
    def interrupt(_: Tensor) -> Tensor:
        raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(3, 3), Function(interrupt))
    with pytest.raises(KeyboardInterrupt):
        trace(model, exponential(), X)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.is_grad_enabled()


def test_train_mode_is_warned_about_with_what_it_does(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, caplog: pytest.LogCaptureFixture
) -> None:
    classifier.add_module("drop", nn.Dropout())
    with caplog.at_level(logging.WARNING, "layerdiff"):
        report = trace(classifier.train(), healthy, image)
    (warning,) = report.warnings
    assert warning.startswith("the reference is in train mode: ")
    assert "1 BatchNorm layers use the statistics of the batch" in warning
    assert "1 Dropout layers drop at random" in warning
    assert "call model.eval() first" in warning
    assert [(record.name, record.getMessage()) for record in caplog.records] == [("layerdiff", warning)]
    assert classifier.training


def test_train_mode_without_effect_is_not_warned_about(trace: Trace) -> None:
    assert trace(EXP.train(), exponential(), X).warnings == ()


# Options.


@pytest.mark.parametrize("tolerance", ["tight", 0.1, None, (1e-3, 1e-3)], ids=repr)
def test_another_tolerance_is_refused(trace: Trace, tolerance: Any) -> None:
    with refused(InputError, 'tolerance: wanted "auto" or a Tolerance(rtol, atol), got ', repr(tolerance)):
        trace(EXP, exponential(), X, tolerance=tolerance)


@pytest.mark.parametrize("values", [(-1.0, 0.0), (0.0, -1.0), (float("nan"), 0.0)])
def test_a_tolerance_that_nothing_can_meet_is_refused(values: tuple[float, float]) -> None:
    with pytest.raises((InputError, ValueError), match=r"toleran|rtol|atol"):
        Tolerance(*values)


@pytest.mark.parametrize("granularity", ["layer", "", None])
def test_another_granularity_is_refused(trace: Trace, granularity: Any) -> None:
    with refused(InputError, 'granularity: wanted "module" or "op", got ', repr(granularity)):
        trace(EXP, exponential(), X, granularity=granularity)


def test_every_error_is_a_layerdiff_error() -> None:
    kinds = (AlignmentError, BackendError, InputError, ModelFileError, ReferenceFailedError, SampleError)
    assert all(issubclass(kind, LayerdiffError) for kind in kinds)
    assert issubclass(ModelFileError, InputError)
    assert issubclass(SampleError, InputError)
