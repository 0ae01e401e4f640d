"""Differences that no output that counts depends on: padding, fully masked rows, branches that come to nothing.

Nothing is inferred from names or shapes; trials tell. Where all outputs that count agree in the run that was examined,
that run is the proof for everything that differs in it. Where some do not, an origin is confined when putting the
expected value in there moves no output that counts, and when healing all other origins is enough.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.graph import Injection
from layerdiff.limits import mask_bound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from layerdiff.align import Alignment
    from layerdiff.localise import Origin
    from layerdiff.model import Healed
    from layerdiff.outputs import OutputPairs

    Array = np.ndarray[Any, Any]

# A confined origin leaves the final error as it is; this much may come from a kernel that adds up in another order.
_UNCHANGED = 0.1
# What is larger is a mask constant beside whatever else: no single precision computation goes on from there.
LARGEST = 1e30


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
        if _too_narrow(alignment, origin):
            continue
        if not abs(proof.after - proof.before) <= _UNCHANGED * proof.before:
            continue
        if not outputs.unmoved(tapped, alignment.candidate.outputs_with([puts[index]])):
            continue
        others = puts[:index] + puts[index + 1 :]
        if outputs.all_agree(alignment.candidate.outputs_with(others)):
            found.append(origin)
    return found


def is_other_mask(alignment: Alignment, origin: Origin) -> bool:
    """Whether all that an origin changes are mask constants that are written as others, such as -3.4e38 for -inf.

    Where nothing behind them comes out otherwise, that is no difference.
    """
    run = alignment.isolated if origin.slot.tensor in alignment.isolated else alignment.candidate.tapped
    if not _only_masks(alignment, origin.value, run.get(origin.slot.tensor)):
        return False
    behind, tapped = alignment.candidate.graph.behind([origin.slot.tensor]), alignment.candidate.tapped
    return all(
        alignment.holds_in(tapped, value, name) or _only_masks(alignment, value, tapped.get(name))
        for name, value in alignment.forced().items()
        if name in behind
    )


def other_masks(alignment: Alignment, origins: Sequence[Origin], outputs: OutputPairs) -> list[Origin]:
    """The origins that are mask constants written as others and nothing else, where what the model has moves no output.

    So it is also where the outputs differ for another reason, such as rounding all over the graph.
    """
    tapped, found = alignment.candidate.tapped, []
    for origin in origins:
        actual = alignment.isolated.get(origin.slot.tensor, tapped.get(origin.slot.tensor))
        if actual is None or not _only_masks(alignment, origin.value, actual) or _too_narrow(alignment, origin):
            continue
        if outputs.unmoved(tapped, alignment.candidate.outputs_with([_put(alignment, origin)])):
            found.append(origin)
    return found


def _only_masks(alignment: Alignment, value: int, actual: Array | None) -> bool:
    """Whether an array is not what a value is, and differs from it in mask constants alone."""
    expected = alignment.reference.values[value].array
    if expected is None or actual is None or expected.dtype.kind != "f":
        return False
    if actual.ndim == expected.ndim and actual.size < expected.size and _stretches(actual.shape, expected.shape):
        actual = np.broadcast_to(actual, expected.shape)  # one row for all queries
    if expected.size != actual.size:
        return False
    one, other = (array.reshape(-1).astype(np.float64) for array in (expected, actual))
    limit = alignment.limits[value]
    with np.errstate(invalid="ignore"):
        wrong = ~((one == other) | (np.abs(one - other) <= np.max(limit.atol) + limit.rtol * np.abs(one)))
    masks = (np.abs(array) > min(mask_bound(array), LARGEST) for array in (one, other))
    both = np.logical_and.reduce([*masks, np.sign(one) == np.sign(other)])
    return bool(wrong.any() and both[wrong].all())


def _stretches(shape: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether an array of one shape is read as one of the other, where they go together."""
    return all(size in (1, wanted) for size, wanted in zip(shape, other, strict=True))


def _too_narrow(alignment: Alignment, origin: Origin) -> bool:
    """Whether a tensor is of a narrower type than its value: that putting the value in moves nothing says nothing."""
    expected = alignment.reference.values[origin.value].array
    actual = alignment.candidate.tapped.get(origin.slot.tensor)
    if expected is None or actual is None or "f" not in (expected.dtype.kind, actual.dtype.kind):
        return False
    return actual.dtype.itemsize < expected.dtype.itemsize and not np.array_equal(
        expected, expected.astype(actual.dtype), equal_nan=True
    )


def _put(alignment: Alignment, origin: Origin) -> Injection:
    """What puts the expected value in at an origin."""
    slot = origin.slot
    return Injection(slot.tensor, alignment.expected_for(slot.tensor, origin.value, slot.axes), slot.edges)
