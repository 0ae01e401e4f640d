"""An unstable formula: right in exact arithmetic, wrong in the precision that the file computes in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.double import as_written, in_double

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch

# A few hundred units in the last place of single precision.
_ROUNDING = 3e-5
# What adds up products, or passes numbers on, is no formula that could be unstable.
_STEADY = frozenset(
    {
        "Add", "AveragePool", "Clip", "Concat", "Conv", "ConvTranspose", "Flatten", "Gather", "Gemm", "Identity",
        "LeakyRelu", "MatMul", "MaxPool", "Mul", "Pad", "PRelu", "Relu", "Reshape", "Slice", "Split", "Squeeze",
        "Transpose", "Unsqueeze",
    }
)  # fmt: skip


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One, where the same nodes give the right value in double precision."""
    part = stretch.part
    expected = stretch.expected_wrong
    if part is None or expected is None or expected.dtype != np.float32 or stretch.narrow:
        return
    if stretch.gap() <= _ROUNDING * float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0)):
        return  # next to nothing is lost: some other noise
    if all(node.op_type in _STEADY for node in part.model.graph.node) and np.isfinite(expected).all():
        return
    wide = in_double(part.model, part.feeds)
    if wide is None or wide.size != expected.size:
        return
    if not stretch.alignment.holds(part.value, wide.astype(np.float64, copy=False)):
        return
    single = as_written(part.model, part.feeds)
    if single is not None and stretch.alignment.holds(part.value, single):
        return  # the evaluator reads the nodes in another way than the runtime: that is not precision
    splice = None if stretch.comparison is None else stretch.splice(stretch.comparison.fresh)
    ops = ", ".join(dict.fromkeys(node.op for node in stretch.nodes))
    text = f"{ops} lose the result to rounding or overflow; in double precision the same nodes give the right one."
    remedy = "write the operation in its stable form (log_softmax, logsigmoid, logsumexp), and export again"
    patch = None if splice is None else (splice,)
    yield Hypothesis("numerics", text, {"right_in": "float64"}, patch, remedy, whole=True)
