"""On a real GPU: the same findings as on the CPU, TF32 named, sums by atomics taken as rounding, nothing left behind.

None of this runs without one. What can be tested without is in test_devices.py and test_fp32.py.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from layerdiff.errors import ReferenceFailedError
from tests.conftest import with_a_weight_too_large, with_initializer
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    import onnx

    from tests.conftest import Trace

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def there(tree: Any) -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to("cuda"), tree)


def has_tf32() -> bool:
    return torch.cuda.get_device_capability() >= (8, 0)


@pytest.mark.parametrize("name", ["resnet", "yolo", "unet", "vit", "gpt", "llama", "speech"])
def test_a_model_on_a_gpu_is_found_what_it_is_found_on_the_cpu(trace: Trace, name: str) -> None:
    sample = MODELS[name]()
    args = sample.inputs if isinstance(sample.inputs, tuple) else (sample.inputs,)
    healthy = export(sample.model, args, Exporter.TORCHSCRIPT)
    faulty = with_a_weight_too_large(healthy)
    expected = trace(sample.model, faulty, args)
    model = copy.deepcopy(sample.model).to("cuda")
    report = trace(model, healthy, there(args))
    assert report.agrees
    assert report.divergences == ()
    found = trace(model, faulty, there(args))
    assert found.first_divergence.layer == expected.first_divergence.layer
    assert found.first_divergence.healed.agrees
    assert found.diagnoses[0].cause == expected.diagnoses[0].cause


def test_the_model_the_settings_and_the_random_states_are_left_as_they_were(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    model = classifier.to("cuda")
    state = copy.deepcopy(model.state_dict())
    generators = torch.get_rng_state(), torch.cuda.get_rng_state()
    settings = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    trace(model, broken, image.to("cuda"))
    assert all(tensor.is_cuda and torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generators[0])
    assert torch.equal(torch.cuda.get_rng_state(), generators[1])
    assert settings == (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
    )


def test_no_memory_of_the_gpu_is_kept(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    model, x = classifier.to("cuda"), image.to("cuda")
    trace(model, broken, x)  # what libraries allocate once
    before = torch.cuda.memory_allocated()
    report = trace(model, broken, x)
    assert not report.agrees
    assert torch.cuda.memory_allocated() <= before + x.nbytes


def test_arrays_are_put_on_the_gpu_and_tensors_are_not(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    model = classifier.to("cuda")
    assert trace(model, healthy, image.numpy()).agrees
    with pytest.raises(ReferenceFailedError, match="the model is on cuda:0 and the inputs are on cpu"):
        trace(model, healthy, image)


@pytest.mark.skipif(torch.cuda.is_available() and not has_tf32(), reason="this GPU has no TF32")
def test_convolutions_in_tf32_are_named_and_the_file_is_not_blamed(trace: Trace) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(64, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval()
    x = torch.randn(1, 64, 32, 32)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    assert torch.backends.cudnn.allow_tf32  # torch's default
    report = trace(model.to("cuda"), proto, x.to("cuda"))
    assert report.agrees
    (cause,) = report.diagnoses
    assert (cause.cause, cause.layer, cause.verified, cause.evidence["format"]) == ("precision", "0", True, "TF32")
    assert cause.remedy.startswith("torch.backends.cudnn.allow_tf32 = False")
    faulty = with_initializer(proto, "2.weight", lambda weight: weight * 1.001)
    assert trace(model, faulty, x.to("cuda")).first_divergence.layer == "2"
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert trace(model, proto, x.to("cuda")).diagnoses == ()
    finally:
        torch.backends.cudnn.allow_tf32 = True


@pytest.mark.skipif(torch.cuda.is_available() and not has_tf32(), reason="this GPU has no TF32")
def test_products_in_tf32_are_named(trace: Trace) -> None:
    model = fill(nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 64))).eval()
    x = noise("cuda.products", 64, 512)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        report = trace(model.to("cuda"), proto, x.to("cuda"))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False
    assert report.agrees
    assert [d.cause for d in report.diagnoses] == ["precision"]


class Summed(nn.Module):
    """Adds many rows into a few, in the order in which threads come."""

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.arange(x.shape[0], device=x.device) % 4
        return torch.zeros(4, x.shape[1], device=x.device).index_add(0, rows, x)


def test_sums_by_atomics_are_no_divergence(trace: Trace) -> None:
    x = noise("cuda.sums", 4096, 64)
    proto = export(Summed(), (x,), Exporter.TORCHSCRIPT)
    assert trace(Summed(), proto, x.to("cuda")).agrees


def test_a_torch_candidate_on_a_gpu_is_replayed_and_healed(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    other = copy.deepcopy(classifier)
    with torch.no_grad():
        other.block[0].weight *= 1.25
    report = trace(classifier, other.to("cuda"), image)
    assert report.first_divergence.layer == "block.0"
    assert report.first_divergence.healed.agrees
    assert trace(classifier, copy.deepcopy(classifier).to("cuda"), image).agrees


def test_dropout_on_a_gpu_is_said_to_draw(trace: Trace) -> None:
    model = nn.Sequential(nn.Linear(8, 64), nn.Dropout(0.5), nn.Linear(64, 4)).eval()
    x = torch.from_numpy(np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8))
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    cause = trace(model.to("cuda").train(), proto, x.to("cuda")).diagnoses[0]
    assert (cause.cause, cause.layer) == ("training-mode", "1")
