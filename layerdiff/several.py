"""Several samples: what each of them shows, and what it means when they agree at one size and not at another."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.model import Diagnosis, SampleResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.model import Divergence, OutputResult

FROZEN = "something was frozen when it was exported"
_REMEDY = (
    "export with dynamic_shapes= (dynamo) or dynamic_axes= (TorchScript) for every axis that varies, and compute sizes "
    "in forward from tensor shapes, not with int(), .item() or numbers kept from an earlier call."
)
# onnxruntime: Non-zero status code returned while running Reshape node. Name:'/layer/Reshape' Status Message: ...
_NODE_NAME = re.compile(r"[Nn]ame:\s*'([^']+)'")


@dataclass(frozen=True, slots=True)
class Sizes:
    """The input sizes at which all samples agree, and those at which none does."""

    agreeing: tuple[str, ...]
    diverging: tuple[str, ...]
    refused: tuple[str, ...]

    def __str__(self) -> str:
        ways = (("agrees", self.agreeing), ("diverges", self.diverging), ("is refused", self.refused))
        parts = [f"{verb} at {' and '.join(sizes)}" for verb, sizes in ways if sizes]
        said = f"{', '.join(parts[:-1])} and {parts[-1]}: {FROZEN}."
        return said[0].upper() + said[1:]


def judged(shapes: Mapping[str, tuple[int, ...]], outputs: Sequence[OutputResult]) -> SampleResult:
    """How one sample was judged, from its outputs."""
    measured = [o.shipped for o in outputs if o.shipped is not None]
    whole = len(measured) == len(outputs)
    return SampleResult(
        shapes=shapes,
        agrees=all(output.agrees for output in outputs),
        max_abs=max((m.max_abs for m in measured), default=0.0) if whole else None,
        times_limit=max((m.times_limit for m in measured), default=0.0) if whole else None,
    )


def labels(samples: Sequence[SampleResult]) -> tuple[str, ...]:
    """The size of each sample, in short: the shapes of the inputs that are not of one shape in all of them."""
    names = dict.fromkeys(name for sample in samples for name in sample.shapes)
    varying = [name for name in names if len({sample.shapes.get(name) for sample in samples}) > 1]

    def label(sample: SampleResult) -> str:
        shown = [(name, "x".join(map(str, sample.shapes[name])) or "()") for name in varying if name in sample.shapes]
        return ", ".join(size if len(varying) == 1 else f"{name} {size}" for name, size in shown)

    return tuple(label(sample) for sample in samples)


def sizes(samples: Sequence[SampleResult]) -> Sizes | None:
    """Agreement at one size and none at another; None where size does not decide."""
    found: dict[str, set[str]] = {}
    for sample, label in zip(samples, labels(samples), strict=True):
        kind = "refused" if sample.refused else ("agreeing" if sample.agrees else "diverging")
        found.setdefault(label, set()).add(kind)
    kinds = {label: next(iter(kind)) for label, kind in found.items() if len(kind) == 1}
    by_kind = {
        kind: tuple(label for label, k in kinds.items() if k == kind) for kind in ("agreeing", "diverging", "refused")
    }
    if len(kinds) < len(found) or not by_kind["agreeing"] or len(by_kind["agreeing"]) == len(found):
        return None
    return Sizes(**by_kind)


def size_diagnosis(samples: Sequence[SampleResult], first: Divergence | None, alignment: Alignment) -> Diagnosis | None:
    """The cause, where the size of the inputs decides whether the outputs agree."""
    found = sizes(samples)
    if found is None:
        return None
    messages = [sample.refused for sample in samples if sample.refused]
    node = _named_node(messages, alignment)
    evidence = {
        "agrees": list(found.agreeing),
        "diverges": list(found.diverging),
        "refused": list(found.refused),
        "messages": messages,
    }
    layer = first.layer if first is not None else ""
    if node is not None:
        evidence["nodes"] = [node]
        layer = layer if first is not None else _layer_of(node, alignment)
    return Diagnosis(
        cause="baked-constant",
        layer=layer,
        summary=str(found),
        evidence=evidence,
        remedy=_REMEDY,
        verified=False,
    )


def _named_node(messages: Sequence[str], alignment: Alignment) -> str | None:
    """The node of the graph that the runtime named when it refused."""
    known = {node.name for node in alignment.candidate.graph.nodes}
    named = [name for message in messages for name in _NODE_NAME.findall(message)]
    return next((name for name in named if name in known), None)


def _layer_of(name: str, alignment: Alignment) -> str:
    """The layer that a node belongs to: by the values it makes at the size that agrees, else by its own name."""
    graph, reference = alignment.candidate.graph, alignment.reference
    node = next(node for node in graph.nodes if node.name == name)
    held = [value for value, names in alignment.matched.items() if set(names).intersection(node.outputs)]
    shapes = {alignment.candidate.tapped[out].shape for out in node.outputs if out in alignment.candidate.tapped}
    makers = [(value, site) for value in held if (site := reference.producer(value)) is not None]
    exact = [site for value, site in makers if reference.values[value].shape in shapes] or [site for _, site in makers]
    if exact:
        return reference.layer_of(max(exact, key=lambda site: site.index))
    return node.scope if any(call.layer == node.scope for call in reference.calls) else ""
