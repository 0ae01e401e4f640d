"""trace(): what it takes, what it gives, and what it leaves alone."""

from __future__ import annotations

import copy
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from layerdiff import Tolerance
from layerdiff.backends import OnnxRuntime
from layerdiff.model import Evidence, Status
from tests.conftest import graph_of, with_initializer
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report


class Function(nn.Module):
    """A forward that is a plain function of the child `inner` and the inputs."""

    def __init__(self, body: Callable[..., Any], inner: nn.Module | None = None) -> None:
        super().__init__()
        self.body = body
        self.inner = inner or nn.Identity()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.body(self.inner, *args, **kwargs)


# What is found.


def test_a_healthy_export_agrees(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(classifier, healthy, image)
    assert report.agrees
    assert report.first_divergence is None
    assert report.divergences == ()
    assert report.verdict.startswith("PyTorch and ONNX agree")
    (output,) = report.outputs
    assert output.shipped.agrees
    assert output.tapped.agrees
    assert output.expected_shape == output.actual_shape == (2, 5)


def test_the_broken_layer_is_named_healed_and_the_verdict_says_proven(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(classifier, broken, image)
    assert not report.agrees
    (found,) = report.divergences
    assert report.first_divergence is found
    assert (found.layer, found.call, found.type, found.op) == ("block.0", 0, "Conv2d", "aten.convolution")
    assert found.onnx_ops == ("Conv",)
    assert set(found.onnx_nodes) <= {node.name for node in broken.graph.node}
    assert not found.metrics.agrees
    assert found.metrics.max_abs > found.metrics.limit
    assert found.noise.max_abs > 0
    assert found.healed.agrees
    assert found.healed.before > 1000 * found.healed.after
    assert report.verdict.startswith("block.0 [Conv2d, operator aten.convolution] is the first layer that diverges")
    assert "Proven: with PyTorch's value put in there the final outputs agree" in report.verdict


def test_every_layer_has_a_status_and_the_error_it_introduced(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    rows = {row.layer: row for row in trace(classifier, broken, image).layers}
    assert {layer: row.status for layer, row in rows.items()} == {
        "stem": Status.FOLDED,
        "norm": Status.AGREES,
        "act": Status.AGREES,
        "block.0": Status.DIVERGES,
        "block.1": Status.PROPAGATES,
        "block": Status.PROPAGATES,
        "pool": Status.PROPAGATES,
        "head": Status.PROPAGATES,
        "": Status.PROPAGATES,
    }
    for layer in ("block.1", "pool", "head"):
        assert not rows[layer].accumulated.agrees
        assert rows[layer].introduced.agrees
    assert not rows["block.0"].introduced.agrees
    assert rows[""].evidence is Evidence.OUTPUT


def test_layers_come_in_the_order_in_which_they_returned(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    found = [row.layer for row in trace(classifier, healthy, image).layers]
    assert found == ["stem", "norm", "act", "block.0", "block.1", "block", "pool", "head", ""]


def test_granularity_op_gives_a_row_per_operator(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(classifier, broken, image, granularity="op")
    by_op = {(row.layer, row.op): row.status for row in report.layers}
    assert by_op["block.0", "aten.convolution"] is Status.DIVERGES
    assert by_op["", "aten.add.Tensor"] is Status.PROPAGATES
    assert by_op["norm", "aten.native_batch_norm"] is Status.AGREES
    assert report.first_divergence.layer == "block.0"
    assert report.coverage == trace(classifier, broken, image).coverage


def test_a_wide_tolerance_forgives_and_a_narrow_one_does_not(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    assert trace(classifier, broken, image, tolerance=Tolerance(rtol=0.0, atol=10.0)).agrees
    report = trace(classifier, broken, image, tolerance=Tolerance(rtol=1e-4, atol=1e-4))
    assert [divergence.layer for divergence in report.divergences] == ["block.0"]
    assert 1e-4 <= report.outputs[0].shipped.limit < 1e-2


def test_the_environment_says_what_ran(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    found = trace(classifier, healthy, image).environment
    assert found["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert found["onnx"] == onnx.__version__
    assert found["candidate"] == "ModelProto"
    assert found["providers"] == "CPUExecutionProvider"
    assert {"layerdiff", "onnxruntime", "numpy", "python", "torch_seed", "backend", "optimisation"} <= set(found)


# What the candidate may be.


@pytest.mark.parametrize("kind", [str, lambda path: path, onnx.load], ids=["str", "Path", "ModelProto"])
def test_the_candidate_may_be_a_path_or_a_model(
    trace: Callable[..., Report],
    classifier: nn.Module,
    broken: onnx.ModelProto,
    image: Tensor,
    tmp_path: Path,
    kind: Callable[[Path], Any],
) -> None:
    path = tmp_path / "bad model.onnx"
    onnx.save(broken, path)
    report = trace(classifier, kind(path), image)
    assert report.first_divergence.layer == "block.0"


def test_the_file_on_disk_is_the_same_afterwards(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(broken, path)
    before = path.read_bytes(), path.stat().st_mtime_ns
    trace(classifier, path, image)
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_model_in_memory_is_the_same_afterwards(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    before = broken.SerializeToString(deterministic=True)
    trace(classifier, broken, image)
    assert broken.SerializeToString(deterministic=True) == before


def test_weights_may_lie_in_a_file_beside_the_model(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(broken, path, save_as_external_data=True, location="model.data", size_threshold=0)
    assert (tmp_path / "model.data").is_file()
    assert trace(classifier, path, image).first_divergence.layer == "block.0"
    assert trace(classifier, str(path), image).first_divergence.layer == "block.0"


def test_a_file_with_local_functions_is_examined(trace: Callable[..., Report]) -> None:
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("local", 1)]
    body = [onnx.helper.make_node("Sigmoid", ["a"], ["s"]), onnx.helper.make_node("Mul", ["a", "s"], ["b"])]
    silu = onnx.helper.make_function("local", "Silu", ["a"], ["b"], body, opsets[:1])
    nodes = [
        onnx.helper.make_node("Silu", ["x"], ["h"], "call", domain="local"),
        onnx.helper.make_node("Tanh", ["h"], ["y"], "tanh"),
    ]
    proto = graph_of(nodes, {"x": (2, 3)}, ["y"], functions=[silu], opsets=opsets)
    x = noise("trace.function", 2, 3)
    assert trace(nn.Sequential(nn.SiLU(), nn.Tanh()), proto, x).agrees
    report = trace(nn.Sequential(nn.ReLU(), nn.Tanh()), proto, x)
    assert report.first_divergence.layer == "0"


def test_another_backend_can_run_the_candidate(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    class Watched(OnnxRuntime):
        name = "watched"
        opened = 0

        def open(self, *args: Any) -> Any:
            type(self).opened += 1
            return super().open(*args)

    report = trace(classifier, broken, image, backend=Watched(threads=1))
    assert report.environment["backend"] == "watched"
    assert report.first_divergence.layer == "block.0"
    assert Watched.opened > 2


# What the inputs may be.


def test_inputs_may_be_a_tensor_an_array_a_tuple_or_a_dict(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    for given in (image, image.numpy(), (image,), (image.numpy(),), {"image": image}, [image]):
        report = trace(classifier, healthy, given)
        assert report.agrees
        assert len(report.samples) == 1


@pytest.mark.parametrize("form", ["npy", "npz positional", "npz by name"])
def test_inputs_may_be_read_from_a_file(
    trace: Callable[..., Report],
    classifier: nn.Module,
    broken: onnx.ModelProto,
    image: Tensor,
    tmp_path: Path,
    form: str,
) -> None:
    path = tmp_path / f"inputs.{form[:3]}"
    if form == "npy":
        np.save(path, image.numpy())
    elif form == "npz positional":
        np.savez(path, image.numpy())
    else:
        np.savez(path, image=image.numpy())
    for given in (path, str(path)):
        assert trace(classifier, broken, given).first_divergence.layer == "block.0"


def two_inputs(names: list[str]) -> tuple[nn.Module, onnx.ModelProto]:
    model = Function(lambda _, left, right: left - 2 * right)
    nodes = [onnx.helper.make_node("Add", [names[1]] * 2, ["d"]), onnx.helper.make_node("Sub", [names[0], "d"], ["y"])]
    return model, graph_of(nodes, {names[1]: (2, 3), names[0]: (2, 3)}, ["y"])


class TwoInputs(nn.Module):
    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left - 2 * right


def test_inputs_are_matched_by_name_whatever_their_order(trace: Callable[..., Report]) -> None:
    """The graph lists `right` before `left`."""
    _, proto = two_inputs(["left", "right"])
    assert [port.name for port in proto.graph.input] == ["right", "left"]
    left, right = noise("trace.left", 2, 3), noise("trace.right", 2, 3)
    assert trace(TwoInputs(), proto, (left, right)).agrees
    assert trace(TwoInputs(), proto, {"right": right, "left": left}).agrees
    assert trace(TwoInputs(), proto, {"left": left, "right": right}).agrees


def test_inputs_of_unknown_names_are_matched_by_position(trace: Callable[..., Report]) -> None:
    _, proto = two_inputs(["first", "second"])
    left, right = noise("trace.left", 2, 3), noise("trace.right", 2, 3)
    report = trace(TwoInputs(), proto, (right, left))  # the graph lists `second` first, and takes what comes first
    assert not report.agrees
    swapped = graph_of(list(proto.graph.node), {"first": (2, 3), "second": (2, 3)}, ["y"])
    assert trace(TwoInputs(), swapped, (left, right)).agrees


def test_an_argument_that_the_graph_does_not_have_is_left_out(trace: Callable[..., Report]) -> None:
    class Ignoring(nn.Module):
        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return x.exp()

    proto = graph_of([onnx.helper.make_node("Exp", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    x = noise("trace.unused", 2, 3)
    assert trace(Ignoring(), proto, (x, torch.zeros(7))).agrees


def test_nested_arguments_are_flattened_in_order(trace: Callable[..., Report]) -> None:
    class Levels(nn.Module):
        def forward(self, levels: list[Tensor]) -> Tensor:
            return levels[0] - levels[1]

    proto = graph_of([onnx.helper.make_node("Sub", ["a", "b"], ["y"])], {"a": (2, 3), "b": (2, 3)}, ["y"])
    x, y = noise("trace.a", 2, 3), noise("trace.b", 2, 3)
    assert trace(Levels(), proto, ([x, y],)).agrees
    assert not trace(Levels(), proto, ([y * 2, x],)).outputs[0].shipped.nonfinite_mismatches


def clipped() -> onnx.ModelProto:
    """``tanh(min(x + 1, 2))``: right for small inputs only."""
    nodes = [
        onnx.helper.make_node("Add", ["x", "one"], ["sum"]),
        onnx.helper.make_node("Min", ["sum", "top"], ["low"]),
        onnx.helper.make_node("Tanh", ["low"], ["y"]),
    ]
    return graph_of(nodes, {"x": (2, 3)}, ["y"], {"one": np.float32(1), "top": np.float32(2)})


def test_of_several_samples_the_first_bad_one_is_reported(trace: Callable[..., Report]) -> None:
    model = Function(lambda inner, x: inner(x + 1), nn.Tanh())
    small, large = torch.full((2, 3), 0.5), torch.full((2, 3), 3.0)
    report = trace(model, clipped(), [small, large, small])
    assert not report.agrees
    assert (report.sample, [s.agrees for s in report.samples]) == (1, [True, False, True])
    assert "(sample 2 of 3)" in report.verdict
    assert report.first_divergence.layer == ""
    good = trace(model, clipped(), (sample for sample in [small, small]))
    assert good.agrees
    assert len(good.samples) == 2


def test_samples_may_have_different_sizes_where_the_graph_allows_it(trace: Callable[..., Report]) -> None:
    proto = graph_of([onnx.helper.make_node("Exp", ["x"], ["y"])], {"x": ("batch", 3)}, ["y"])
    model = Function(lambda _, x: x.exp())
    assert trace(model, proto, [noise("trace.one", n, 3) for n in (1, 2, 5)]).agrees


# What the model may return.


OUTPUTS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "dict": lambda a, b: {"first": a, "second": b},
    "nested": lambda a, b: {"first": a, "rest": (b,)},
}


@pytest.mark.parametrize("form", OUTPUTS)
@pytest.mark.parametrize("exporter", list(Exporter))
def test_every_output_of_any_structure_is_compared(trace: Callable[..., Report], form: str, exporter: Exporter) -> None:
    def body(inner: nn.Module, x: Tensor) -> Any:
        return OUTPUTS[form](torch.tanh(inner[0](x)), torch.exp(inner[1](x)))

    def build() -> nn.Module:
        return fill(Function(body, nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))))

    model, broken, x = build(), build(), noise("trace.outputs", 2, 4)
    report = trace(model, export(model, (x,), exporter), x)
    assert report.agrees
    assert len(report.outputs) == 2
    with torch.no_grad():
        broken.inner[1].weight.mul_(1.5)
    report = trace(model, export(broken, (x,), exporter), x)
    assert [output.agrees for output in report.outputs] == [True, False]
    assert report.first_divergence.layer == "inner.1"


def test_outputs_are_paired_by_name_where_names_are_known(trace: Callable[..., Report]) -> None:
    model = Function(lambda _, x: {"up": x + 1, "down": x - 1})
    nodes = [onnx.helper.make_node("Sub", ["x", "one"], ["down"]), onnx.helper.make_node("Add", ["x", "one"], ["up"])]
    proto = graph_of(nodes, {"x": (2, 3)}, ["down", "up"], {"one": np.float32(1)})
    report = trace(model, proto, noise("trace.names", 2, 3))
    assert report.agrees
    assert {output.name: output.tensor for output in report.outputs} == {"up": "up", "down": "down"}


class Heads(nn.Module):
    """Two results of one input."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__()
        self.start, self.end = nn.Linear(6, first), nn.Linear(6, second)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.start(x), self.end(x)


def with_outputs_exchanged(proto: onnx.ModelProto) -> onnx.ModelProto:
    result = copy.deepcopy(proto)
    first, second = proto.graph.output
    result.graph.output[0].CopyFrom(second)
    result.graph.output[1].CopyFrom(first)
    return result


def test_outputs_in_another_order_are_told_by_their_shapes(trace: Callable[..., Report]) -> None:
    model, x = fill(Heads(4, 3)), noise("trace.heads", 2, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    report = trace(model, with_outputs_exchanged(proto), x)
    assert report.agrees
    names = ", ".join(port.name for port in reversed(proto.graph.output))
    assert report.warnings == (f"the file gives its outputs in another order, {names}: paired by shape",)
    assert trace(model, proto, x).warnings == ()


def test_outputs_of_one_shape_that_are_exchanged_are_no_wrong_weights(trace: Callable[..., Report]) -> None:
    model, x = fill(Heads(4, 4)), noise("trace.heads", 2, 6)
    proto = with_outputs_exchanged(export(model, (x,), Exporter.TORCHSCRIPT))
    report = trace(model, proto, x)
    assert not report.agrees
    assert [(d.cause, d.verified) for d in report.diagnoses] == [("order", True)]
    assert "stand in each other's place" in report.verdict
    with torch.no_grad():
        model.end.bias.add_(1.0)
    assert {d.cause for d in trace(model, proto, x).diagnoses} != {"order"}  # one of them is wrong in any order


def test_a_mask_that_is_written_as_another_is_no_difference(trace: Callable[..., Report]) -> None:
    """Scores of -inf in the model are the lowest float in the file; what is computed from them is the same."""
    model = Function(lambda _, x: torch.softmax(x.masked_fill(x > 0.5, -torch.inf), 1))
    x = noise("trace.masks", 3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    held = [a.t for n in proto.graph.node for a in n.attribute if n.op_type == "Constant"]
    mask = next(t for t in (*held, *proto.graph.initializer) if np.isneginf(numpy_helper.to_array(t)).any())
    mask.CopyFrom(numpy_helper.from_array(np.full(mask.dims, np.finfo(np.float32).min, np.float32), mask.name))
    report = trace(model, proto, x)
    assert report.agrees
    assert report.confined == ()


def test_an_output_without_a_partner_is_told(trace: Callable[..., Report]) -> None:
    model = Function(lambda _, x: (x + 1, x.sum()))
    proto = graph_of([onnx.helper.make_node("Add", ["x", "one"], ["y"])], {"x": (2, 3)}, ["y"], {"one": np.float32(1)})
    report = trace(model, proto, noise("trace.lone", 2, 3))
    assert report.agrees
    assert any("for want of a partner: output 1" in warning for warning in report.warnings)


@pytest.mark.parametrize("bias", [np.nan, np.inf])
def test_agreement_on_what_is_no_number_is_told_to_say_nothing(trace: Callable[..., Report], bias: float) -> None:
    model = fill(nn.Sequential(*(nn.Linear(4, 4) for _ in range(20))))
    with torch.no_grad():
        model[3].bias.fill_(bias)
    x = noise("trace.special", 2, 4)
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)
    assert report.agrees
    assert any("at 8 of 8 elements in the model itself, beginning at 3 (aten." in text for text in report.warnings)


def test_infinities_among_numbers_are_meant(trace: Callable[..., Report]) -> None:
    model = Function(lambda _, x: x.masked_fill(x > 0, -torch.inf))
    x = noise("trace.masked", 4, 4)
    report = trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x)
    assert report.agrees
    assert report.warnings == ()


def test_an_output_that_is_an_input_is_compared(trace: Callable[..., Report]) -> None:
    model = Function(lambda _, x: (x, x + 1))
    x = noise("trace.through", 2, 3)
    assert trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x).agrees


# What is left alone.


def test_the_model_is_the_same_afterwards(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    before = copy.deepcopy(classifier.state_dict())
    image = image.clone().requires_grad_()
    random_state = torch.get_rng_state()
    trace(classifier, broken, image)
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m.training for m in classifier.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in classifier.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.is_grad_enabled()


def test_a_model_that_changes_its_input_in_place_leaves_the_users_tensor_alone(trace: Callable[..., Report]) -> None:
    model = Function(lambda _, x: x.sub_(3).mul_(2))
    x = noise("trace.in-place", 2, 3)
    given = x.clone()
    proto = export(Function(lambda _, x: (x - 3) * 2), (x,), Exporter.TORCHSCRIPT)
    report = trace(model, proto, x)
    assert torch.equal(x, given)
    assert report.agrees
    assert report.outputs[0].shipped.limit < 1e-4


def test_a_model_that_changes_its_input_in_place_is_still_judged(trace: Callable[..., Report]) -> None:
    model = Function(lambda _, x: x.sub_(3).mul_(2))
    x = noise("trace.in-place", 2, 3)
    wrong = export(Function(lambda _, x: (x - 3) * 2.5), (x,), Exporter.TORCHSCRIPT)
    assert not trace(model, wrong, x.numpy()).agrees


@pytest.mark.parametrize("treatment", [Treatment.RAW, Treatment.ORT_EXTENDED])
def test_tracing_prints_nothing(
    trace: Callable[..., Report],
    classifier: nn.Module,
    broken: onnx.ModelProto,
    image: Tensor,
    treatment: Treatment,
    capfd: pytest.CaptureFixture[str],
) -> None:
    proto = treat(broken, treatment)
    capfd.readouterr()
    trace(classifier, proto, image)
    assert capfd.readouterr() == ("", "")


def test_the_progress_bar_goes_to_stderr(
    trace: Callable[..., Report],
    classifier: nn.Module,
    broken: onnx.ModelProto,
    image: Tensor,
    capfd: pytest.CaptureFixture[str],
) -> None:
    trace(classifier, broken, image, progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "done" in err


def test_two_traces_give_the_same_report(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    first, second = (trace(classifier, broken, image) for _ in range(2))
    assert first.to_dict() == second.to_dict()


# A model that draws random numbers.


def test_dropout_in_train_mode_is_traced_with_a_warning_and_found(trace: Callable[..., Report]) -> None:
    model = fill(nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 8)))
    x = noise("trace.dropout", 4, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    report = trace(model.train(), proto, x)
    assert model.training
    assert [divergence.layer for divergence in report.divergences] == ["1"]
    assert any("1 Dropout" in warning for warning in report.warnings)


def test_a_weight_stored_in_half_precision_is_found(
    trace: Callable[..., Report], classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    rounded = with_initializer(healthy, "head.weight", lambda w: w.astype(np.float16).astype(np.float32))
    assert (
        numpy_helper.to_array(next(t for t in rounded.graph.initializer if t.name == "head.weight")).dtype == np.float32
    )
    assert trace(classifier, rounded, image).first_divergence.layer == "head"


# Models that are wrapped.


def scripted(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated and still what many people export from
        return torch.jit.script(model)


def test_a_scripted_model_is_compared_as_a_whole(trace: Callable[..., Report]) -> None:
    model, x = fill(nn.Sequential(nn.Linear(4, 4), nn.Tanh())), noise("trace.script", 2, 4)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    assert trace(scripted(model), proto, x).agrees
    report = trace(scripted(model), with_initializer(proto, "0.weight", lambda weight: weight * 2), x)
    assert report.first_divergence.layer == ""


def test_a_scripted_part_of_a_model_is_compared(trace: Callable[..., Report]) -> None:
    model, x = (
        fill(nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()))),
        noise("trace.part", 2, 4),
    )
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    model[1] = scripted(model[1])
    assert trace(model, proto, x).agrees
    assert trace(model, with_initializer(proto, "0.weight", lambda w: w * 2), x).first_divergence.layer == "0"


def test_a_traced_model_may_run_inside_inference_mode(
    trace: Callable[..., Report], classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    with torch.inference_mode():
        assert trace(classifier, broken, image).first_divergence.layer == "block.0"


def test_a_parametrised_weight_is_no_divergence(trace: Callable[..., Report]) -> None:
    layer = torch.nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model, x = fill(nn.Sequential(layer, nn.Tanh())), noise("trace.norm", 2, 4)
    assert trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x).agrees


def test_an_argument_of_none_is_no_input(trace: Callable[..., Report]) -> None:
    class Optional(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return x.exp() if mask is None else x * mask

    x = noise("trace.none", 2, 3)
    proto = graph_of([onnx.helper.make_node("Exp", ["x"], ["y"])], {"x": (2, 3)}, ["y"])
    assert trace(Optional(), proto, (x, None)).agrees
    assert trace(Optional(), proto, {"x": x, "mask": None}).agrees
