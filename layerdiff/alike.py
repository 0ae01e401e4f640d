"""One fault in many layers: an epsilon that is wrong in every norm, an activation that became another in every block.

Once the first few are healed, what the others do can be within rounding at the outputs. They are in the file all the
same, and a file that is corrected in the first few only is not right. So each of the others is looked into that is of
the kind of an accused layer; where its own proof gives the very cause of that layer, in the same words, it is told as
well.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from layerdiff.diagnose import DIAGNOSERS, Stretch, explain
from layerdiff.heal import heal_together

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Sequence

    from layerdiff.align import Alignment
    from layerdiff.diagnose import Explained
    from layerdiff.findings import Finding
    from layerdiff.localise import Origin
    from layerdiff.model import Divergence, Healed
    from layerdiff.outputs import OutputPairs
    from layerdiff.proof import Proven


def with_alike(
    alignment: Alignment,
    proven: Proven,
    told: Sequence[tuple[Finding, Explained]],
    look: Callable[[Origin, Healed | None], Finding],
    outputs: OutputPairs,
) -> tuple[Proven, list[Finding], list[Explained]]:
    """The origins, with those of the spare ones that have the fault of another, and what is told of each.

    All are healed together; where the outputs then do not agree, nothing is added.
    """
    known = proven, [found for found, _ in told], [cause for _, cause in told]
    sure = [(found, cause) for found, cause in told if cause.diagnosis.verified]
    kinds, causes = {_kind(found.divergence) for found, _ in sure}, {_words(cause) for _, cause in sure}
    last = proven.diverging[-1][1]
    if not sure or last is None or not last.agrees:
        return known
    more: list[tuple[Origin, Explained]] = []
    for origin in proven.spare:
        divergence = look(origin, None).divergence
        if _kind(divergence) not in kinds:
            continue
        with np.errstate(all="ignore"):  # what is wrong may be infinite
            cause = explain(Stretch(alignment, origin, divergence), DIAGNOSERS, thorough=False)
        if cause.diagnosis.verified and _words(cause) in causes:
            more.append((origin, cause))
    origins = [*(origin for origin, _ in proven.diverging), *(origin for origin, _ in more)]
    healed = heal_together(alignment, origins, outputs, last.after) if more else None
    if healed is None or not healed.agrees:
        return known
    diverging = [*proven.diverging, *((origin, healed) for origin, _ in more)]
    found = [*known[1], *(look(origin, healed) for origin, _ in more)]
    return replace(proven, diverging=diverging), found, [*known[2], *(cause for _, cause in more)]


def _words(cause: Explained) -> tuple[str, str]:
    """What is said of a cause; with numbers that are a layer's own, such as those of its weights, it is another."""
    return cause.diagnosis.cause, cause.diagnosis.summary


def _kind(divergence: Divergence) -> Hashable:
    return divergence.type, divergence.op, divergence.kind, divergence.onnx_ops
