"""What is reported of an origin: the layer, the nodes, the error, and one sentence."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from layerdiff.attribute import blame
from layerdiff.heal import heal_alone
from layerdiff.measure import measure
from layerdiff.model import Diagnosis, Diffuse, Divergence, Kind, RoundedLayer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.attribute import Blame
    from layerdiff.localise import Origin
    from layerdiff.model import Healed, Metrics, Noise, Reference, Tolerance
    from layerdiff.outputs import OutputPairs
    from layerdiff.precision import Rounded

HEALED_ALONE = 12


@dataclass(frozen=True, slots=True)
class Finding:
    """Who is blamed for an origin, and what is reported of it."""

    blame: Blame
    divergence: Divergence


def finding(
    alignment: Alignment,
    origin: Origin,
    floor: Mapping[int, Noise],
    tolerance: Tolerance | None,
    healed: Healed | None,
) -> Finding:
    """The accused call and the divergence to report for an origin."""
    graph, reference = alignment.candidate.graph, alignment.reference
    found = blame(alignment, origin)
    call = reference.calls[found.call]
    nodes = [graph.nodes[index] for index in origin.nodes]
    kind = _kind(origin)
    divergence = Divergence(
        layer=call.layer,
        call=call.call,
        type=call.type,
        op=found.op,
        onnx_nodes=tuple(node.name for node in nodes),
        onnx_ops=tuple(node.op for node in nodes),
        tensor=origin.slot.tensor,
        metrics=_metrics(alignment, origin, floor, tolerance),
        noise=floor.get(origin.value),
        kind=kind,
        summary=_summary(alignment, origin, kind),
        healed=healed,
        also_possible=layers_of(reference, found),
    )
    return Finding(found, divergence)


def layers_of(reference: Reference, found: Blame) -> tuple[str, ...]:
    """The layers that may be to blame as well, by name."""
    accused = reference.calls[found.call].layer
    names = dict.fromkeys(reference.calls[call].layer for call in found.also)
    return tuple(name for name in names if name != accused)


def diffuse(alignment: Alignment, rounded: Sequence[Rounded], outputs: OutputPairs) -> Diffuse | None:
    """The layers that round, those that introduce most first; None when there are none.

    The first few are healed one at a time, to see which of them matters for the final outputs.
    """
    if not rounded:
        return None
    reference = alignment.reference
    worst: dict[int, Rounded] = {}
    for found in sorted(rounded, key=lambda r: -r.rel_l2):
        site = reference.producer(alignment.root(found.value))
        if site is not None:
            worst.setdefault(site.owner, found)
    final = set(alignment.outputs.values())
    layers: list[RoundedLayer] = []
    for owner, found in worst.items():
        call = reference.calls[owner]
        tried = len(layers) < HEALED_ALONE and found.tensor not in final
        healed = heal_alone(alignment, found.tensor, found.value, outputs) if tried else None
        layers.append(RoundedLayer(call.layer, call.call, call.type, found.format, found.rel_l2, healed))
    formats = Counter(layer.format for layer in layers)
    return Diffuse(formats.most_common(1)[0][0], tuple(layers))


def layout_diagnoses(alignment: Alignment, layer: str) -> tuple[Diagnosis, ...]:
    """One cause for each output that is right but for the order of its axes."""
    expected = {name: value for value, name in alignment.outputs.items()}
    found = []
    for name, axes in alignment.turned().items():
        actual, wanted = alignment.candidate.tapped[name].shape, alignment.reference.values[expected[name]].shape
        found.append(
            Diagnosis(
                cause="layout",
                layer=layer,
                summary=f"The output {name} is the model's with its axes permuted: after {axes} it agrees.",
                evidence={"output": name, "axes": list(axes), "expected": list(wanted), "actual": list(actual)},
                remedy=f"output = output.transpose{axes}, or leave out the Transpose that makes {name}",
                verified=True,
            )
        )
    return tuple(found)


def _kind(origin: Origin) -> Kind:
    if origin.inserted:
        return Kind.INSERTED
    if origin.rewired:
        return Kind.REWIRED
    return Kind.COMPUTED if origin.nodes else Kind.DROPPED


def _summary(alignment: Alignment, origin: Origin, kind: Kind) -> str:
    graph = alignment.candidate.graph
    ops = [graph.nodes[index].op for index in origin.nodes]
    shown = ", ".join(ops[:4]) + (" …" if len(ops) > 4 else "")
    if kind is Kind.INSERTED:
        return f"nodes that the model does not have were inserted behind it: {shown}"
    if origin.slot.tensor in graph.constant:
        return f"the file gives out {origin.slot.tensor}, a constant, where the model has something else"
    if not origin.provable:
        return "from here on the graph computes another shape than the model"
    if kind is Kind.REWIRED:
        readers = sorted({graph.nodes[node].op for node, _ in origin.slot.edges or ()}) or ops[:1]
        held = sorted(alignment.tensors_of(origin.value))
        wanted = f"; what the model reads there is in {held[0]}" if held else ""
        return f"{', '.join(readers)} reads {origin.slot.tensor}{wanted}"
    if kind is Kind.DROPPED:
        return "it has no counterpart in the graph: what goes in comes out unchanged"
    return f"good values go into {shown}, a wrong one comes out"


def _metrics(
    alignment: Alignment, origin: Origin, floor: Mapping[int, Noise], tolerance: Tolerance | None
) -> Metrics | None:
    """The error that the origin introduces: its value from expected inputs, against the expected one."""
    known = alignment.reference.values[origin.value]
    name = origin.slot.tensor
    actual = alignment.isolated.get(name, alignment.candidate.tapped.get(name))
    if known.array is None or actual is None or actual.size != known.array.size:
        return None
    shaped = np.ascontiguousarray(actual).reshape(known.array.shape)
    limit = tolerance or alignment.limits.get(origin.value)
    return measure(known.array, shaped, dtype=known.dtype, noise=floor.get(origin.value), tolerance=limit)
