"""BatchNorm folded into the layer before it: the fold is recomputed, and what was folded instead is worked out.

A fold turns ``y = gamma (W x + b - mean) / sqrt(var + eps) + beta`` into one layer of weight ``f W`` and bias
``f (b - mean) + beta``, where ``f = gamma / sqrt(var + eps)`` (Ioffe and Szegedy, 2015, for inference). The weight in
the file gives the factor ``f`` that was used, per channel; its bias tells what was subtracted and added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import by_output_channel, carried_as, channel_factors, constants_read
from layerdiff.diagnose.difference import What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.semantics import changes_for
from layerdiff.operators import ONNX, base_name, is_batch_norm
from layerdiff.patch import SetConstant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Node
    from layerdiff.model import Site
    from layerdiff.patch import Change

    Array = np.ndarray[Any, Any]

HEAVY = frozenset({"convolution", "addmm", "mm"})
# A fold rounds the weight once and stores it in single precision.
_EQUAL = 2e-5
# Of a weight that is kept in half precision.
_HALF = 2.0**-10
# What eight bits, or four, round a channel's weights by at most.
_ROUNDED = 0.1
UNSETTLED = "Its BatchNorm was folded with running statistics or an affine that are not the model's."


@dataclass(frozen=True)
class _Norm:
    """The parameters of a BatchNorm and of the layer before it, in double precision."""

    weight: Array
    bias: Array
    gamma: Array
    beta: Array
    mean: Array
    var: Array
    epsilon: float

    @property
    def factor(self) -> Array:
        return self.gamma / np.sqrt(self.var + self.epsilon)

    def shift(self, factor: Array, mean: Array | float, beta: Array | float) -> Array:
        """The folded bias for a factor, a mean and an offset."""
        return factor * (self.bias - mean) + beta


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One, where a BatchNorm trains in the file, or was folded and the fold is not the model's."""
    yield from _training(stretch)
    heavy = next((s for s in stretch.sites if base_name(s.op) in HEAVY), None)
    norm = next((s for s in stretch.sites if "batch_norm" in base_name(s.op)), None)
    if heavy is None or norm is None or any(is_batch_norm(node.op) for node in stretch.nodes):
        return
    found = _norm(stretch, heavy, norm)
    if found is None:
        return
    for node, weight, bias, changes in _folded_nodes(stretch, found):
        factor, residual = channel_factors(found.weight, weight)
        if residual > (_HALF if stretch.format else _EQUAL):
            if _in_integers(stretch, node) and residual <= _ROUNDED:
                continue
            yield _wrong_weight(stretch, heavy, (found.weight, weight / _columns(found.factor, weight)), changes)
            continue
        batch = _batch_statistics(stretch, heavy)
        cause, text, evidence = _what_was_folded(found, factor, bias, batch)
        evidence = {"node": node.name, **_errors(found, factor, bias), **evidence}
        remedy = "export again from the model that is meant to ship"
        unsettled = text == UNSETTLED or "either" in evidence
        site = None if unsettled else (heavy if cause == "weights" else norm).index
        yield Hypothesis(cause, text, evidence, changes, remedy, site)


def _in_integers(stretch: Stretch, node: Node) -> bool:
    """Whether a node reads what is dequantised: such weights are judged by their scales."""
    return any(stretch.alignment.candidate.graph.dequantiser(name) is not None for name in node.inputs)


def _training(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for a BatchNormalization that uses the statistics of its batch, with all else that the export moved in it."""
    differences = () if stretch.comparison is None else stretch.comparison.differences
    for difference in differences:
        if difference.name != "training_mode" or difference.node is None:
            continue
        own = [d for d in differences if d.node is difference.node]
        patch = tuple(change for d in own for change in changes_for(stretch, d))
        text = "BatchNormalization uses the statistics of the batch: the model was exported in train mode."
        remedy = "model.eval()  # before torch.onnx.export"
        yield Hypothesis("training-mode", text, {"node": difference.node.name, "training_mode": 1}, patch, remedy)


def _norm(stretch: Stretch, heavy: Site, norm: Site) -> _Norm | None:
    reference = stretch.alignment.reference
    own = constants_read(reference, heavy)
    weight = next((by_output_channel(reference, heavy, a) for a in own if a.ndim >= 2), None)
    bias = next((heavy.arguments.get("beta", 1) * a for a in own if a.ndim == 1), None)
    stored = _stored(stretch, norm)
    if weight is None or "running_var" not in stored:
        return None
    var = stored["running_var"].astype(np.float64)
    gamma, beta = stored.get("weight", np.ones_like(var)), stored.get("bias", np.zeros_like(var))
    epsilon = norm.arguments.get("eps", norm.arguments.get("epsilon", 1e-5))
    zeros = np.zeros_like(var)
    known = (weight, zeros if bias is None else bias, gamma, beta, stored["running_mean"], var)
    w, b, g, o, m, v = (np.asarray(array, np.float64) for array in known)
    return _Norm(weight=w, bias=b, gamma=g, beta=o, mean=m, var=v, epsilon=float(epsilon))


def _stored(stretch: Stretch, norm: Site) -> dict[str, Array]:
    """Its parameters by torch's names: by their own, or by the slots of an ONNX node."""
    if norm.op != f"{ONNX}BatchNormalization":
        return {name.rpartition(".")[2]: array for name, array in stretch.parameters(norm).items()}
    reference = stretch.alignment.reference
    values = [reference.values[index] for index in norm.inputs[1:]]
    arrays = [v.array if v.parameter is None else reference.parameters[v.parameter] for v in values]
    names = ("weight", "bias", "running_mean", "running_var")
    return {name: array for name, array in zip(names, arrays, strict=False) if array is not None}


def _folded_nodes(stretch: Stretch, norm: _Norm) -> Iterator[tuple[Node, Array, Array, tuple[Change, ...]]]:
    """The accused nodes whose weight has the layer's size: with weight, bias, and the changes to right ones."""
    comparison = stretch.comparison
    if comparison is None:
        return
    channels = norm.gamma.size
    for node in stretch.nodes:
        constants = [array for own, _, array in stretch.constants if own is node]
        weights = carried_as(norm.weight, constants)
        weight = min(weights, key=lambda a: channel_factors(norm.weight, a)[1]) if weights else None
        bias = next((a for a in constants if a.size == channels and a.ndim <= 1), np.zeros(channels))
        gone = any(d.op == "BatchNormalization" for d in comparison.differences)
        if weight is not None and gone and norm.weight.shape[0] == channels:
            yield node, weight.astype(np.float64), bias.astype(np.float64), _refolded(stretch, node, norm)
            continue
        found = [
            d
            for d in comparison.differences
            if d.node is not None and d.node.index == node.index and d.what is What.CONSTANT
        ]
        changes = tuple(change for d in found for change in changes_for(stretch, d))
        if weight is not None and changes:
            yield node, weight.astype(np.float64), bias.astype(np.float64), changes


def _refolded(stretch: Stretch, node: Node, norm: _Norm) -> tuple[Change, ...]:
    """The fold made anew, where what should be there (another file's nodes) still has the BatchNorm."""
    factor, changes = norm.factor, []
    weight = norm.weight * factor.reshape(-1, *[1] * (norm.weight.ndim - 1))
    shift = norm.shift(factor, norm.mean, norm.beta)
    for own, slot, array in stretch.constants:
        if own is not node:
            continue
        views = [weight, weight.T] if weight.ndim == 2 else [weight]
        right = [v for v in views if v.shape == array.shape and array.ndim >= 2]
        right = sorted(right, key=lambda view: float(np.linalg.norm(view - array)))  # the layout that the file has
        right += [shift.reshape(array.shape)] if array.size == shift.size and array.ndim <= 1 else []
        changes += [SetConstant(node.outputs[0], slot, v.astype(array.dtype)) for v in right[:1]]
    return tuple(changes)


def _columns(factor: Array, weight: Array) -> Array:
    safe = np.where(np.abs(factor) > 1e-30, factor, 1.0)
    return safe.reshape(-1, *[1] * (weight.ndim - 1))


def _wrong_weight(
    stretch: Stretch, heavy: Site, weights: tuple[Array, Array], changes: tuple[Change, ...]
) -> Hypothesis:
    from layerdiff.diagnose.weights import in_what_way

    name, stored = next((n, a) for n, a in stretch.parameters(heavy).items() if a.ndim >= 2)
    right, unfolded = (weight.astype(stored.dtype) for weight in weights)
    text, evidence = in_what_way(stretch, name, right, unfolded)
    remedy = "export again from the model that is meant to ship"
    return Hypothesis("weights", text, {"parameter": name, **evidence}, changes, remedy, heavy.index)


def _batch_statistics(stretch: Stretch, heavy: Site) -> tuple[Array, Array, int] | None:
    """Mean, biased variance and count per channel of what goes into the norm, for this input."""
    array = stretch.alignment.reference.values[heavy.outputs[0]].array
    if array is None or array.ndim < 2:
        return None
    flat = np.moveaxis(array.astype(np.float64), 1, 0).reshape(array.shape[1], -1)
    return flat.mean(axis=1), flat.var(axis=1), flat.shape[1]


def _what_was_folded(
    norm: _Norm, factor: Array, bias: Array, batch: tuple[Array, Array, int] | None
) -> tuple[str, str, dict[str, Any]]:
    """The one of several ways to fold wrongly that gives the file's numbers."""
    root = np.sqrt(norm.var + norm.epsilon)
    plain = norm.gamma / np.sqrt(1 + norm.epsilon)
    ways: list[tuple[str, str, Array, Array]] = [
        ("weights", "The bias of the layer before it was lost.", norm.factor, norm.factor * -norm.mean + norm.beta),
        ("dropped-op", "BatchNorm is missing: the layer before it is as it was.", np.ones_like(root), norm.bias),
        (
            "bn-folding",
            "Its BatchNorm was folded without its running statistics (mean 0, variance 1).",
            plain,
            norm.shift(plain, 0, norm.beta),
        ),
        (
            "bn-folding",
            "Its BatchNorm was folded without its weight and bias.",
            1 / root,
            norm.shift(1 / root, norm.mean, 0),
        ),
        (
            "bn-folding",
            "Its BatchNorm was folded without its weight.",
            1 / root,
            norm.shift(1 / root, norm.mean, norm.beta),
        ),
        (
            "bn-folding",
            "Its BatchNorm was folded without its bias.",
            norm.factor,
            norm.shift(norm.factor, norm.mean, 0),
        ),
        (
            "bn-folding",
            "Its BatchNorm was folded without its running mean.",
            norm.factor,
            norm.shift(norm.factor, 0, norm.beta),
        ),
    ]
    if batch is not None:
        ways += _ways_with_batch(norm, *batch)
    wrong = np.flatnonzero(np.abs(factor - norm.factor) > _EQUAL * np.abs(norm.factor).max())
    if _near(bias, norm.shift(norm.factor, norm.mean, norm.beta)) and np.any((norm.bias - norm.mean)[wrong]):
        # A fold makes the bias with the same factors: they were right, and the weight was scaled besides.
        scale = factor[wrong] / norm.factor[wrong]
        text = f"The weight before it is scaled in channel {', '.join(map(str, wrong[:8]))} of {factor.size}."
        if wrong.size == factor.size and np.ptp(scale) <= _EQUAL * np.abs(scale).max():
            text = f"The weight before it is multiplied by {float(np.median(scale)):.6g}."
        return "weights", text, {"channels": wrong.tolist(), "factor": scale[:8].tolist()}
    fitting = [
        (_distance(factor, wanted_factor) + _distance(bias, wanted_bias), cause, text)
        for cause, text, wanted_factor, wanted_bias in ways
        if _near(factor, wanted_factor) and _near(bias, wanted_bias)
    ]
    if fitting:  # parameters that are still as they were made can make two ways nearly alike
        _, cause, text = min(fitting, key=lambda way: round(way[0], 7))
        return cause, text, {}
    gain = float(np.median(factor / np.where(norm.factor == 0, 1, norm.factor)))
    scaled = norm.factor * (gain * norm.bias - norm.mean) + norm.beta
    if np.any(norm.bias) and _near(factor, gain * norm.factor) and _near(bias, scaled):
        if _near(bias, norm.shift(gain * norm.factor, norm.mean, norm.beta)):
            text = f"It, or the layer before it, is multiplied by {gain:.6g}: with these parameters both fold alike."
            return "bn-folding", text, {"factor": gain, "either": True}
        text = f"Weight and bias of the layer before it are multiplied by {gain:.6g}."
        return "weights", text, {"factor": gain}
    epsilon = _other_epsilon(norm, factor, bias)
    if epsilon is not None:
        text = f"Its BatchNorm was folded with epsilon {epsilon:.3g}; the model's is {norm.epsilon:.3g}."
        return "bn-folding", text, {"epsilon_wanted": norm.epsilon, "epsilon_got": epsilon}
    return "bn-folding", UNSETTLED, {}


def _ways_with_batch(norm: _Norm, mean: Array, var: Array, count: int) -> list[tuple[str, str, Array, Array]]:
    ways = []
    unbiased = var * count / max(count - 1, 1)
    for momentum in (1.0, 0.1, 0.01, 0.03):
        m = (1 - momentum) * norm.mean + momentum * mean
        v = (1 - momentum) * norm.var + momentum * (unbiased if momentum < 1 else var)
        factor = norm.gamma / np.sqrt(v + norm.epsilon)
        text = (
            "Its BatchNorm was folded with the statistics of this batch: it was exported in train mode."
            if momentum == 1.0
            else f"Its BatchNorm was folded with statistics that one more batch has moved (momentum {momentum:g})."
        )
        cause = "training-mode" if momentum == 1.0 else "bn-folding"
        ways.append((cause, text, factor, norm.shift(factor, m, norm.beta)))
    return ways


def _other_epsilon(norm: _Norm, factor: Array, bias: Array) -> float | None:
    """The epsilon that gives the file's factors, if one does for every channel."""
    usable = (np.abs(factor) > 1e-12) & (np.abs(norm.gamma) > 1e-12)
    if not usable.any():
        return None
    implied = (norm.gamma[usable] / factor[usable]) ** 2 - norm.var[usable]
    epsilon = float(np.median(implied))
    wanted = norm.gamma / np.sqrt(np.maximum(norm.var + epsilon, 1e-30))
    if epsilon < -1e-6 or not _near(factor, wanted) or _near(factor, norm.factor):
        return None
    return epsilon if _near(bias, norm.shift(wanted, norm.mean, norm.beta)) else None


def _near(got: Array, wanted: Array) -> bool:
    return got.shape == wanted.shape and _distance(got, wanted) <= _EQUAL


def _distance(got: Array, wanted: Array) -> float:
    """The largest difference, relative to the largest number that is wanted."""
    scale = float(np.abs(wanted).max(initial=0.0))
    return float(np.abs(got - wanted).max(initial=0.0)) / max(scale, 1e-12)


def _errors(norm: _Norm, factor: Array, bias: Array) -> dict[str, Any]:
    """How far the file's factor and bias are from the right fold, and in which channels."""
    wanted = norm.shift(norm.factor, norm.mean, norm.beta)
    wrong = np.abs(factor / np.where(norm.factor == 0, 1, norm.factor) - 1) > _EQUAL
    wrong |= np.abs(bias - wanted) > _EQUAL * max(float(np.abs(wanted).max()), 1e-12)
    return {
        "factor_max_abs": float(np.abs(factor - norm.factor).max()),
        "bias_max_abs": float(np.abs(bias - wanted).max()),
        "channels": f"{int(wrong.sum())} of {wrong.size}",
    }
