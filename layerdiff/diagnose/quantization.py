"""Eight-bit numbers that do not hold what they should: which tensor, which range would have, which weights are wrong.

Quantised nodes are never right to the noise floor of floats. So a quantiser is judged by what becomes of the error of
the layer when it alone is given the numbers that it should have: from the model's weights where it stores weights, from
the reference's own values where it quantises an activation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.difference import What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.quantisers import Activation, Scheme, activations, fitted, stored
from layerdiff.diagnose.semantics import changes_for
from layerdiff.diagnose.stored import FITS, apart, room, short, what_is_wrong
from layerdiff.diagnose.weights import in_what_way, parameter_behind, reader_of
from layerdiff.errors import BackendError, PatchError
from layerdiff.model import Kind
from layerdiff.operators import base_name
from layerdiff.patch import IDENTITY, RELU, SetAttribute, SetConstant, Splice, patched
from layerdiff.precision import CLIPS, clipped

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Graph, Node
    from layerdiff.patch import Patch

    Array = np.ndarray[Any, Any]

MOST = 16
"""Quantisers of one stretch that are tried, one run each."""

# A quantiser is at fault when the layer's error falls to a half without it, and near what all together leave.
_FALLS = 0.5
# A range that this input alone asks for counts as shown only where nearly all of the error goes with it.
_NEARLY_ALL = 0.1
_NEAR = 1.5
# Clipped values are few, and what they add to the error of all can be little.
_CLIPPED_FALLS = 0.85
# What a float that is another number altogether must take away.
_ANY = 0.95
_COARSE = 4.0


@dataclass(frozen=True)
class _Cure:
    """What is wrong with one quantiser and cures it; `general` says whether that is right for every input."""

    text: str
    evidence: dict[str, Any]
    patch: Patch
    general: bool
    remedy: str
    stored: bool = False  # weights: what is wrong with them is known without any input
    cause: str = "quantization"
    site: int | None = None  # the reference operator that it belongs to, where it is one
    bias: bool = False  # it is wrong whatever it is beside the rounding of weights


@dataclass(frozen=True)
class Found:
    """A hypothesis whose change was run, and the error that it leaves, in the units of the values."""

    hypothesis: Hypothesis
    gap: float


def found(stretch: Stretch) -> Found | None:
    """The quantisers that are at fault; None where there are none in the stretch, or they explain nothing."""
    part = stretch.part
    if part is None or _foreign(stretch):
        return None
    candidate = stretch.alignment.candidate.part(part.model, part.feeds)
    if not any(node.op == "DequantizeLinear" for node in candidate.graph.nodes):
        return None
    cures = [*_of_weights(stretch, candidate.graph, candidate.constants), *_of_floats(stretch)]
    cures += [*_of_activations(stretch, candidate, tuple(change for cure in cures for change in cure.patch))]
    before = _error(stretch, ())
    guilty = _guilty(stretch, cures[:MOST], before)
    return None if not guilty else _told(stretch, guilty, before)


def _foreign(stretch: Stretch) -> bool:
    """Whether the quantiser was put into a graph that has no other: then it should not be there at all."""
    own = {node.index for node in stretch.nodes}
    nodes = stretch.alignment.candidate.graph.nodes
    others = any("QuantizeLinear" in node.op for node in nodes if node.index not in own)
    return stretch.divergence.kind is Kind.INSERTED and not others


def _guilty(stretch: Stretch, cures: Sequence[_Cure], before: float) -> list[_Cure]:
    """As few as bring the error near what all of them leave; none where all together do not halve it."""
    every = tuple(change for cure in cures for change in cure.patch)
    if not cures or not before > 0:
        return []
    best = _error(stretch, every)
    alone = sorted(((_error(stretch, cure.patch), i) for i, cure in enumerate(cures)), key=lambda pair: pair)
    least = min(best, alone[0][0])
    falls = _CLIPPED_FALLS if any(cure.evidence.get("outside") for cure in cures) else _FALLS
    if any(cure.bias for cure in cures):
        falls = _ANY
    if not least <= falls * before:
        return []
    enough = max(_NEAR * least, 0.02 * before) if least <= _FALLS * before else least * (1 + 1e-3)
    chosen: list[_Cure] = []
    left = before
    for _, i in sorted(alone, key=lambda pair: not cures[pair[1]].stored):
        after = _error(stretch, [change for cure in (*chosen, cures[i]) for change in cure.patch])
        if after < 0.95 * left:
            chosen, left = [*chosen, cures[i]], after
        if left <= enough:
            return chosen
    return chosen if left <= falls * before else []


def _told(stretch: Stretch, guilty: Sequence[_Cure], before: float) -> Found:
    patch = tuple(change for cure in guilty for change in cure.patch)
    first, general = guilty[0], all(cure.general for cure in guilty)
    rest = f" {len(guilty) - 1} more in the same layer." if len(guilty) > 1 else ""
    evidence = {**first.evidence, "relative_error": before, "relative_error_after": _error(stretch, patch)}
    if len(guilty) > 1:
        evidence["together_with"] = [cure.evidence for cure in guilty[1:]]
    gap = stretch.gap(patch)
    evidence["error_after"] = gap
    if not general:
        evidence["no_repair"] = "its range was found on one input and is not right for every other: calibrate again"
    remedies = dict.fromkeys(cure.remedy for cure in guilty if cure.remedy)
    remedy = "\n".join(remedies)
    falls = _ANY if first.bias else _FALLS if general else _NEARLY_ALL
    decided = evidence["relative_error_after"] <= falls * before
    site = first.site if len({cure.site for cure in guilty}) == 1 else None
    told = Hypothesis(
        first.cause, f"{first.text}{rest}", evidence, patch if general else None, remedy, site, decided=decided
    )
    return Found(told, gap)


def _error(stretch: Stretch, patch: Sequence[Any]) -> float:
    """The relative L2 error of the tensor that came out wrong, by the nearest of the values that it may stand for."""
    part, actual = stretch.part, stretch.outcome(patch)
    if part is None or actual is None:
        return float("inf")
    values = stretch.alignment.reference.values
    errors = [float("inf")]
    for value in (part.value, *clipped(stretch.alignment, part.value)):
        array = values[value].array
        if array is not None and array.size == actual.size and array.dtype.kind == "f":
            e, a = (x.reshape(-1).astype(np.float64) for x in (array, actual))
            errors.append(float(np.linalg.norm(a - e)) / max(float(np.linalg.norm(e)), 1e-300))
    return float(np.nanmin(errors))


# Activations.


def _of_activations(stretch: Stretch, candidate: Candidate, mended: Patch) -> Iterator[_Cure]:
    known = list(activations(candidate.graph, candidate.constants))
    tensors = _without_integers(stretch, candidate, known, mended) if known else {}
    told: set[str] = set()
    for one in known:
        if not one.written.same(one.read):
            yield _two_schemes(stretch, one)
            continue
        values = _meant(stretch, one, tensors)
        if one.writer.outputs[0] in told or values is None or values.size == 0:
            continue
        told.add(one.writer.outputs[0])
        readers = [other.reader for other in known if other.writer is one.writer]
        cure = _misfit(one, values, readers)
        if cure is not None:
            yield cure


def _misfit(one: Activation, values: Array, readers: Sequence[Node]) -> _Cure | None:
    """A range that does not hold the values, or of which they need a small part only."""
    wanted = fitted(values, one.written)
    share, needed = _outside(values, one.written), _room(one.written, wanted)
    if share == 0 and 1 / _COARSE < needed < _COARSE:
        return None
    patch = tuple(change for node in (one.writer, *readers) for change in _set(node, wanted))
    low, high = one.written.range
    smallest, largest = float(values.min()), float(values.max())
    text = (
        f"{100 * share:.3g} % of the values of {one.tensor} ({smallest:.4g} to {largest:.4g}) lie outside "
        f"the range of its scale and zero point ({low:.4g} to {high:.4g}): it was calibrated on other data."
        if share
        else f"The step of {one.tensor} is {1 / needed:.3g} times what its values need "
        f"({smallest:.4g} to {largest:.4g} in a range of {low:.4g} to {high:.4g})."
    )
    evidence = _numbers(one.tensor, one.written, wanted) | {"values": [smallest, largest], "outside": share}
    return _Cure(text, evidence, patch, general=False, remedy=_calibrate(one.tensor, wanted))


def _without_integers(
    stretch: Stretch, candidate: Candidate, known: Sequence[Activation], mended: Patch
) -> dict[str, Array]:
    """Every tensor of the stretch when no activation passes through integers, and the weights are the model's.

    Where a quantiser took an activation function over, that is put in its place.
    """
    part = stretch.part
    assert part is not None
    kept = [
        Splice(one.reader.outputs[0], RELU if _clips(stretch, one) else IDENTITY, (("x", one.tensor),)) for one in known
    ]
    kept = [splice for splice in kept if splice.tensor != part.tensor]
    try:
        model = patched(part.model, (*mended, *kept))
        return stretch.alignment.candidate.shown(candidate.part(model, part.feeds).tapped)
    except (BackendError, PatchError):
        return {}


def _clips(stretch: Stretch, one: Activation) -> bool:
    """Whether the range begins at zero because an activation was left to it."""
    return one.written.range[0] >= 0 and any(base_name(site.op) in CLIPS for site in stretch.sites)


def _two_schemes(stretch: Stretch, one: Activation) -> _Cure:
    """A pair that does not agree: of its two schemes the one that leaves less of the error."""
    ways = [_set(one.reader, one.written), _set(one.writer, one.read)]
    errors = [_error(stretch, way) for way in ways]
    better = int(np.argmin(errors))
    right, wrong = ((one.written, one.read), (one.read, one.written))[better]
    node = (one.reader, one.writer)[better]
    text = (
        f"{one.tensor} is quantised with scale {short(one.written.scale)} and zero point {short(one.written.zero)}, "
        f"and dequantised with {short(one.read.scale)} and {short(one.read.zero)}."
    )
    evidence = _numbers(one.tensor, wrong, right) | {"node": node.name}
    return _Cure(text, evidence, ways[better], general=True, remedy="")


def _meant(stretch: Stretch, one: Activation, tensors: Mapping[str, Array]) -> Array | None:
    """The reference's values for what comes out of the pair, or goes in; else those of a run without integers."""
    found = stretch.alignment
    forced, values = found.forced(), found.reference.values
    array: Array | None = None
    for name in (one.reader.outputs[0], one.tensor):
        if array is None and name in forced:
            clip = clipped(found, forced[name])  # an activation that was left to the range
            array = values[clip[0] if clip else forced[name]].array
    if array is None and (array := tensors.get(one.tensor)) is not None and _clips(stretch, one):
        array = np.maximum(array, 0)
    if array is None or array.dtype.kind != "f":
        return None
    return array.astype(np.float64) if one.written.per_channel else array[np.isfinite(array)].astype(np.float64)


def _outside(values: Array, scheme: Scheme) -> float:
    """The share of values that are clipped by more than a step."""
    low, high = scheme.range
    step = float(scheme.scale.max())
    return float(np.mean((values < low - step) | (values > high + step)))


def _room(scheme: Scheme, wanted: Scheme) -> float:
    """What of the range the values need."""
    return float(np.median(wanted.scale.astype(np.float64)) / np.median(scheme.scale.astype(np.float64)))


# Weights.


def _of_weights(stretch: Stretch, graph: Graph, constants: Mapping[str, Array]) -> Iterator[_Cure]:
    wanted = dict(_wanted_weights(stretch))
    for one in stored(graph, constants):
        right = wanted.get(one.node.outputs[0])
        if right is None or right.shape != one.integers.shape:
            continue
        difference = apart(one.scheme.real(one.integers), right)
        scheme, what = what_is_wrong(one, right)
        if difference <= room(one.scheme, right):
            continue
        again = scheme.integers(right)
        patch = (SetConstant(one.node.outputs[0], 0, again), *_set(one.node, scheme))
        if scheme.axis != one.scheme.axis:
            patch = (*patch, SetAttribute(one.node.outputs[0], "axis", scheme.axis))
        smallest, largest = one.scheme.limits
        clip = float(np.mean((one.integers == smallest) | (one.integers == largest)))
        evidence = _numbers(one.node.inputs[0], one.scheme, scheme) | {"clipped": clip, "rel_l2": difference}
        kept = "biases" if one.is_bias else "weights"
        text = f"The {one.kind} {kept} {one.node.inputs[0]} {what}."
        name = parameter_behind(stretch, right)
        site = None if name is None else reader_of(stretch, name)
        yield _Cure(text, evidence, patch, general=True, remedy="", stored=True, site=site, bias=one.is_bias)


def _of_floats(stretch: Stretch) -> Iterator[_Cure]:
    """What is kept in floats beside integers, a bias mostly, and is not the model's."""
    graph = stretch.alignment.candidate.graph
    for difference in () if stretch.comparison is None else stretch.comparison.differences:
        right, got, place = difference.wanted, difference.got, difference.place
        floats = all(isinstance(a, np.ndarray) and a.dtype.kind == "f" for a in (right, got)) and place is not None
        if difference.what is not What.CONSTANT or not floats or right.size != got.size:
            continue
        assert place is not None
        read = graph.nodes[difference.node.index].inputs[place.slot] if difference.node else ""
        in_integers = graph.dequantiser(read) is not None
        name, patch = parameter_behind(stretch, right), changes_for(stretch, difference)
        if in_integers or name is None or not patch or apart(got.reshape(right.shape), right) <= FITS:
            continue
        text, evidence = in_what_way(stretch, name, right, got)
        again, site = "export again from the model that is meant to ship", reader_of(stretch, name)
        evidence = {"parameter": name, **evidence}
        told: dict[str, Any] = {"remedy": again, "cause": "weights", "site": site}
        yield _Cure(text, evidence, patch, general=True, stored=True, bias=True, **told)


def _wanted_weights(stretch: Stretch) -> Iterator[tuple[str, Array]]:
    """The model's numbers for what a DequantizeLinear makes of stored integers, by its output."""
    graph = stretch.alignment.candidate.graph
    for difference in () if stretch.comparison is None else stretch.comparison.differences:
        node, place, right = difference.node, difference.place, difference.wanted
        if difference.what is not What.CONSTANT or node is None or place is None or not isinstance(right, np.ndarray):
            continue
        name = graph.nodes[node.index].inputs[place.slot]
        right = right.T if place.transposed else right
        maker = graph.producer.get(name)
        if maker is not None and graph.nodes[maker].op == "Transpose":
            axes = graph.transposed_by(graph.nodes[maker])
            right = right if axes is None else right.transpose(np.argsort(axes))
            name = graph.nodes[maker].inputs[0]
        yield name, right


# Words and changes.


def _set(node: Node, scheme: Scheme) -> Patch:
    """Give a QuantizeLinear or DequantizeLinear another scale and zero point."""
    return (SetConstant(node.outputs[0], 1, scheme.scale), SetConstant(node.outputs[0], 2, scheme.zero))


def _numbers(tensor: str, got: Scheme, wanted: Scheme) -> dict[str, Any]:
    return {
        "tensor": tensor,
        "dtype": str(got.zero.dtype),
        "symmetric": got.symmetric,
        "per": "channel" if got.per_channel else "tensor",
        "scale": short(got.scale),
        "zero_point": short(got.zero),
        "range": list(got.range),
        "wanted_scale": short(wanted.scale),
        "wanted_zero_point": short(wanted.zero),
        "wanted_range": list(wanted.range),
    }


def _calibrate(tensor: str, wanted: Scheme) -> str:
    """Code that calibrates again, and what this input alone would ask for."""
    scale, zero = float(wanted.scale.reshape(-1)[0]), int(wanted.zero.reshape(-1)[0])
    return (
        'onnxruntime.quantization.quantize_static("float.onnx", "int8.onnx", reader)  # reader: real inputs, normalised'
        f" as the model gets them; this input alone asks for {tensor}: scale={scale:.6g}, zero_point={zero}"
    )
