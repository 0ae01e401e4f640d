"""Random operators: what differs between two runs of the same model on the same inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.graph import RANDOM
from layerdiff.model import Diagnosis

if TYPE_CHECKING:
    from layerdiff.candidate import Candidate
    from layerdiff.model import Divergence, Reference


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


def reference_random(reference: Reference, unstable: frozenset[int], first: Divergence | None) -> Diagnosis | None:
    """The cause, where the reference gives other numbers each time it runs; the rest is judged with one draw put in."""
    if not unstable:
        return None
    drawing = [
        site
        for site in reference.sites
        if unstable.intersection(site.outputs) and not unstable.intersection(site.inputs)
    ]
    names = list(dict.fromkeys(reference.layer_of(site) or "the root module" for site in drawing))
    dropout = any("Dropout" in reference.calls[site.owner].type for site in drawing)
    healed = first is not None and first.healed is not None and first.healed.agrees
    rest = " With its draw put in, the rest agrees." if healed else ""
    return Diagnosis(
        cause="training-mode" if dropout else "random",
        layer=reference.layer_of(drawing[0]) if drawing else "",
        summary=f"Two runs of the reference differ: {', '.join(names[:3])} draws at random.{rest}",
        evidence={"layers": names, "unstable_values": len(unstable)},
        remedy="model.eval()  # before layerdiff.trace"
        if dropout
        else "take the random operator out, or feed its draw",
        verified=healed,
    )
