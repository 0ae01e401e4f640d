"""README.md of a case, to be pasted into a bug report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from onnx import helper

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

    from layerdiff.live import Case, Region
    from layerdiff.model import Metrics, Reference

_VERSIONS = ("python", "torch", "onnx", "onnxruntime", "numpy", "layerdiff", "machine")


def readme(report: Any, case: Case, cut: tuple[Reference, Region, onnx.ModelProto], said: str) -> str:
    """The text: what differs, how to see it, both sides operator by operator, the cause, the versions."""
    reference, region, model = cut
    origin = case.divergence
    lines = [
        f"# {origin.layer or '(root)'} ({origin.type}): PyTorch and ONNX disagree",
        "",
        f"{origin.summary[:1].upper()}{origin.summary[1:]}.",
        "",
        "```sh",
        "python reproduce.py   # needs torch, onnx, onnxruntime and numpy; exits 1 while the two differ",
        "```",
        "",
        "```text",
        said,
        "```",
        "",
        "## Cause",
        "",
        *_cause(case),
        "",
        "## PyTorch",
        "",
        *(_site(reference, index) for index in region.sites),
        *([] if region.sites else ["- nothing: the value passes on as it is"]),
        "",
        "## ONNX",
        "",
        "opset " + ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import),
        "",
        *(_node(node) for node in model.graph.node),
        *_metrics(origin.metrics),
        "",
        "## Versions",
        "",
        *(f"- {name} {report.environment[name]}" for name in _VERSIONS if name in report.environment),
        "",
    ]
    return "\n".join(lines)


def _cause(case: Case) -> Iterator[str]:
    found = case.diagnosis
    proof = "verified: with that corrected the nodes compute the right value" if found.verified else "not verified"
    yield f"`{found.cause}` ({proof}). {found.summary}"
    if found.remedy:
        yield f"Remedy: `{found.remedy}`"


def _site(reference: Reference, index: int) -> str:
    site = reference.sites[index]
    shapes = ", ".join(str(tuple(reference.values[value].shape)) for value in site.inputs)
    arguments = ", ".join(f"{name}={value}" for name, value in site.arguments.items())
    return f"- `{site.op}` on {shapes or 'nothing'}" + (f" with `{arguments}`" if arguments else "")


def _node(node: onnx.NodeProto) -> str:
    domain = f"{node.domain}." if node.domain else ""
    given = ", ".join(f"{a.name}={_shown(a)}" for a in node.attribute)
    return f"- `{domain}{node.op_type}`" + (f" with `{given}`" if given else "")


def _shown(attribute: onnx.AttributeProto) -> str:
    if attribute.HasField("t"):
        return f"tensor {list(attribute.t.dims)}"
    if attribute.HasField("g"):
        return "graph"
    value = helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _metrics(metrics: Metrics | None) -> list[str]:
    if metrics is None:
        return []
    numbers = {
        "max_abs": metrics.max_abs,
        "rel_l2": metrics.rel_l2,
        "cosine": metrics.cosine,
        "allowed by rounding": metrics.limit,
    }
    text = ", ".join(f"{name} {value:.6g}" for name, value in numbers.items())
    return ["", "## Difference", "", f"{text}, worst at {metrics.worst_index}."]
