"""Random operators: what differs between two runs of the same model on the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.graph import RANDOM
from layerdiff.model import Diagnosis

if TYPE_CHECKING:
    from layerdiff.candidate import Candidate
    from layerdiff.model import Divergence


def random_diagnosis(candidate: Candidate, first: Divergence | None) -> Diagnosis | None:
    """The cause, where the candidate gives other numbers each time it runs."""
    if not candidate.unstable:
        return None
    graph = candidate.graph
    nodes = [graph.nodes[i] for i in sorted(graph.live_nodes) if graph.nodes[i].op in RANDOM]
    drawing = [node for node in nodes if candidate.unstable.intersection(node.outputs)]
    if not drawing:
        return None
    dropout = any(node.op == "Dropout" for node in drawing)
    names = ", ".join(f"{node.name} ({node.op})" for node in drawing[:3])
    more = f" and {len(drawing) - 3} more" if len(drawing) > 3 else ""
    return Diagnosis(
        cause="training-mode" if dropout else "random",
        layer=first.layer if first is not None else "",
        summary=f"Two runs on the same inputs differ: {names}{more} draw at random.",
        evidence={"nodes": [node.name for node in drawing], "unstable_tensors": len(candidate.unstable)},
        remedy="model.eval()  # before torch.onnx.export"
        if dropout
        else "export the model without the random operator",
        verified=False,
    )
