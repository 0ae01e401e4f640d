"""A BatchNorm that was folded wrongly: every way to do so is told from the numbers in the file."""

from __future__ import annotations

import copy
import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.utils import fusion

import layerdiff
from tests.diagnose.edits import attributes
from tests.diagnose.seeded import Network, check_quiet
from tests.realfaults.edit import constant_of, with_constant
from tests.realfaults.networks import chain
from tests.zoo.exports import Exporter, export, quiet

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.model import Diagnosis

    Change = Callable[[nn.Sequential, torch.Tensor], None]


def _convolutional() -> nn.Module:
    return chain(
        stem=nn.Conv2d(3, 8, 3, padding=1),
        norm=nn.BatchNorm2d(8, eps=1e-3),
        act=nn.ReLU(),
        neck=nn.Conv2d(8, 6, 3),
        last=nn.Sigmoid(),
    )


def _linear() -> nn.Module:
    return chain(stem=nn.Linear(6, 8), norm=nn.BatchNorm1d(8, eps=1e-3), act=nn.ReLU(), head=nn.Linear(8, 5))


def _transposed() -> nn.Module:
    return chain(
        stem=nn.ConvTranspose2d(3, 8, 3, padding=1, stride=2),
        norm=nn.BatchNorm2d(8, eps=1e-3),
        act=nn.ReLU(),
        neck=nn.Conv2d(8, 6, 3),
    )


CONV = Network("batchnorm", _convolutional, ((4, 3, 7, 7),))
LINEAR = Network("batchnorm-linear", _linear, ((5, 6),))
TRANSPOSED = Network("batchnorm-transposed", _transposed, ((2, 3, 6, 6),))


def exported(network: Network, change: Change, exporter: Exporter) -> onnx.ModelProto:
    """The export of an altered copy of the model: the exporter folds it."""
    return export(altered(network, change), network.inputs, exporter)


def folded(network: Network, change: Change) -> onnx.ModelProto:
    """The healthy file of the dynamo exporter, with what PyTorch itself folds of an altered copy."""
    model, file = altered(network, change), network.healthy(Exporter.DYNAMO)
    if isinstance(model.stem, nn.Linear):
        fused = fusion.fuse_linear_bn_eval(model.stem, model.norm)
    else:
        fused = fusion.fuse_conv_bn_eval(model.stem, model.norm, transpose=isinstance(model.stem, nn.ConvTranspose2d))
    weight, bias = (parameter.detach().numpy() for parameter in (fused.weight, fused.bias))
    node = file.graph.node[0]
    assert node.op_type in ("Conv", "ConvTranspose", "Gemm")
    before = constant_of(file, node.input[1])
    right = weight if before.shape == weight.shape else weight.T
    return with_constant(with_constant(file, node.input[1], right), node.input[2], bias)


def altered(network: Network, change: Change) -> nn.Sequential:
    model = copy.deepcopy(network.model)
    with torch.no_grad():
        change(model, network.inputs[0])
    return model


def large_epsilon(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.eps = 0.1


def without_statistics(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.running_mean.zero_()
    model.norm.running_var.fill_(1.0)


def without_affine(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.weight.fill_(1.0)
    model.norm.bias.zero_()


def without_weight(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.weight.fill_(1.0)


def without_bias(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.bias.zero_()


def without_mean(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.running_mean.zero_()


def batch_statistics(model: nn.Sequential, x: torch.Tensor) -> None:
    before = model.stem(x)
    dims = [d for d in range(before.ndim) if d != 1]
    model.norm.running_mean.copy_(before.mean(dims))
    model.norm.running_var.copy_(before.var(dims, unbiased=False))


def one_more_batch(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.train()
    model.norm(model.stem(x))
    model.norm.eval()


def without_layer_bias(model: nn.Sequential, x: torch.Tensor) -> None:
    model.stem.bias.zero_()


def other_statistics(model: nn.Sequential, x: torch.Tensor) -> None:
    model.norm.running_var.mul_(torch.linspace(0.5, 2.0, 8))
    model.norm.running_mean.add_(torch.linspace(-0.1, 0.2, 8))


@dataclass(frozen=True)
class Way:
    """A way to fold wrongly, and what is said of it."""

    change: Change
    cause: str
    says: str
    layer: str = "norm"


WAYS = {
    "other-epsilon": Way(large_epsilon, "bn-folding", "folded with epsilon 0.1; the model's is 0.001."),
    "statistics-missing": Way(without_statistics, "bn-folding", "without its running statistics (mean 0, variance 1)"),
    "affine-ignored": Way(without_affine, "bn-folding", "folded without its weight and bias."),
    "weight-ignored": Way(without_weight, "bn-folding", "folded without its weight."),
    "bias-ignored": Way(without_bias, "bn-folding", "folded without its bias."),
    "mean-ignored": Way(without_mean, "bn-folding", "folded without its running mean."),
    "batch-statistics": Way(batch_statistics, "training-mode", "folded with the statistics of this batch"),
    "moved-once": Way(one_more_batch, "bn-folding", "statistics that one more batch has moved (momentum 0.1)"),
    "other-statistics": Way(other_statistics, "bn-folding", "statistics or an affine that are not the model's"),
    # The numbers of the fold cannot tell a lost bias from another running mean.
    "layer-bias-lost": Way(without_layer_bias, "weights", "The bias of the layer before it was lost.", "stem"),
}


@functools.cache
def said(network: Network, name: str, exporter: Exporter | None) -> Diagnosis:
    """The first diagnosis of a fold by an exporter, or by PyTorch."""
    change = WAYS[name].change
    proto = folded(network, change) if exporter is None else exported(network, change, exporter)
    report = network.traced(proto)
    assert report.first_divergence is not None
    assert report.first_divergence.layer == WAYS[name].layer
    return report.diagnoses[0]


def agrees(found: Diagnosis, way: Way) -> bool:
    return (found.cause, found.verified) == (way.cause, True) and way.says in found.summary


@pytest.mark.parametrize("name", WAYS)
def test_what_the_torchscript_exporter_folded_is_worked_out(name: str) -> None:
    found = said(CONV, name, Exporter.TORCHSCRIPT)
    assert agrees(found, WAYS[name]), found
    assert found.evidence["error_after"] < 1e-5


@pytest.mark.parametrize("network", [CONV, LINEAR, TRANSPOSED], ids=lambda network: network.name)
@pytest.mark.parametrize("name", WAYS)
def test_what_was_folded_into_a_file_of_the_dynamo_exporter_is_worked_out(name: str, network: Network) -> None:
    found = said(network, name, None)
    assert agrees(found, WAYS[name]), found


def test_what_the_dynamo_exporter_folded_is_worked_out() -> None:
    found = said(CONV, "statistics-missing", Exporter.DYNAMO)
    assert agrees(found, WAYS["statistics-missing"]), found


def test_the_epsilon_that_was_folded_is_in_the_evidence() -> None:
    evidence = said(CONV, "other-epsilon", Exporter.TORCHSCRIPT).evidence
    assert evidence["epsilon_wanted"] == 1e-3
    assert evidence["epsilon_got"] == pytest.approx(0.1, rel=1e-4)
    assert evidence["channels"] == "8 of 8"


def test_only_the_bias_is_off_where_only_the_mean_was_ignored() -> None:
    evidence = said(CONV, "mean-ignored", Exporter.TORCHSCRIPT).evidence
    assert evidence["factor_max_abs"] < 1e-6
    assert evidence["bias_max_abs"] > 1e-3


@pytest.mark.parametrize("network", [CONV, LINEAR, TRANSPOSED], ids=lambda network: network.name)
def test_a_weight_that_was_scaled_in_one_channel_after_the_fold_accuses_the_layer(network: Network) -> None:
    file = network.healthy(Exporter.DYNAMO)
    node = file.graph.node[0]
    weight = constant_of(file, node.input[1]).copy()
    axis = weight.shape.index(8)
    np.moveaxis(weight, axis, 0)[3] *= 1.5
    report = network.traced(with_constant(file, node.input[1], weight))
    found = report.diagnoses[0]
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "stem"
    assert (found.cause, found.verified) == ("weights", True)
    assert found.summary == "The weight before it is scaled in channel 3 of 8."
    assert found.evidence["channels"] == [3]
    assert found.evidence["factor"] == pytest.approx([1.5], rel=1e-4)


def test_a_weight_that_differs_beyond_a_factor_is_compared_with_the_fold_undone() -> None:
    file = CONV.healthy()
    name = file.graph.node[0].input[1]
    weight = constant_of(file, name).copy()
    weight[5, 1] += 0.2
    found = CONV.traced(with_constant(file, name, weight)).diagnoses[0]
    assert (found.cause, found.layer, found.verified) == ("weights", "stem", True)
    assert found.summary == "stem.weight differs in channel 5 of 8."


def test_how_far_a_weight_is_off_is_told_with_the_right_fold_undone() -> None:
    """A kernel turned by half is nearly at right angles to the right one: no factor of its own says how far it is."""

    def turned(model: nn.Sequential, x: torch.Tensor) -> None:
        del x
        model.stem.weight.copy_(model.stem.weight.flip(2, 3))

    model = CONV.model
    weight = model.stem.weight.detach()
    wanted = float((weight.flip(2, 3) - weight).norm() / weight.norm())
    report = layerdiff.trace(model, exported(CONV, turned, Exporter.TORCHSCRIPT), CONV.inputs, progress=False)
    assert report.diagnoses[0].cause == "weights"
    assert report.diagnoses[0].evidence["rel_l2"] == pytest.approx(wanted, rel=1e-3)


def test_a_batchnorm_that_was_left_out_is_missing() -> None:
    def bypass(model: nn.Sequential, x: torch.Tensor) -> None:
        model.norm = nn.Identity()

    report = CONV.traced(exported(CONV, bypass, Exporter.TORCHSCRIPT))
    found = report.diagnoses[0]
    assert (found.cause, found.layer, found.verified) == ("dropped-op", "norm", True)


def test_a_batchnorm_that_trains_in_the_file_was_exported_in_train_mode() -> None:
    file = io.BytesIO()
    model = copy.deepcopy(CONV.model)
    with quiet():
        options = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
        torch.onnx.export(model, CONV.inputs, file, opset_version=17, dynamo=False, **options)
    found = CONV.traced(onnx.load_from_string(file.getvalue())).diagnoses[0]
    assert (found.cause, found.layer, found.verified) == ("training-mode", "norm", True)
    assert found.evidence["training_mode"] == 1
    assert "model.eval()" in found.remedy


def test_a_batchnorm_that_stands_alone_has_another_epsilon() -> None:
    file = attributes("BatchNormalization", epsilon=0.1)(LINEAR.healthy())
    found = LINEAR.traced(file).diagnoses[0]
    assert (found.cause, found.layer, found.verified) == ("epsilon", "norm", True)
    assert found.evidence["got"] == pytest.approx(0.1)


def test_all_parameters_that_are_wrong_in_a_batchnorm_are_named_together() -> None:
    found = LINEAR.traced(exported(LINEAR, without_statistics, Exporter.TORCHSCRIPT)).diagnoses[0]
    assert (found.cause, found.verified) == ("weights", True)
    assert found.summary.startswith("norm.running_mean is all zeros in the file. norm.running_var is not the model's")
    assert [other["parameter"] for other in found.evidence["together_with"]] == ["norm.running_var"]


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("network", [CONV, LINEAR, TRANSPOSED], ids=lambda network: network.name)
def test_a_right_fold_gives_rise_to_no_diagnosis(network: Network, exporter: Exporter) -> None:
    check_quiet(network, exporter)


def test_pytorchs_own_fold_is_a_right_one() -> None:
    assert CONV.traced(folded(CONV, lambda model, x: None)).agrees


FRESH = Network("batchnorm-fresh", _convolutional, ((4, 3, 7, 7),))


def _as_made(model: nn.Sequential) -> None:
    """The norm as it is before any training: it adds nothing, and subtracts nothing."""
    with torch.no_grad():
        model.norm.running_mean.zero_()
        model.norm.bias.zero_()


@pytest.mark.parametrize("layer", ["norm", "stem"])
def test_what_folds_alike_is_told_of_both(layer: str) -> None:
    def change(model: nn.Sequential, x: torch.Tensor) -> None:
        with torch.no_grad():
            model.get_submodule(layer).weight.mul_(1.5)
            if layer == "stem":
                model.stem.bias.mul_(1.5)

    model, inputs = copy.deepcopy(FRESH.model), FRESH.inputs
    _as_made(model)
    changed = copy.deepcopy(model)
    change(changed, inputs[0])
    report = layerdiff.trace(model, export(changed, inputs, Exporter.TORCHSCRIPT), inputs, progress=False)
    found, first = report.diagnoses[0], report.first_divergence
    assert found.summary == "It, or the layer before it, is multiplied by 1.5: with these parameters both fold alike."
    assert {first.layer, *first.also_possible} == {"norm", "stem"}


def test_a_weight_that_was_scaled_alone_is_not_put_down_to_a_fresh_norm() -> None:
    model, inputs = copy.deepcopy(FRESH.model), FRESH.inputs
    _as_made(model)
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.stem.weight.mul_(1.5)
    report = layerdiff.trace(model, export(changed, inputs, Exporter.TORCHSCRIPT), inputs, progress=False)
    assert (report.diagnoses[0].cause, report.diagnoses[0].layer) == ("weights", "stem")
    assert report.diagnoses[0].summary == "The weight before it is multiplied by 1.5."


NORMS = {
    "weight_norm": nn.utils.weight_norm,
    "weight_norm, parametrized": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("change", "layer", "says"),
    [
        (other_statistics, "norm", "statistics or an affine that are not the model's"),
        (large_epsilon, "norm", "folded with epsilon 0.1"),
        (lambda model, _: model.stem.weight[2].mul_(1.5), "stem", "The weight before it is scaled in channel 2 of 8."),
        (lambda model, _: model.stem.weight[2, 1].add_(0.2), "stem", "differs in channel 2 of 8"),
    ],
    ids=["statistics", "epsilon", "scaled", "weight"],
)
def test_a_fold_is_judged_by_the_weight_that_a_normed_layer_computes_with(
    norm: str, change: Change, layer: str, says: str
) -> None:
    file = copy.deepcopy(CONV.model)
    model = copy.deepcopy(CONV.model)
    NORMS[norm](model.stem)
    model.eval()(*CONV.inputs)  # what spectral norm keeps of a run
    with torch.no_grad():
        file.stem.weight.copy_(model.stem.weight)
        change(file, CONV.inputs[0])
    report = layerdiff.trace(model, export(file, CONV.inputs, Exporter.TORCHSCRIPT), CONV.inputs, progress=False)
    assert report.first_divergence.layer.split(".")[0] == layer  # a parametrization is inside of its layer
    assert report.diagnoses[0].verified
    assert says in report.diagnoses[0].summary
