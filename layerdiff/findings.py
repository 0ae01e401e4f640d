"""What is reported of an origin: the layer, the nodes, the error, and one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.attribute import blame
from layerdiff.measure import measure
from layerdiff.model import Divergence, Kind

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Healed, Metrics, Noise, Tolerance


def finding(
    alignment: Alignment,
    origin: Origin,
    floor: Mapping[int, Noise],
    tolerance: Tolerance | None,
    healed: Healed | None,
) -> tuple[int, Divergence]:
    """The accused call and the divergence to report for an origin."""
    graph, reference = alignment.candidate.graph, alignment.reference
    call_index, op = blame(alignment, origin)
    call = reference.calls[call_index]
    nodes = [graph.nodes[index] for index in origin.nodes]
    kind = _kind(origin)
    divergence = Divergence(
        layer=call.layer,
        call=call.call,
        type=call.type,
        op=op,
        onnx_nodes=tuple(node.name for node in nodes),
        onnx_ops=tuple(node.op for node in nodes),
        tensor=origin.slot.tensor,
        metrics=_metrics(alignment, origin, floor, tolerance),
        noise=floor.get(origin.value),
        kind=kind,
        summary=_summary(kind, [node.op for node in nodes]),
        healed=healed,
    )
    return call_index, divergence


def _kind(origin: Origin) -> Kind:
    if origin.inserted:
        return Kind.INSERTED
    return Kind.COMPUTED if origin.nodes else Kind.DROPPED


def _summary(kind: Kind, ops: list[str]) -> str:
    shown = ", ".join(ops[:4]) + (" …" if len(ops) > 4 else "")
    if kind is Kind.INSERTED:
        return f"nodes that the model does not have were inserted behind it: {shown}"
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
    return measure(known.array, shaped, dtype=known.dtype, noise=floor.get(origin.value), tolerance=tolerance)
