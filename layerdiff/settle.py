"""Let an accusation follow its proof: of several layers that could be meant, the one that the proven cause is in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from layerdiff.align.weights import parameters_of_sites
from layerdiff.attribute import Blame, edges_of, enclosing
from layerdiff.findings import Finding, layers_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.align import Alignment
    from layerdiff.diagnose import Explained
    from layerdiff.localise import Origin
    from layerdiff.model import Reference

# How far two factors may be apart that are one: they are fitted to weights in single precision.
_SAME_FACTOR = 1e-5


def settle(
    alignment: Alignment, origins: Sequence[Origin], found: Sequence[Finding], explained: Sequence[Explained]
) -> list[Finding]:
    """The findings after their causes are known.

    A verified cause that is in one of the layers that could be meant settles which of them it is. One factor on all of
    a layer's parameters unsettles it: whoever multiplies the layer's result makes the same file once the factor is
    folded into the weights. Where one layer could be behind several findings with the same number, it is: a
    forward that multiplies two branches by one wrong factor is one fault, two layers with the same wrong gain are two.
    """
    settled = [_settled(alignment, finding, cause) for finding, cause in zip(found, explained, strict=True)]
    alike: dict[tuple[Any, ...], list[int]] = {}
    for i, (origin, finding, cause) in enumerate(zip(origins, settled, explained, strict=True)):
        number = _number(alignment, origin, cause)
        if finding.blame.also and number is not None:
            alike.setdefault((cause.diagnosis.cause, number), []).append(i)
    for group in alike.values():
        shared = set.intersection(*({settled[i].blame.call, *settled[i].blame.also} for i in group))
        for i in group if len(group) > 1 and shared else ():
            before = settled[i].blame
            rest = tuple(call for call in (before.call, *before.also) if call != max(shared))
            settled[i] = _accused(alignment.reference, settled[i], Blame(max(shared), None, rest))
    return settled


def _settled(alignment: Alignment, found: Finding, explained: Explained) -> Finding:
    reference = alignment.reference
    if explained.site is None:
        others = explained.diagnosis.evidence.get("or_weights_of", ())
        calls = (call.index for call in reference.calls if call.layer in others and call.index != found.blame.call)
        also = dict.fromkeys([*found.blame.also, *calls])
        return _accused(reference, found, replace(found.blame, also=tuple(also))) if others else found
    site = reference.sites[explained.site]
    if explained.diagnosis.evidence.get("exchanged"):
        return _accused(reference, found, Blame(site.owner, site.op))
    meant = site.owner in (found.blame.call, *found.blame.also) or found.blame.call in enclosing(reference, site.owner)
    multiplied = _multiplied(reference, site.index, explained.diagnosis.evidence)
    if not meant and not multiplied:
        return found
    call, op = (site.owner, site.op) if meant else (found.blame.call, found.blame.op)
    return _accused(reference, found, Blame(call, op, edges_of(alignment, call) if multiplied else ()))


def _accused(reference: Reference, found: Finding, blame: Blame) -> Finding:
    call = reference.calls[blame.call]
    also = layers_of(reference, blame)
    divergence = replace(
        found.divergence, layer=call.layer, call=call.call, type=call.type, op=blame.op, also_possible=also
    )
    return Finding(blame, divergence)


def _multiplied(reference: Reference, site: int, evidence: Mapping[str, Any]) -> bool:
    """Whether all parameters of a site are multiplied by one factor, as the evidence says."""
    parts = [evidence, *evidence.get("together_with", ())]
    factors = {part["parameter"]: part.get("factor") for part in parts if "parameter" in part}
    known = [factor for factor in factors.values() if isinstance(factor, float)]
    whole = bool(known) and set(parameters_of_sites(reference).get(site, ())) <= set(factors)
    return whole and len(known) == len(factors) and max(known) - min(known) <= _SAME_FACTOR * abs(known[0])


def _number(alignment: Alignment, origin: Origin, explained: Explained) -> float | None:
    """The one number that an origin brings in: the factor on its weights, or the constant of its inserted nodes."""
    factor = explained.diagnosis.evidence.get("factor")
    if isinstance(factor, float):
        return float(f"{factor:.4g}")
    graph, constants = alignment.candidate.graph, alignment.candidate.constants
    inputs = {name for index in origin.nodes for name in graph.nodes[index].inputs if name in constants}
    numbers = {float(a.reshape(-1)[0]) for n in inputs if (a := constants[n]).size == 1 and a.dtype.kind == "f"}
    return float(f"{numbers.pop():.4g}") if origin.inserted and len(numbers) == 1 else None
