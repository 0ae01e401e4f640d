"""ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from layerdiff.backends.base import Optimisation
from layerdiff.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx

_OWN_ERRORS = (
    "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
    "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail", "NotFound",
)  # fmt: skip
_ERRORS: tuple[type[Exception], ...] = (
    *(error for name in _OWN_ERRORS if (error := getattr(state, name, None)) is not None),
    RuntimeError,
    ValueError,
)

_LEVELS = {
    Optimisation.AS_SHIPPED: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    Optimisation.NONE: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}


class OnnxRuntime:
    """ONNX Runtime with the given execution providers (default: the CPU)."""

    name = "onnxruntime"

    def __init__(self, providers: Sequence[str] = ("CPUExecutionProvider",), threads: int | None = None) -> None:
        missing = [p for p in providers if p not in ort.get_available_providers()]
        if missing:
            raise BackendError(
                f"onnxruntime {ort.__version__} here has no {', '.join(missing)}; it has "
                f"{', '.join(ort.get_available_providers())}. Install the runtime build that brings it."
            )
        self._providers = list(providers)
        self._threads = threads

    def open(self, model: str | Path | onnx.ModelProto, optimisation: Optimisation) -> _OrtSession:
        """A session for a model; `BackendError` when the runtime refuses it."""
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimisation]
        options.log_severity_level = 4
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        source = str(model) if isinstance(model, (str, Path)) else model.SerializeToString()
        try:
            return _OrtSession(ort.InferenceSession(source, options, providers=self._providers))
        except _ERRORS as error:
            raise BackendError(f"onnxruntime {ort.__version__} refuses the model: {_first_line(error)}") from error

    def describe(self) -> dict[str, str]:
        """Version and execution providers."""
        return {"onnxruntime": ort.__version__, "providers": ", ".join(self._providers)}


class _OrtSession:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any] | None]:
        names = list(outputs) if outputs is not None else [output.name for output in self._session.get_outputs()]
        try:
            arrays = self._session.run(names, dict(feeds))
        except _ERRORS as error:
            raise BackendError(f"onnxruntime {ort.__version__} failed while running: {_first_line(error)}") from error
        return {n: a if isinstance(a, np.ndarray) else None for n, a in zip(names, arrays, strict=True)}


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
