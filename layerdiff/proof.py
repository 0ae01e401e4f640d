"""Every origin with its proof: those that make an output diverge, and those that no output that counts depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.confined import confined_origins, is_other_mask, other_masks
from layerdiff.heal import heal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Healed
    from layerdiff.outputs import OutputPairs

MOST = 16
"""Origins that are healed one by one, to see which matter; of more several at once, and only as many as it takes."""


@dataclass(frozen=True, slots=True)
class Proven:
    """The origins, each with its proof: those that diverge, and those that no output that counts depends on.

    `spare` are those behind them without which the outputs agree.
    """

    diverging: list[tuple[Origin, Healed | None]]
    confined: list[tuple[Origin, Healed | None]]
    harmless: bool
    spare: tuple[Origin, ...] = ()


def prove(alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs, *, shipped_agrees: bool) -> Proven:
    """Heal the origins one after the other, and set aside those without consequence."""
    harmless = outputs.all_agree(alignment.candidate.tapped)
    if shipped_agrees and not harmless:  # only the run that was looked into is wrong; a warning says so
        return Proven([], [], harmless)
    if harmless:  # what differs shows at excluded positions at most
        proofs = heal(alignment, origins, outputs.everywhere()) if outputs.masks else [None] * len(origins)
        told = [(o, proof) for o, proof in zip(origins, proofs, strict=True) if not is_other_mask(alignment, o)]
        return Proven([], told, harmless)
    masks = [] if outputs.masks else other_masks(alignment, origins, outputs)  # where masks count, they are told
    origins = [origin for origin in origins if origin not in masks]
    at_once = -(-len(origins) // MOST)
    proofs = heal(alignment, origins, outputs, all_of_them=at_once == 1, at_once=max(1, at_once))
    origins, spare = origins[: len(proofs)], tuple(origins[len(proofs) :])
    aside = confined_origins(alignment, origins, proofs, outputs)
    if aside:
        origins = [origin for origin in origins if origin not in aside]
        proofs = heal(alignment, origins, outputs, at_once=max(1, -(-len(origins) // MOST)))
    enough = _enough(proofs)
    origins, proofs, spare = origins[:enough], proofs[:enough], (*origins[enough:], *spare)
    confined: list[tuple[Origin, Healed | None]] = [(o, None) for o in aside if not is_other_mask(alignment, o)]
    return Proven(list(zip(origins, proofs, strict=True)), confined, harmless, spare)


def _enough(proofs: Sequence[Healed | None]) -> int:
    """How many origins it takes until the outputs agree; all of them where they never do.

    Behind a wrong layer some pairs rest on structure alone, and two of them can be wrong together: a factor that the
    file keeps in another weight makes one layer look wrong, and the next one by the inverse. No output is.
    """
    return next((i + 1 for i, proof in enumerate(proofs) if proof is not None and proof.agrees), len(proofs))


def sites_of(calls: Sequence[int], origins: Sequence[tuple[Origin, object]]) -> dict[int, tuple[int, ...]]:
    """The sites of each accused call."""
    return {call: origin.sites for call, (origin, _) in zip(calls, origins, strict=False)}
