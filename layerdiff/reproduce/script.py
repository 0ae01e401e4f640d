"""The text of reproduce.py: it stands alone, so it is kept as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_SCRIPT = '''"""{title}

Runs both sides on the same inputs. Exit code 1: they differ, 0: they agree.
Needs torch, onnx, onnxruntime and numpy.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from reference import Reference

HERE = Path(__file__).parent
TORCH_INPUTS = {torch_inputs}
ONNX_INPUTS = {onnx_inputs}


def main() -> int:
    arrays, recorded = np.load(HERE / "inputs.npz"), np.load(HERE / "expected.npz")
    with torch.no_grad():
        result = Reference()(*(torch.from_numpy(arrays[key]).to(dtype) for key, dtype in TORCH_INPUTS))
    expected = result.to(torch.float32).numpy() if result.dtype == torch.bfloat16 else result.numpy()
    model = onnx.load(HERE / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    actual = session.run(None, {{name: arrays[key] for name, key in ONNX_INPUTS.items()}})[0]
    print(f"torch {{torch.__version__}}, onnx {{onnx.__version__}}, onnxruntime {{onnxruntime.__version__}}")
    print("ONNX nodes:", ", ".join(node.op_type for node in model.graph.node))
    print(f"PyTorch: {{expected.dtype}} {{expected.shape}}, ONNX: {{actual.dtype}} {{actual.shape}}")
    if expected.size != actual.size:
        print("DIFFERS: the sizes are not the same")
        return 1
    actual = actual.reshape(expected.shape)  # exporters move axes of size one
    if expected.dtype.kind in "iub":
        wrong = expected != actual
        gap = wrong.astype(np.float64)
    else:
        wide = np.complex128 if expected.dtype.kind == "c" else np.float64
        e, a = expected.astype(wide), actual.astype(wide)
        with np.errstate(invalid="ignore"):
            gap = np.abs(e - a)
            wrong = ~((gap <= recorded["limit"]) | (e == a) | (np.isnan(e) & np.isnan(a)))
    if not wrong.any():
        print("agrees: every element is within what rounding explains")
        return 0
    worst = np.unravel_index(np.argmax(np.where(wrong, np.nan_to_num(gap, nan=np.inf), -1)), gap.shape)
    print(f"DIFFERS: {{int(wrong.sum())}} of {{wrong.size}} elements, worst at {{tuple(map(int, worst))}}: "
          f"PyTorch {{expected[worst]:.8g}}, ONNX {{actual[worst]:.8g}}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
'''


def script(title: str, torch_inputs: Sequence[tuple[str, str]], onnx_inputs: Mapping[str, str]) -> str:
    """The script of a case: which arrays of inputs.npz go in on either side."""
    pairs = ", ".join(f"({key!r}, {dtype})" for key, dtype in torch_inputs)
    safe = title.replace("\\", "/").replace('"', "'")
    return _SCRIPT.format(title=safe, torch_inputs=f"[{pairs}]", onnx_inputs=repr(dict(onnx_inputs)))
