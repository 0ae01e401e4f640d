"""An If that takes the other branch than the model: its condition says the opposite, or its branches are exchanged."""

from __future__ import annotations

from itertools import takewhile
from typing import TYPE_CHECKING

import onnx
from onnx import helper

from layerdiff.diagnose.prove import Explained
from layerdiff.errors import BackendError
from layerdiff.model import Diagnosis, Divergence, Healed, Kind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference
    from layerdiff.outputs import OutputPairs

MOST = 8
"""Ifs of which the other branch is tried; each costs a session and a run."""


def other_branch(
    model: onnx.ModelProto,
    opened: Callable[[onnx.ModelProto], Candidate],
    outputs: OutputPairs,
    accused: Sequence[Divergence],
) -> tuple[Divergence, Explained] | None:
    """The finding that one If, taking its other branch, makes all outputs agree; None where none does.

    It explains at once what else looks like wrong weights, other functions or missing layers inside of it.
    """
    for node, changed in _turned(model):
        try:
            shipped = opened(changed).shipped
        except BackendError:
            continue
        if outputs.all_agree(shipped):
            after = outputs.worst(outputs.measured(shipped))
            return _found(node, accused, outputs.reference, after)
    return None


def _turned(model: onnx.ModelProto) -> Iterator[tuple[onnx.NodeProto, onnx.ModelProto]]:
    """Each If of a model, with the model in which its condition is the opposite."""
    places = [index for index, node in enumerate(model.graph.node) if node.op_type == "If"]
    for index in places[:MOST]:
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        node = changed.graph.node[index]
        opposite = f"{node.input[0]}__not"
        inverted = helper.make_node("Not", [node.input[0]], [opposite])
        node.input[0] = opposite
        changed.graph.node.insert(index, inverted)
        yield model.graph.node[index], changed


def _found(
    node: onnx.NodeProto, accused: Sequence[Divergence], reference: Reference, after: float
) -> tuple[Divergence, Explained]:
    layer, name = _forward_of(accused, reference), node.name or node.output[0]
    kind = next((call.type for call in reference.calls if call.layer == layer), "")
    healed = accused[0].healed if accused else None
    before = float("inf") if healed is None else healed.before
    text = f"If {name} takes the other branch than the model"
    divergence = Divergence(
        layer, 0, kind, None, (node.name,), ("If",), node.output[0], None, None, Kind.EXCHANGED, text,
        Healed(before, after, agrees=True),
    )  # fmt: skip
    diagnosis = Diagnosis(
        "order",
        layer,
        f"If {name} takes the other branch than the model: its condition says the opposite of the model's for these "
        "inputs, or its branches stand in each other's place. With the other branch all outputs agree.",
        {"if": name, "condition": node.input[0], "error_before": before, "error_after": after},
        f"exchange then_branch and else_branch of {name}, or correct what computes {node.input[0]}",
        verified=True,
    )
    return divergence, Explained(diagnosis, None)


def _forward_of(accused: Sequence[Divergence], reference: Reference) -> str:
    """The module whose forward decides: the innermost that has all accused layers in it."""
    parts = [divergence.layer.split(".") if divergence.layer else [] for divergence in accused]
    shared = [names[0] for names in takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False))]
    inner = ".".join(shared)
    has_inside = any(
        call.layer.startswith(f"{inner}." if inner else "") and call.layer != inner for call in reference.calls
    )
    return inner if has_inside or not shared else ".".join(shared[:-1])
