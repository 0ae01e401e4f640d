"""A model on another device than the CPU: what is compared, replayed and exported goes where it must."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from layerdiff.capture import capture
from layerdiff.errors import ReferenceFailedError
from layerdiff.gpu import plainly
from layerdiff.lowering import replayed
from layerdiff.noise import floor_of_step, noise_floor
from layerdiff.samples import samples
from layerdiff.sides import steps, torch_nodes
from tests import toy_device as toy
from tests.conftest import with_a_weight_too_large, with_initializer
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from pathlib import Path

    import onnx

    from tests.conftest import Trace

on_toy = pytest.mark.skipif(not toy.HERE, reason="this torch takes no device that is made of Python")


def there(tree: Any) -> Any:
    return tree_map_only(Tensor, toy.ToyTensor, tree)


@on_toy
def test_inputs_given_as_arrays_are_put_where_the_model_is(
    trace: Trace,
    classifier: nn.Module,
    healthy: onnx.ModelProto,
    broken: onnx.ModelProto,
    image: Tensor,
    tmp_path: Path,
) -> None:
    model = toy.moved_there(classifier)
    assert trace(model, healthy, image.numpy()).agrees
    assert trace(model, healthy, {"image": image.numpy()}).agrees
    np.savez(tmp_path / "image.npz", image=image.numpy())
    report = trace(model, broken, tmp_path / "image.npz")
    assert report.first_divergence.layer == "block.0"
    assert report.diagnoses[0].verified
    assert {str(tensor.device) for tensor in model.state_dict().values()} == {"toy:0"}


@on_toy
def test_a_tensor_of_the_cpu_is_not_moved_and_the_error_names_both_devices(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    with pytest.raises(ReferenceFailedError) as caught:
        trace(toy.moved_there(classifier), healthy, image)
    assert "in stem: Expected all tensors to be on the same device" in str(caught.value)
    assert "the model is on toy:0 and the inputs are on cpu: move them there with .to('toy:0')" in str(caught.value)


@on_toy
@pytest.mark.parametrize("name", ["resnet", "unet", "vit", "gpt", "llama"])
def test_a_model_elsewhere_is_found_what_it_is_found_on_the_cpu(trace: Trace, name: str) -> None:
    sample = MODELS[name]()
    args = sample.inputs if isinstance(sample.inputs, tuple) else (sample.inputs,)
    healthy = export(sample.model, args, Exporter.TORCHSCRIPT)
    faulty = with_a_weight_too_large(healthy)
    moved = toy.moved_there(copy.deepcopy(sample.model))
    assert trace(moved, healthy, there(args)).agrees
    found, expected = trace(moved, faulty, there(args)), trace(sample.model, faulty, args)
    assert found.first_divergence.layer == expected.first_divergence.layer
    assert [(d.cause, d.layer, d.verified) for d in found.diagnoses] == [
        (d.cause, d.layer, d.verified) for d in expected.diagnoses
    ]


@on_toy
def test_the_twin_of_a_model_elsewhere_is_as_far_away_as_on_the_cpu(classifier: nn.Module, image: Tensor) -> None:
    floors = []
    for model, x in ((classifier, image), (toy.moved_there(copy.deepcopy(classifier)), toy.ToyTensor(image))):
        reference = capture(model, (x,), {})
        floors.append(noise_floor(model, (x,), {}, reference)[reference.outputs[""]].max_abs)
    assert floors[0] > 0
    assert floors[1] == pytest.approx(floors[0], rel=0.5)


class Placed(nn.Module):
    """Makes tensors on the device of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(8, device=x.device, dtype=x.dtype)
        return self.inner(x * (steps + 1)) + torch.ones(8, device=x.device)


@on_toy
def test_operators_that_name_a_device_run_again_and_are_exported_afresh(trace: Trace) -> None:
    model, x = Placed().eval(), noise("devices.placed", 3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    moved = toy.moved_there(copy.deepcopy(model))
    reference = capture(moved, (toy.ToyTensor(x),), {})
    everything = [site.index for site in reference.sites]
    floor = floor_of_step(reference, everything, reference.outputs[""])
    assert floor is not None
    assert 0 < floor.max_abs < 1e-5
    faulty = copy.deepcopy(proto)
    next(node for node in faulty.graph.node if node.op_type == "Mul").op_type = "Div"
    cause, expected = (trace(m, faulty, given).diagnoses[0] for m, given in ((moved, toy.ToyTensor(x)), (model, x)))
    assert (cause.cause, cause.layer, cause.summary) == (expected.cause, expected.layer, expected.summary)
    assert cause.verified


@on_toy
def test_a_stretch_that_names_a_device_is_taken_to_the_cpu() -> None:
    x = noise("devices.stretch", 3, 8)
    model = Function(lambda given: given * torch.full_like(given, 2.0, device=given.device))
    reference = capture(model, (toy.ToyTensor(x),), {})
    inside = [site.index for site in reference.sites]
    module = replayed(reference, inside, [reference.inputs["given"]], reference.outputs[""])
    assert module is not None
    torch.testing.assert_close(module(x), 2 * x)


@on_toy
def test_what_is_put_in_from_outside_meets_tensors_elsewhere() -> None:
    x, y = noise("devices.left", 3, 4), noise("devices.right", 3, 4)
    (total,) = torch_nodes.run("aten.add.Tensor", {torch_nodes.OPERANDS: "self,other"}, [x, toy.ToyTensor(y)])
    torch.testing.assert_close(total.cpu(), x + y)
    whole = steps.Geometry.of(x)
    first = steps.Geometry.of(x[0])
    (updated,) = steps.update((0, 1), whole, [first]).run([toy.ToyTensor(x), y[0]])
    torch.testing.assert_close(updated.cpu(), torch.cat([y[:1], x[1:]]))


class Function(nn.Module):
    def __init__(self, body: Any) -> None:
        super().__init__()
        self.body = body

    def forward(self, given: Tensor) -> Tensor:
        return self.body(given)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0])


@on_toy
def test_a_recurrent_layer_elsewhere_is_exported_afresh_from_a_copy_on_the_cpu(trace: Trace) -> None:
    model, x = fill(Recurrent()).eval(), noise("devices.recurrent", 2, 5, 6)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    recurrent = next(node for node in proto.graph.node if node.op_type == "LSTM")
    faulty = with_initializer(proto, recurrent.input[1], lambda weight: weight * 1.2)
    moved = toy.moved_there(copy.deepcopy(model))
    assert trace(moved, proto, toy.ToyTensor(x)).agrees
    cause = trace(moved, faulty, toy.ToyTensor(x)).diagnoses[0]
    assert (cause.cause, cause.layer, cause.verified) == ("weights", "lstm", True)
    assert {str(parameter.device) for parameter in moved.parameters()} == {"toy:0"}


@on_toy
def test_a_torch_candidate_elsewhere_is_replayed_and_healed(trace: Trace, classifier: nn.Module, image: Tensor) -> None:
    other = copy.deepcopy(classifier)
    with torch.no_grad():
        other.block[0].weight *= 1.25
    moved = toy.moved_there(other)
    assert trace(classifier, toy.moved_there(copy.deepcopy(classifier)), image).agrees
    for reference, x in ((classifier, image), (toy.moved_there(copy.deepcopy(classifier)), toy.ToyTensor(image))):
        report = trace(reference, moved, x)
        assert report.first_divergence.layer == "block.0"
        assert report.first_divergence.healed.agrees
        assert report.diagnoses[0].cause == "weights"


@on_toy
def test_a_divergence_elsewhere_is_repaired_and_reproduced(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    report = trace(toy.moved_there(classifier), broken, toy.ToyTensor(image))
    assert report.repair(tmp_path / "repaired.onnx").agrees
    folder = report.reproduce(tmp_path / "case")
    run = subprocess.run([sys.executable, folder / "reproduce.py"], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    assert "toy" not in (folder / "reference.py").read_text(encoding="utf-8")


def test_arrays_stay_on_the_cpu_where_nothing_else_is_asked_for() -> None:
    (sample,) = samples(np.zeros(3, np.float32))
    assert sample.args[0].device.type == "cpu"


# Operators that only GPUs have, given tensors of the CPU.

Q, K, V = (noise(f"devices.{name}", 2, 3, 5, 8) for name in "qkv")
BIAS = noise("devices.bias", 2, 3, 5, 5)
ATEN = torch.ops.aten


@pytest.mark.parametrize(
    ("operator", "args", "kwargs", "mask", "causal"),
    [
        (ATEN._scaled_dot_product_flash_attention.default, (Q, K, V, 0.0, True), {}, None, True),
        (ATEN._scaled_dot_product_flash_attention.default, (Q, K, V), {"scale": 0.5}, None, False),
        (ATEN._scaled_dot_product_efficient_attention.default, (Q, K, V, BIAS, False), {}, BIAS, False),
        (ATEN._scaled_dot_product_efficient_attention.default, (Q, K, V, None, False, 0.0, True), {}, None, True),
    ],
)
def test_attention_of_gpus_is_computed_by_plain_operators(
    operator: Any, args: Any, kwargs: Any, mask: Any, causal: Any
) -> None:
    expected = nn.functional.scaled_dot_product_attention(Q, K, V, mask, is_causal=causal, **kwargs)
    (found,) = plainly(operator, args, kwargs)
    torch.testing.assert_close(found, expected)


def test_the_batchnorm_of_cudnn_is_computed_by_the_plain_one() -> None:
    norm = nn.BatchNorm1d(5).eval()
    x = noise("devices.norm", 4, 5)
    args = (x, norm.weight, norm.bias, norm.running_mean, norm.running_var, False, 0.1, norm.eps)
    (found,) = plainly(ATEN.cudnn_batch_norm.default, args, {})
    torch.testing.assert_close(found, norm(x))


def test_operators_that_have_kernels_of_the_cpu_are_left_to_them() -> None:
    assert plainly(ATEN.mm.default, (torch.eye(2), torch.eye(2)), {}) is None
    assert plainly(ATEN.arange.default, (3,), {}) is None
