"""Every kind of fault and how it is planted."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.faults import activations, inserted, library_forwards, norms, parameters, recurrence, skipped, windows
from benchmarks.faults.forwards import VARIANTS, in_forward, upsample_mode

if TYPE_CHECKING:
    import random
    from collections.abc import Mapping

    from benchmarks.faults.fault import Fault
    from benchmarks.faults.workpiece import Workpiece

Plant = Callable[["Workpiece", "random.Random"], "Fault | None"]
"""Changes the copy and says what it did, or gives None and leaves the copy as it was."""

KINDS: dict[str, tuple[Plant, ...]] = {
    "weight-noise": (parameters.weight_noise,),
    "weight-small": (parameters.weight_small,),
    "weight-rounded": (parameters.weight_rounded,),
    "weight-stale": (parameters.weight_stale,),
    "channel-corrupted": (parameters.channel_corrupted,),
    "channel-scaled": (parameters.channel_scaled,),
    "bias-dropped": (parameters.bias_dropped,),
    "weights-swapped": (parameters.weights_swapped,),
    "weight-transposed": (parameters.weight_transposed,),
    "kernel-flipped": (parameters.kernel_flipped,),
    "gate-order": (recurrence.gate_order,),
    "direction-swapped": (recurrence.direction_swapped,),
    "layer-skipped": (skipped.layer_skipped,),
    "bn-stats": (norms.bn_stats,),
    "bn-eps": (norms.bn_eps,),
    "norm-eps": (norms.norm_eps,),
    "padding-mode": (windows.padding_mode,),
    "padding-shifted": (windows.padding_shifted,),
    "dilation": (windows.dilation,),
    "sampling-phase": (windows.sampling_phase,),
    "pool-type": (windows.pool_type,),
    "pool-divisor": (windows.pool_divisor,),
    "pool-window": (windows.pool_window,),
    "activation-dropped": (activations.activation_dropped,),
    "activation-other": (activations.activation_other,),
    "activation-shared": (activations.activation_shared,),
    "half-output": (inserted.half_output,),
    "half-input": (inserted.half_input,),
    "qdq-output": (inserted.qdq_output,),
    "extra-operator": (inserted.extra_operator,),
    **{kind: (in_forward(kind),) for kind in VARIANTS},
}

KINDS["attention-scale"] += (library_forwards.library_scale,)
KINDS["mask-changed"] += (library_forwards.library_mask,)
KINDS["residual-removed"] += (library_forwards.library_residual,)
KINDS["constant-changed"] += (library_forwards.library_constant,)
KINDS["interpolate-mode"] += (upsample_mode,)

IN_SEVERAL_LAYERS = frozenset({"weights-swapped", "activation-shared"})
"""Kinds that are no part of a pair, nor of one call: behind the first wrong layer there is a second one already."""


def plant(kinds: Mapping[str, tuple[Plant, ...]], kind: str, piece: Workpiece, rng: random.Random) -> Fault | None:
    """The fault of this kind now in the piece, or None if the model has no place for it."""
    plants = list(kinds[kind])
    rng.shuffle(plants)
    for attempt in plants:
        fault = attempt(piece, rng)
        if fault is not None:
            return fault
    return None
