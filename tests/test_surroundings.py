"""Traces in the places where people call them: threads, torch's modes, and modules that are not plain."""

from __future__ import annotations

import copy
import random
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from layerdiff import InputError
from tests.conftest import Classifier, with_initializer
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import onnx

    from layerdiff.report import Report

    Trace = Callable[..., Report]


def process_state() -> list[Any]:
    """Everything that belongs to the process and that a trace changes for a while."""
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002  the old state is what is guarded
        torch.is_grad_enabled(),
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.mkldnn.enabled,
        warnings.filters[:],
    ]


def hooks_of(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


# Threads.


@pytest.mark.parametrize("whose", ["models of their own", "one model"])
def test_traces_at_once_find_what_they_find_alone(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, broken: onnx.ModelProto, image: Tensor, whose: str
) -> None:
    before = process_state()
    start = threading.Barrier(4)

    def one(number: int) -> tuple[bool, str | None]:
        model = classifier if whose == "one model" else copy.deepcopy(classifier)
        start.wait()
        report = trace(model, broken if number % 2 else healthy, image)
        return report.agrees, None if report.agrees else report.first_divergence.layer

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(one, range(4)))
    assert found == [(True, None), (False, "block.0")] * 2
    assert process_state() == before
    assert hooks_of(classifier) == 0


def test_a_model_that_is_called_by_another_thread_meanwhile_is_traced_right(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    """What it computes there is neither recorded nor changed."""
    with torch.no_grad():
        expected = classifier(image)
    done, wrong = threading.Event(), []

    def serve() -> None:
        with torch.no_grad():
            while not done.is_set():
                if not torch.allclose(classifier(image), expected, rtol=1e-4, atol=1e-6):  # oneDNN is off for a while
                    wrong.append(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        report = trace(classifier, broken, image)
    finally:
        done.set()
        thread.join()
    assert report.first_divergence.layer == "block.0"
    assert not wrong


# Torch's modes.


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


MODES: dict[str, Callable[[], Any]] = {
    "inference_mode": torch.inference_mode,
    "no_grad": torch.no_grad,
    "enable_grad": torch.enable_grad,
    "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
    "deterministic": deterministic,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("mode", MODES)
def test_a_trace_in_a_mode_of_torch_finds_what_it_finds_outside(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, broken: onnx.ModelProto, image: Tensor, mode: str
) -> None:
    with MODES[mode]():
        assert trace(classifier, healthy, image).agrees
        assert trace(classifier, broken, image).first_divergence.layer == "block.0"


def test_a_model_that_was_made_in_inference_mode_is_traced(trace: Trace, image: Tensor) -> None:
    with torch.inference_mode():
        model = settle(fill(Classifier()), noise("classifier.batch", 8, 3, 10, 10))
        given = image.clone()
    proto = export(copy.deepcopy(model), (image,), Exporter.TORCHSCRIPT)
    assert trace(model, proto, given).agrees
    with torch.inference_mode():
        assert trace(model, proto, given).agrees


def test_under_autocast_the_reference_is_what_autocast_makes_of_it(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    """bfloat16 inside is the model that was asked about: its rounding is not blamed on the export."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = trace(classifier, healthy, image)
        assert torch.is_autocast_enabled("cpu")
    assert not torch.is_autocast_enabled("cpu")
    assert report.agrees or report.diffuse is not None
    assert not [d for d in report.diagnoses if d.verified]


def test_a_default_device_of_meta_does_not_reach_the_trace(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    with torch.device("meta"):
        assert trace(classifier, broken, image).first_divergence.layer == "block.0"


def test_a_default_dtype_of_double_changes_nothing(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert trace(classifier, broken, image).first_divergence.layer == "block.0"
    finally:
        torch.set_default_dtype(torch.float32)


# Modules that are not plain.


def test_data_parallel_is_looked_through(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(nn.DataParallel(classifier), broken, image)
    assert report.first_divergence.layer == "module.block.0"
    assert trace(nn.DataParallel(classifier), export(classifier, (image,), Exporter.TORCHSCRIPT), image).agrees


def test_a_hook_that_changes_an_output_is_part_of_the_model(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    calls = []

    def double(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        calls.append(args)
        return output * 2

    handle = classifier.block[0].register_forward_hook(double)
    report = trace(classifier, healthy, image)
    assert not report.agrees
    assert report.first_divergence.layer == "block.0"
    assert calls
    assert list(classifier.block[0]._forward_hooks) == [handle.id]
    assert trace(classifier, export(classifier, (image,), Exporter.TORCHSCRIPT), image).agrees


def test_a_hook_that_changes_an_input_is_part_of_the_model(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    classifier.head.register_forward_pre_hook(lambda _, args: (args[0] + 1,))
    good = export(classifier, (image,), Exporter.TORCHSCRIPT)
    assert trace(classifier, good, image).agrees
    bad = with_initializer(good, "head.weight", lambda weight: weight * 1.25)
    assert trace(classifier, bad, image).first_divergence.layer == "head"


def test_backward_hooks_do_no_harm(trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor) -> None:
    classifier.block[0].register_full_backward_hook(lambda *_: None)
    assert trace(classifier, broken, image).first_divergence.layer == "block.0"


def _old_weight_norm(layer: nn.Module) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer)


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight * 2


WRAPPED: dict[str, Callable[[nn.Module], Any]] = {
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": _old_weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "parametrization": lambda layer: parametrize.register_parametrization(layer, "weight", Doubled()),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_parametrised_weights_are_the_weights(trace: Trace, classifier: nn.Module, image: Tensor, how: str) -> None:
    WRAPPED[how](classifier.block[0])
    classifier.eval()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    good = export(classifier, (image,), Exporter.DYNAMO if how == "spectral_norm" else Exporter.TORCHSCRIPT)
    assert trace(classifier, good, image).agrees
    stored = [t.name for t in good.graph.initializer if list(t.dims) == [8, 8, 3, 3]]
    assert len(stored) == 1
    bad = with_initializer(good, stored[0], lambda weight: weight * 1.25)
    assert trace(classifier, bad, image).first_divergence.layer.startswith("block.0")
    assert all(torch.equal(tensor, before[name]) for name, tensor in classifier.state_dict().items())


def test_a_compiled_reference_is_recorded_as_it_is_written(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    compiled = torch.compile(classifier, backend="eager")
    assert trace(compiled, broken, image).first_divergence.layer == "block.0"


def test_a_reference_on_the_meta_device_is_refused_with_the_reason(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    with pytest.raises(InputError, match=r"reference: stem \(Conv2d\) has its weight on the meta device"):
        trace(copy.deepcopy(classifier).to("meta"), healthy, image)
    with pytest.raises(InputError, match="candidate: stem"):
        trace(classifier, copy.deepcopy(classifier).to("meta"), image)


def test_a_module_that_was_never_called_and_is_lazy_is_refused_with_the_reason(
    trace: Trace, healthy: onnx.ModelProto, image: Tensor
) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(5)).eval()
    with pytest.raises(InputError, match=r"0 \(LazyConv2d\).*call it once"):
        trace(model, healthy, image)
    assert isinstance(model[0], nn.LazyConv2d)
    assert isinstance(model[0].weight, nn.UninitializedParameter)


def test_a_lazy_module_that_was_called_is_like_any_other(trace: Trace, image: Tensor) -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5)).eval()
    model(image)
    assert trace(model, export(model, (image,), Exporter.TORCHSCRIPT), image).agrees


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_a_dynamically_quantised_reference_is_recorded(trace: Trace) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    x = noise("quantised.x", 4, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    report = trace(quantised, proto, x)
    assert not report.agrees
    assert not [d for d in report.diagnoses if d.verified and d.cause != "quantization"]
    assert trace(model, quantised, x).outputs


def test_a_module_with_parameters_shared_and_frozen_stays_so(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    for parameter in classifier.parameters():
        parameter.requires_grad_(False)
    classifier.tied = classifier.head.weight
    report = trace(classifier, broken, image)
    assert report.first_divergence.layer == "block.0"
    assert not any(parameter.requires_grad for parameter in classifier.parameters())
    assert classifier.tied is classifier.head.weight
    torch.save(classifier.state_dict(), tmp_path / "state.pt")


class Keeping(nn.Module):
    """Keeps what it has seen in plain attributes: a sum, a count, a list, a table, and one more from the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.mean, self.count = torch.zeros(4), 0
        self.total = torch.zeros(4)
        self.seen: list[Tensor] = []
        self.last: dict[str, int] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
        self.total += y.sum(0)
        self.count += 1
        self.seen.append(y)
        self.last["rows"] = len(x) * self.count
        self.late = y
        return y + self.mean + self.total * 0.01 + self.count


class FirstCall(nn.Module):
    """What the first call of the other gives."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        return y + 0.1 * y.mean(0) + y.sum(0) * 0.01 + 1


def test_what_a_model_keeps_in_attributes_is_as_it_was_and_hides_no_fault(trace: Trace) -> None:
    model, x = fill(Keeping()).eval(), noise("keeping", 3, 4)
    proto = export(FirstCall(model.layer), (x,), Exporter.TORCHSCRIPT)
    mean, total = model.mean, model.total
    assert trace(model, proto, x).agrees
    assert model.mean is mean
    assert model.total is total
    assert not model.total.any()
    assert (model.count, model.seen, model.last) == (0, [], {})
    assert not hasattr(model, "late")
    report = trace(model, with_initializer(proto, "layer.weight", lambda w: w * 1.02), x)
    assert [found.layer for found in report.divergences] == ["layer"]


def test_a_graph_for_gradients_lives_on(trace: Trace) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), noise("gradients", 2, 3, 6, 6)
    result = model(x).sum()
    assert trace(model, export(model, (x,), Exporter.TORCHSCRIPT), x).agrees
    result.backward()
    assert model[0].weight.grad is not None


class Picture(Tensor):
    """Nothing but a name, as torchvision has it for images."""


def test_an_input_that_only_carries_a_name_for_its_kind_is_compared_layer_by_layer(trace: Trace) -> None:
    model, x = fill(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))), noise("picture", 2, 4)
    proto = with_initializer(export(model, (x,), Exporter.TORCHSCRIPT), "0.bias", lambda b: b + 0.1)
    report = trace(model, proto, x.as_subclass(Picture))
    assert [found.layer for found in report.divergences] == ["0"]


class Picked(nn.Module):
    """Rows are picked by their numbers: behind a fault others, and another number of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(self.first(x))
        return self.last(y[torch.nonzero(y[:, 0] > 0).squeeze(1)]).sum(0)


@pytest.mark.parametrize("exporter", Exporter)
def test_rows_that_are_picked_by_their_numbers_do_not_stop_the_search(trace: Trace, exporter: Exporter) -> None:
    model, x = fill(Picked()), noise("picked", 40, 4)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.first.bias += 0.5
    report = trace(model, export(changed, (x,), exporter), x)
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "first"
