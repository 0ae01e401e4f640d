"""A torch module against another: half precision, quantised, compiled, scripted, exported, edited."""

from __future__ import annotations

import copy
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import layerdiff
from layerdiff.backends import Optimisation
from layerdiff.errors import BackendError, InputError, SampleError
from layerdiff.model import Status
from layerdiff.samples import samples
from layerdiff.sides import open_candidate
from layerdiff.sides.tape import record_tape
from tests.test_exported_program import program_of
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import onnx

    from layerdiff.report import Report

    Trace = Callable[..., Report]


@pytest.fixture(autouse=True)
def _torch_may_warn() -> Iterator[None]:
    """torch.jit, torch.ao.quantization and torch.compile warn about themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def edited(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


@pytest.mark.parametrize("name", MODELS)
def test_a_copy_is_quiet_and_every_call_is_compared(trace: Trace, name: str) -> None:
    sample = MODELS[name]()
    report = trace(sample.model, edited(sample.model), sample.inputs)
    assert report.agrees
    assert report.warnings == ()
    compared = [row for row in report.layers if row.reason != "its result does not reach an output of the model"]
    assert {row.status for row in compared} == {Status.AGREES}
    assert all(row.introduced.max_abs == 0 for row in compared)


@pytest.mark.parametrize("form", ["traced", "exported"])
@pytest.mark.parametrize("name", ["resnet", "gpt", "speech"])
def test_what_torch_made_of_a_module_is_quiet(trace: Trace, name: str, form: str) -> None:
    sample = MODELS[name]()
    make = {"traced": lambda: torch.jit.trace(sample.model, sample.inputs)}
    make["exported"] = lambda: program_of(sample.model, *sample.inputs)
    other = make[form]()
    for sides in ((sample.model, other), (other, sample.model), (other, other)):
        assert trace(*sides, sample.inputs).agrees


# One fault.


def test_a_changed_epsilon_is_named_and_healed(trace: Trace) -> None:
    sample = MODELS["resnet"]()
    other = edited(sample.model)
    other.layer3[0].bn1.eps = 0.1
    report = trace(sample.model, other, sample.inputs)
    found = report.first_divergence
    assert (found.layer, found.op, len(report.divergences)) == ("layer3.0.bn1", "aten.native_batch_norm", 1)
    assert found.onnx_nodes == ("layer3.0.bn1/native_batch_norm",)
    assert found.healed.agrees
    assert report.verdict.count("the reference's value put in there") == 1
    assert {row.status for row in report.layers} == {Status.AGREES, Status.DIVERGES, Status.PROPAGATES}


FAULTS: dict[str, tuple[str, str, Callable[[Any], None]]] = {
    "weight": ("vit", "blocks.1.mlp.fc1", lambda m: m.blocks[1].mlp.fc1.weight.data.mul_(1.1)),
    "activation": ("mobilenet", "blocks.1.act1", lambda m: setattr(m.blocks[1], "act1", nn.Hardtanh(0.0, 3.0))),
    "norm": ("gpt", "h.1.norm2", lambda m: setattr(m.h[1].norm2, "eps", 0.1)),
    "stride": ("unet", "down1.conv1", lambda m: setattr(m.down1.conv1, "padding_mode", "reflect")),
    "recurrent": ("speech", "gru", lambda m: m.gru.weight_hh_l0.data.mul_(1.2)),
    "dropped": ("resnet", "layer2.1.relu", lambda m: setattr(m.layer2[1], "relu", nn.Identity())),
}


@pytest.mark.parametrize(("name", "layer", "break_"), FAULTS.values(), ids=FAULTS.keys())
def test_an_edit_is_named(trace: Trace, name: str, layer: str, break_: Callable[[Any], None]) -> None:
    sample = MODELS[name]()
    other = edited(sample.model)
    break_(other)
    report = trace(sample.model, other, sample.inputs)
    assert not report.agrees
    assert report.first_divergence.layer == layer


def test_a_fault_in_what_was_scripted_or_exported_is_named_by_the_reference(trace: Trace) -> None:
    sample = MODELS["resnet"]()
    other = edited(sample.model)
    other.layer3[0].bn1.eps = 0.1
    for candidate in (torch.jit.trace(other, sample.inputs), program_of(other, *sample.inputs)):
        report = trace(sample.model, candidate, sample.inputs)
        assert report.first_divergence.layer == "layer3.0.bn1"
        assert report.first_divergence.healed.agrees


def test_an_onnx_file_can_be_the_reference_of_a_module(
    trace: Trace, classifier: nn.Module, image: Tensor, broken: onnx.ModelProto, healthy: onnx.ModelProto
) -> None:
    assert trace(healthy, classifier, image).verdict.startswith("ONNX and PyTorch agree")
    report = trace(broken, classifier, {broken.graph.input[0].name: image})
    assert report.first_divergence.layer == "block.0"
    assert report.first_divergence.healed.agrees
    assert "with ONNX's value put in there" in report.verdict


# Precision.


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_diffuse(trace: Trace, dtype: torch.dtype) -> None:
    sample = MODELS["resnet"]()
    report = trace(sample.model, edited(sample.model).to(dtype), sample.inputs)
    assert report.divergences == ()
    assert report.diffuse.format == str(dtype).removeprefix("torch.")
    assert len(report.diffuse.layers) > 40


def test_a_fault_in_half_precision_is_set_apart_from_rounding(trace: Trace) -> None:
    sample = MODELS["resnet"]()
    other = edited(sample.model).half()
    other.layer3[0].bn1.eps = 0.5
    report = trace(sample.model, other, sample.inputs)
    assert report.first_divergence.layer == "layer3.0.bn1"
    assert "only round to float16" in report.verdict


@pytest.mark.parametrize(("name", "layers"), [("gpt", 13), ("speech", 4)])
def test_dynamic_quantisation_all_over_a_network_is_diffuse(trace: Trace, name: str, layers: int) -> None:
    sample = MODELS[name]()
    kinds = {nn.Linear, nn.GRU, nn.LSTM}
    report = trace(sample.model, torch.ao.quantization.quantize_dynamic(sample.model, kinds), sample.inputs)
    assert report.divergences == ()
    assert (report.diffuse.format, len(report.diffuse.layers)) == ("int8", layers)


def test_one_quantised_layer_is_a_place(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    report = trace(classifier, torch.ao.quantization.quantize_dynamic(classifier, {nn.Linear}), image)
    assert report.first_divergence.layer == "head"
    assert report.first_divergence.onnx_nodes[0] == "head/linear_dynamic"
    assert report.first_divergence.healed.agrees


# Compiled modules.


@pytest.mark.parametrize("compiler", ["eager", "aot_eager"])
def test_a_compiled_module_is_quiet_on_either_side(
    trace: Trace, classifier: nn.Module, image: Tensor, compiler: str
) -> None:
    compiled = torch.compile(classifier, backend=compiler)
    for sides in ((classifier, compiled), (compiled, classifier)):
        report = trace(*sides, image)
        assert report.agrees
        assert {row.layer for row in report.layers} == {name for name, _ in classifier.named_modules()}
    assert trace(classifier, compiled, image).environment["compiled"] == f"torch.compile(backend={compiler!r})"


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler, and there is no g++ here")
def test_what_inductor_compiles_is_quiet(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    report = trace(classifier, torch.compile(classifier), image)
    assert report.agrees, report.verdict
    assert report.environment["compiled"] == "torch.compile(backend='inductor')"


def wrong_compiler(graph: torch.fx.GraphModule, _: object) -> Callable[..., Any]:
    """Compiles everything right, and adds one to it."""
    return lambda *args: [out + 1 for out in graph(*args)]


@pytest.mark.parametrize("in_place", [False, True])
def test_a_compiler_that_computes_something_else_is_named(
    trace: Trace, classifier: nn.Module, image: Tensor, *, in_place: bool
) -> None:
    candidate: Any = edited(classifier)
    if in_place:
        candidate.compile(backend=wrong_compiler)
    else:
        candidate = torch.compile(candidate, backend=wrong_compiler)
    report = trace(classifier, candidate, image)
    assert not report.agrees
    assert report.divergences == ()
    cause = report.diagnoses[0]
    assert (cause.cause, cause.verified) == ("runtime-fusion", True)
    assert cause.evidence["passes"][0].startswith("torch.compile")
    assert "call the module that was compiled" in cause.remedy
    assert trace(candidate, classifier, image).agrees  # as a reference it is recorded without being compiled


# The tape.


class Updates(nn.Module):
    """Views, in-place operators, and a buffer that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        y[:, 1] = 0.5
        y[:, 2:].mul_(3)
        y.t()[0] += x.t()[1]
        part = y.view(-1)[::2]
        part.clamp_(min=-0.2)
        self.seen += y.mean(0)
        return y * self.seen + y.transpose(0, 1).contiguous().view(-1)[:4]


class Draws(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.lstm = nn.LSTM(4, 4, 2, dropout=0.3)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(self.drop(self.norm(x)) + torch.randn_like(x))[0]


@pytest.mark.parametrize(("build", "rows"), [(Updates, 1), (Updates, 5), (Draws, 2), (Draws, 5)])
def test_a_replay_gives_the_numbers_of_the_module(build: Callable[[], nn.Module], rows: int) -> None:
    model, x = build().train(), torch.randn(rows, 4)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    sample = next(iter(samples(x)))
    candidate = open_candidate(model, None).fed(sample, {"x": x.numpy()})
    shipped, tapped = candidate.shipped, candidate.tapped
    assert np.array_equal(shipped["output"], tapped["output"])
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    again = candidate.isolated({})
    assert all(np.array_equal(again[name], array) for name, array in tapped.items() if name in again)


def test_lost_updates_are_found(trace: Trace) -> None:
    class Lost(Updates):
        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            y[:, 1] = 0.5
            y[:, 2:].clone().mul_(3)
            y.t()[0] += x.t()[1]
            y.view(-1)[::2].clamp_(min=-0.2)
            self.seen += y.mean(0)
            return y * self.seen + y.transpose(0, 1).contiguous().view(-1)[:4]

    right = Updates()
    wrong = Lost()
    wrong.load_state_dict(right.state_dict())
    report = trace(right, wrong, torch.randn(5, 4))
    assert not report.agrees
    assert report.first_divergence.layer == ""


def test_a_tape_is_in_single_assignment_form() -> None:
    tape = record_tape(Updates(), (torch.randn(5, 4),), {})
    made = [value for site in tape.graph.sites for value in site.outputs]
    assert len(made) == len(set(made))
    assert set(tape.steps) == {site.index for site in tape.graph.sites}


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.tensor([2.0, 3.0, 5.0]))

    def forward(self, scale: Tensor, *, x: Tensor) -> dict[str, Tensor]:
        return {"x": self.inner(x), "scaled": self.scale * scale, "same": x}


def test_outputs_pair_by_name_and_names_may_clash(trace: Trace) -> None:
    model = Named()
    other = edited(model)
    with torch.no_grad():
        other.scale.add_(1)
    given = {"x": torch.randn(2, 3), "scale": torch.randn(2, 3)}
    assert trace(model, edited(model), given).agrees
    report = trace(model, other, given)
    assert {output.name: output.agrees for output in report.outputs} == {"x": True, "scaled": False, "same": True}
    assert (report.first_divergence.layer, report.first_divergence.op) == ("", "aten.mul.Tensor")


class Anything(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)

    def forward(self, *parts: Tensor, **more: Tensor) -> Tensor:
        found = [*parts, *more.values()]
        return self.inner(found[0]) * found[1]


@pytest.mark.parametrize("named", [True, False])
def test_arguments_without_names_of_their_own_are_matched(trace: Trace, *, named: bool) -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    right = Anything()
    wrong = edited(right)
    wrong.inner.bias.data.add_(1)
    given = {"a": x, "b": y} if named else (x, y)
    assert trace(right, edited(right), given).agrees
    assert trace(right, wrong, given).first_divergence.layer == "inner"


def test_a_module_in_double_precision_takes_the_inputs_of_the_reference(trace: Trace) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
    assert trace(model, edited(model).double(), torch.randn(2, 3)).agrees


# What cannot be used.


def test_a_backend_is_for_files(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    with pytest.raises(InputError, match="backend: runs ONNX candidates; a torch candidate runs itself"):
        trace(classifier, classifier, image, backend=layerdiff.backends.OnnxRuntime())


def test_a_candidate_that_raises_is_told_from_a_reference_that_does(trace: Trace) -> None:
    right, wrong = nn.Linear(3, 4), nn.Sequential(nn.Linear(5, 4))
    with pytest.raises(BackendError, match="the candidate module raised RuntimeError in 0: "):
        trace(right, wrong, torch.randn(2, 3))


def test_a_candidate_that_takes_other_arguments_is_refused(trace: Trace) -> None:
    with pytest.raises(SampleError, match=r"Bilinear\.forward"):
        trace(nn.Linear(3, 4), nn.Bilinear(3, 3, 4), torch.randn(2, 3))


@pytest.mark.parametrize("candidate", [None, 3, torch.exp, nn.Linear])
def test_a_candidate_of_another_kind_is_refused(trace: Trace, classifier: nn.Module, candidate: Any) -> None:
    with pytest.raises(InputError, match=r"candidate: wanted the path of an \.onnx file"):
        trace(classifier, candidate, torch.randn(1))


def test_a_compiled_module_gives_no_graph(classifier: nn.Module) -> None:
    with pytest.raises(BackendError, match="does not give the graph"):
        open_candidate(classifier, None).backend.optimised("", Optimisation.BASIC)


def test_the_modules_are_left_as_they_were(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    other = edited(classifier).train()
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    trace(classifier, other, image)
    assert other.training
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in other.modules())
    proto = export(classifier, (image,), Exporter.TORCHSCRIPT)
    assert trace(classifier, proto, image).agrees
