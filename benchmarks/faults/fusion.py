"""Which modules a runtime's fused operator makes one of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.faults.activations import is_activation
from benchmarks.faults.workpiece import BATCHNORM, FOLDABLE, parent_of

if TYPE_CHECKING:
    from benchmarks.faults.workpiece import Workpiece


def fused_with(piece: Workpiece, path: str) -> tuple[str, ...]:
    """Convolution, BatchNorm, residual join and activation around the module, its seams' readers, and its parent.

    ONNX Runtime's extended level leaves one value for a chain such as Conv, Add, Relu (FusedConv) or Add,
    LayerNormalization (SkipLayerNormalization), and one node for a whole attention.
    """
    found = [*_forward(piece, path), *_backward(piece, path), parent_of(path)]
    for call in piece.survey.calls:
        if call.path == path and call.seam:
            found += [reader.path for reader in piece.survey.consumers(path, call.seam)]
    return tuple(dict.fromkeys(name for name in found if name != path))


def _forward(piece: Workpiece, path: str, seam: str = "") -> list[str]:
    if not seam and is_activation(piece.module(path)):
        return []
    found = []
    for call in piece.survey.consumers(path, seam):
        if (call.path, call.seam) == (path, seam):
            continue
        found.append(call.path)
        goes_on = call.seam == "join" or (not call.seam and isinstance(piece.module(call.path), BATCHNORM))
        if goes_on and not seam:
            found += _forward(piece, call.path, call.seam)
    return found


def _backward(piece: Workpiece, path: str) -> list[str]:
    module = piece.module(path)
    if not (is_activation(module) or isinstance(module, BATCHNORM)):
        return []
    found = []
    for call in piece.survey.producers(path):
        producer = piece.module(call.path)
        if call.seam or isinstance(producer, (*FOLDABLE, *BATCHNORM)):
            found.append(call.path)
            found += [] if call.seam else _backward(piece, call.path)
    return found
