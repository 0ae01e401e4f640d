"""Differences that no output that counts depends on: padding, fully masked rows, branches that come to nothing.

Nothing is inferred from names or shapes; trials tell. Where all outputs that count agree in the run that was examined,
that run is the proof for everything that differs in it. Where some do not, an origin is confined when putting the
expected value in there moves no output that counts, and when healing all other origins is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from layerdiff.graph import Injection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Healed
    from layerdiff.outputs import OutputPairs

# A confined origin leaves the final error as it is; this much may come from a kernel that adds up in another order.
_UNCHANGED = 0.1


def confined_origins(
    alignment: Alignment, origins: Sequence[Origin], proofs: Sequence[Healed | None], outputs: OutputPairs
) -> list[Origin]:
    """The origins that no output that counts depends on; `proofs` are what healing one more of them each time gave."""
    tapped = alignment.candidate.tapped
    if len(origins) < 2 or any(proof is None for proof in proofs) or not (proofs[-1] and proofs[-1].agrees):
        return []
    puts = [_put(alignment, origin) for origin in origins]
    found = []
    for index, (origin, proof) in enumerate(zip(origins, proofs, strict=True)):
        assert proof is not None
        if not abs(proof.after - proof.before) <= _UNCHANGED * proof.before:
            continue
        if not outputs.unmoved(tapped, alignment.candidate.outputs_with([puts[index]])):
            continue
        others = puts[:index] + puts[index + 1 :]
        if outputs.all_agree(alignment.candidate.outputs_with(others)):
            found.append(origin)
    return found


def _put(alignment: Alignment, origin: Origin) -> Injection:
    """What puts the expected value in at an origin."""
    slot = origin.slot
    return Injection(slot.tensor, alignment.expected_for(slot.tensor, origin.value, slot.axes), slot.edges)
