"""What each kind of planted fault may be called, decided from what the kind does and the design's list alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.faults.fault import Fault

SLUGS = frozenset(
    {
        *("weights", "bn-folding", "training-mode"),
        *("epsilon", "padding", "pooling", "resize", "axis", "layout", "indexing", "order", "constant"),
        *("activation", "inputs", "masking", "ties", "rounding", "numerics", "inplace", "recurrent"),
        *("dropped-op", "extra-op", "baked-constant", "precision", "overflow", "quantization", "dtype"),
        *("random", "nan", "runtime-fusion", "runtime-kernel", "simplifier"),
        *("preprocessing", "postprocessing", "unknown"),
    }
)
"""Every cause that a diagnosis can name."""

# Any parameter, a BatchNorm's weight and bias among them: those of a folded BatchNorm are wrong as its folding is.
_ANY_PARAMETER = frozenset({"weights", "bn-folding"})

CAUSES: dict[str, frozenset[str]] = {
    "weight-noise": _ANY_PARAMETER,
    "weight-small": _ANY_PARAMETER,
    # To bfloat16 or to 8 bits: other weights, and also what the rounding is called.
    "weight-rounded": _ANY_PARAMETER | {"precision", "quantization"},
    "weight-stale": _ANY_PARAMETER,
    "channel-corrupted": frozenset({"weights"}),
    "channel-scaled": frozenset({"weights"}),
    "bias-dropped": _ANY_PARAMETER,
    "weights-swapped": _ANY_PARAMETER,
    # The right numbers in another order are other weights and a permutation.
    "weight-transposed": frozenset({"weights", "layout"}),
    "kernel-flipped": frozenset({"weights", "layout"}),
    "gate-order": frozenset({"recurrent"}),
    "direction-swapped": frozenset({"recurrent"}),
    "layer-skipped": frozenset({"dropped-op"}),
    # Folded, or else an initializer of the node that is still there.
    "bn-stats": frozenset({"bn-folding", "weights"}),
    # Folded, or else an attribute of the node that is still there.
    "bn-eps": frozenset({"bn-folding", "epsilon"}),
    "norm-eps": frozenset({"epsilon"}),
    "padding-mode": frozenset({"padding"}),
    "padding-shifted": frozenset({"padding"}),
    # No slug is about dilations: the pads change with them, and an attribute is a constant of the operator.
    "dilation": frozenset({"padding", "constant"}),
    # A Slice and a Pad before the layer; exporters and simplifiers fold the Pad into a convolution.
    "sampling-phase": frozenset({"indexing", "padding", "extra-op"}),
    "pool-type": frozenset({"pooling"}),
    "pool-divisor": frozenset({"pooling"}),
    "pool-window": frozenset({"pooling"}),
    "activation-dropped": frozenset({"dropped-op"}),
    "activation-other": frozenset({"activation"}),
    "activation-shared": frozenset({"activation"}),
    # An operator that nobody asked for, of a kind that has a name of its own.
    "half-output": frozenset({"precision", "extra-op"}),
    "half-input": frozenset({"precision", "extra-op"}),
    "qdq-output": frozenset({"quantization", "extra-op"}),
    # Simplifiers and ONNX Runtime multiply a factor, or add a shift, into the weights of the layer before it.
    "extra-operator": frozenset({"extra-op", "weights"}),
    "residual-removed": frozenset({"dropped-op"}),
    "branch-removed": frozenset({"dropped-op"}),
    # Where a split is written as one Gather for each part, an exchange of the parts is one of indices.
    "operands-swapped": frozenset({"order", "indexing"}),
    # An activation other or gone, a maximum for a mean; another arithmetic operator is one missing and one too many,
    # and x - branch a factor of -1.
    "operator-changed": frozenset({"activation", "dropped-op", "extra-op", "pooling", "constant"}),
    # Where the model has no factor, a factor is an operator too many; a shift of zero is an operator missing.
    "constant-changed": frozenset({"constant", "extra-op", "dropped-op"}),
    "attention-scale": frozenset({"constant", "extra-op"}),
    "softmax-axis": frozenset({"axis"}),
    "mask-changed": frozenset({"masking"}),
    "interpolate-mode": frozenset({"resize"}),
    # Another index; counting from one is an addition or another table of positions, moved columns are a roll.
    "index-off": frozenset({"indexing", "extra-op", "constant"}),
    # The same at one small size: as what they are a smaller version of.
    "small-noise": _ANY_PARAMETER,
    "small-bias": _ANY_PARAMETER,
    "small-scale": _ANY_PARAMETER,
    "small-channel": frozenset({"weights"}),
    "small-epsilon": frozenset({"bn-folding", "epsilon"}),
    "small-statistics": frozenset({"bn-folding", "weights"}),
    # Weight and bias of a convolution or a linear layer.
    "small-factor": frozenset({"weights"}),
}
# One of the above, which `causes_of` reads from the fault.
CAUSES["one-call"] = frozenset().union(*CAUSES.values())


def causes_of(fault: Fault) -> frozenset[str]:
    """What this fault may be called; of a fault in one call only, what the kind that was planted there may be."""
    planted = fault.detail.partition(",")[0] if fault.kind == "one-call" else fault.kind
    return CAUSES[planted]
