"""What differs between two runs of one model on the same inputs.

Operators that draw at random, kernels that are not deterministic, and float32 that torch may compute in less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.graph import RANDOM
from layerdiff.limits import scale_of
from layerdiff.model import Diagnosis
from layerdiff.noise import draws_in
from layerdiff.rerun import begins, is_loose

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from layerdiff.candidate import Candidate
    from layerdiff.fp32 import Setting
    from layerdiff.limits import Limit
    from layerdiff.model import Divergence, Reference, Site
    from layerdiff.sides import Unstable


_STEADY = frozenset({"weights", "bn-folding", "epsilon", "padding", "pooling", "activation", "axis"})


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


def reference_random(reference: Reference, unstable: Unstable, first: Divergence | None) -> Diagnosis | None:
    """The cause, where the reference draws at random; the rest is judged with one draw put in."""
    drawing = [site for site in begins(reference, unstable.moved) if site.index not in unstable.kernels]
    drawing += _readers(reference, unstable.moved)
    if not drawing:  # it went another way
        drawing = [site for site in reference.sites if unstable.moved and draws_in(site)]
    if not drawing:
        return None
    names = _layers(reference, drawing)
    dropout = any("Dropout" in reference.calls[site.owner].type for site in drawing)
    healed = first is not None and first.healed is not None and first.healed.agrees
    rest = " With its draw put in, the rest agrees." if healed else ""
    does = "reads numbers from outside of torch that are others each time" if unstable.outside else "draws at random"
    return Diagnosis(
        cause="training-mode" if dropout else "random",
        layer=reference.layer_of(drawing[0]),
        summary=f"Two runs of the reference differ: {', '.join(names[:3])} {does}.{rest}",
        evidence={"layers": names, "unstable_values": len(unstable.moved)},
        remedy="model.eval()  # before layerdiff.trace"
        if dropout
        else "take the random operator out, or feed its draw",
        verified=healed,
    )


def reference_not_deterministic(
    reference: Reference, unstable: Unstable, first: Divergence | None, outputs: Mapping[int, Limit], device: str
) -> Diagnosis | None:
    """The cause, where kernels of the reference move an output by more than rounding from run to run."""
    sites = [reference.sites[index] for index in sorted(unstable.kernels)]
    off, times = _worst(reference, unstable.moved, outputs)
    if not sites or times <= 1:
        return None
    names, operators = _layers(reference, sites), list(dict.fromkeys(site.op for site in sites))
    there = first is not None and first.layer in {reference.layer_of(site) for site in sites}
    healed = there and first is not None and first.healed is not None and first.healed.agrees
    rest = " With what it gave in one run put in, the rest agrees." if healed else ""
    cudnn = "; torch.backends.cudnn.deterministic = True; torch.backends.cudnn.benchmark = False"
    return Diagnosis(
        cause="random",
        layer=reference.layer_of(sites[0]),
        summary=f"Two runs of the reference differ (max-abs {off:.2g}) although nothing draws at random: the kernel of "
        f"{', '.join(operators[:3])} in {', '.join(names[:3])} is not deterministic.{rest}",
        evidence={"layers": names, "operators": operators, "max_abs": off, "unstable_values": len(unstable.moved)},
        remedy=f"torch.use_deterministic_algorithms(True){cudnn if device.startswith('cuda') else ''}"
        "  # before layerdiff.trace",
        verified=healed,
    )


def may_move(reference: Reference, device: str) -> bool:
    """Whether an operator draws at random, or a kernel ran that need not be deterministic."""
    return any(is_loose(site, device) or draws_in(site) for site in reference.sites)


def steady(causes: Sequence[Diagnosis]) -> bool:
    """Whether all causes are proven from parameters and attributes: a number that was drawn would not have come out.

    One that NumPy drew may be taken for a constant of the model.
    """
    return bool(causes) and all(cause.verified and cause.cause in _STEADY for cause in causes)


def swallowed(cause: Diagnosis, outputs: Iterable[Limit]) -> str:
    """What a reader must know where outputs agree only because the reference itself is not stable."""
    widest = max(float(np.max(limit.atol)) for limit in outputs)
    return f"{cause.summary} Outputs that agree may be off by up to {widest:.2g}; for less: {cause.remedy}"


def reference_narrowed(
    reference: Reference, as_set: Mapping[Setting, Mapping[int, float]], outputs: Mapping[int, Limit]
) -> tuple[Diagnosis, ...]:
    """For each setting of torch that moves an output beyond rounding: that the reference is off where it is on."""
    found = []
    for setting, moved in as_set.items():
        off, times = _worst(reference, moved, outputs)
        site = next(iter(begins(reference, moved)), None)
        if times <= 1 or site is None:
            continue
        layer = reference.layer_of(site) or "the root module"
        summary = (
            f"As torch is set here, PyTorch computes {setting.work} in {setting.format} ({setting.name}): its own "
            f"outputs are then off by max-abs {off:.2g}, {times:,.0f} × what rounding explains, beginning at {layer}. "
            "What is compared here is what it computes in float32."
        )
        evidence = {"setting": setting.name, "format": setting.format, "max_abs": off, "times_limit": times}
        remedy = f"{setting.remedy}  # where the model runs"
        found.append(Diagnosis("precision", reference.layer_of(site), summary, evidence, remedy, verified=True))
    return tuple(found)


def _worst(reference: Reference, moved: Mapping[int, float], outputs: Mapping[int, Limit]) -> tuple[float, float]:
    """How far the outputs move at most, and the most as a multiple of what is allowed for their largest number."""
    allowed = {}
    for value, limit in outputs.items():
        array = reference.values[value].array
        size = 0.0 if array is None else scale_of(array) if array.dtype.kind in "fc" else 0.0
        allowed[value] = float(np.min(limit.atol)) + limit.rtol * size
    off = {value: moved[value] for value in allowed if value in moved}
    times = (gap / allowed[value] if allowed[value] > 0 else np.inf for value, gap in off.items())
    return max(off.values(), default=0.0), max(times, default=0.0)


def _readers(reference: Reference, moved: Mapping[int, float]) -> list[Site]:
    """The first reader of each number that moves and comes from outside of torch: from Python or NumPy, say."""
    outside = [v.index for v in reference.values if v.index in moved and v.site is None and v.constant]
    readers = (next((site for site in reference.sites if value in site.inputs), None) for value in outside)
    return [site for site in readers if site is not None]


def _layers(reference: Reference, sites: Sequence[Site]) -> list[str]:
    return list(dict.fromkeys(reference.layer_of(site) or "the root module" for site in sites))
