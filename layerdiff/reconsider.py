"""Take back pairs that accuse the innocent, and look for the origins again.

Behind a fault some pairs rest on structure alone. A wrong one makes a layer look wrong and its readers by the inverse;
put right on its own, it makes an output wrong that was right. Nothing else is needed to know it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.audit import audit
from layerdiff.heal import injection_at
from layerdiff.localise import find_origins
from layerdiff.model import Evidence
from layerdiff.weights import Carried, WeightVerdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.outputs import OutputPairs
    from layerdiff.precision import Rounded

MOST = 6
"""Origins of which each is doubted; every doubt costs a run of the graph."""

ANOTHER = 0.1
"""By such a share of its size no quantiser corrects a bias."""

ROUNDS = 3
"""One wrong pair can hide another."""


@dataclass(frozen=True, slots=True)
class Located:
    """Where the graph goes wrong, and the pairs by which that was found."""

    alignment: Alignment
    origins: list[Origin]
    rounded: list[Rounded]


def located(alignment: Alignment, outputs: OutputPairs) -> Located:
    """The origins, found again without the pairs that the final outputs contradict."""
    best = found = Located(alignment, *find_origins(alignment))
    wrong = _misstored(alignment) if found.rounded else frozenset()
    if wrong:
        return Located(alignment, *find_origins(alignment, wrong))
    for _ in range(ROUNDS):
        doubtful = doubted(found, outputs)
        if not doubtful:
            break
        fresh = found.alignment.without(doubtful)
        found = Located(fresh, *find_origins(fresh))
        if 0 < len(found.origins) < len(best.origins) and _healed(fresh, found.origins, outputs):
            best = found
    return best


def _misstored(alignment: Alignment) -> frozenset[str]:
    """What is read of weights that are kept in integers, and are further from the model's than rounding takes them.

    Of biases, which stay in floats beside them or have 32 bits, what is another number altogether.
    """
    wrong = [r for r in audit(alignment) if r.verdict is WeightVerdict.DIFFERS and r.max_abs is not None]
    steps = {r.initializer: _step(alignment, r.initializer) for r in wrong if r.initializer and len(r.shape) > 1}
    vectors = [r for r in wrong if len(r.shape) == 1 and r.how is Carried.CHANGED and (r.rel_l2 or 0) > ANOTHER]
    graph = alignment.candidate.graph
    kept = [r.initializer for r in vectors if r.initializer is not None]
    found = [name for name in kept if name in graph.initializers or graph.dequantiser(name) is not None]
    found += [r.initializer for r in wrong if r.initializer and _exceeds(r.max_abs, steps.get(r.initializer))]
    return frozenset(found)


def _exceeds(error: float | None, step: float | None) -> bool:
    """Whether an error is more than rounding to the nearest of two integers, or of their neighbours, makes."""
    return error is not None and step is not None and error > step


def _step(alignment: Alignment, tensor: str) -> float | None:
    """The largest step of the integers that a tensor is dequantised from; None where it is not."""
    node = alignment.candidate.graph.dequantiser(tensor)
    scale = None if node is None else alignment.candidate.constants.get(node.inputs[1])
    return None if scale is None else float(scale.max())


def doubted(found: Located, outputs: OutputPairs) -> frozenset[int]:
    """The values of pairs that are wrong for all that is known; none where there is one origin, or many."""
    origins = found.origins
    if not 1 < len(origins) <= MOST or found.rounded or outputs.all_agree(found.alignment.candidate.tapped):
        return frozenset()
    passed_on = {origin.value for origin in origins if origin.inserted}
    open_to_doubt = [
        origin
        for origin in origins
        if not origin.inserted
        and origin.slot.edges is None
        and _is_proposed(found.alignment, origin.slot.tensor, origin.value)
    ]
    # What stands behind a wrong tensor and changes it is not inserted: the layer ends further on.
    behind = frozenset(origin.value for origin in open_to_doubt if origin.value in passed_on)
    behind |= _misleading(found)
    return behind or _contradicted(found.alignment, origins, open_to_doubt, outputs)


def _misleading(found: Located) -> frozenset[int]:
    """The values proposed for what a tensor is computed from that is right as it is, and wrong from those values."""
    alignment, forced, doubtful = found.alignment, found.alignment.forced(), set()
    graph, tapped = alignment.candidate.graph, alignment.candidate.tapped
    for tensor, value in (origin.wrong for origin in found.origins if origin.wrong is not None):
        if tensor in tapped and alignment.holds_in(tapped, value, tensor):
            _, start = graph.region(tensor, forced)
            proposed = {
                forced[name] for name in start if name in forced and _is_proposed(alignment, name, forced[name])
            }
            doubtful |= {v for v in proposed if not alignment.live(v)}
    return frozenset(doubtful)


def _is_proposed(alignment: Alignment, tensor: str, value: int) -> bool:
    pair = alignment.proposed.get(value)
    return pair is not None and pair.tensor == tensor and pair.evidence is not Evidence.GIVEN


def _contradicted(
    alignment: Alignment, origins: Sequence[Origin], doubtful: Sequence[Origin], outputs: OutputPairs
) -> frozenset[int]:
    """Those that are not needed for the outputs to agree, and keep them from it when they alone are healed besides."""
    if not doubtful or not _healed(alignment, origins, outputs):
        return frozenset()
    needed = list(origins)
    for origin in origins:
        fewer = [one for one in needed if one is not origin]
        if fewer and _healed(alignment, fewer, outputs):
            needed = fewer
    spare = [origin for origin in doubtful if origin not in needed]
    return frozenset(o.value for o in spare if not _healed(alignment, [*needed, o], outputs))


def _healed(alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs) -> bool:
    if not all(origin.provable for origin in origins):
        return False
    injections = [injection_at(alignment, origin) for origin in origins]
    return outputs.all_agree(alignment.candidate.outputs_with(injections))
