"""ONNX Runtime."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as state

from layerdiff.backends.base import Optimisation
from layerdiff.backends.narrow import NARROW, narrowed, widened
from layerdiff.errors import BackendError, Death, RuntimeDiedError
from layerdiff.external import folder_of, with_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from layerdiff.backends.room import Room

_OWN_ERRORS = (
    "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
    "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail", "NotFound",
)  # fmt: skip
_ERRORS: tuple[type[Exception], ...] = (
    *(error for name in _OWN_ERRORS if (error := getattr(state, name, None)) is not None),
    RuntimeError,
    ValueError,
    MemoryError,
)
# What onnxruntime and the C++ library below it say when an allocation fails.
_MEMORY = re.compile(r"allocate memory|bad.?alloc|out of memory|Available memory of", re.IGNORECASE)

# The graph transformers and rewrite rules of onnxruntime 1.31 (core/optimizer/graph_transformer_utils.cc); a name that
# another version does not know is ignored there.
PASSES = (
    "EliminateIdentity", "EliminateSlice", "UnsqueezeElimination", "EliminateDropout", "ExpandElimination",
    "CastElimination", "CastChainElimination", "PreShapeNodeElimination", "NoopElimination", "DivMulFusion",
    "FuseReluClip", "GemmSumFusion", "GemmTransposeFusion", "NotWhereFusion", "ConvAddFusion", "ConvMulFusion",
    "ConvBNFusion", "Pad_Fusion", "PadFusion", "MatmulBNFusion", "MatMul_BatchNormalization_Fusion",
    "LabelEncoderFusion", "ClipQuantRewrite", "CommonSubexpressionElimination", "ConstantFolding", "ConstantSharing",
    "MatMulAddFusion", "ReshapeFusion", "FreeDimensionOverrideTransformer", "DoubleQDQPairsRemover",
    "TransposeOptimizer", "QDQPropagationTransformer", "EnsureUniqueDQForNodeUnit", "WeightBiasQuantization",
    "GeluFusionL1", "GeluFusionL2", "GeluFusion", "LayerNormFusionL1", "LayerNormFusionL2", "LayerNormFusion",
    "SimplifiedLayerNormFusion", "GemmActivationFusion", "MatMulIntegerToFloatFusion", "DynamicQuantizeMatMulFusion",
    "ConvActivationFusion", "ConvAddActivationFusion", "AttentionFusion", "EmbedLayerNormFusion",
    "GatherSliceToSplitFusion", "GatherToSplitFusion", "GatherToSliceFusion", "MatmulTransposeFusion",
    "BiasGeluFusion", "SkipLayerNormFusion", "BiasSkipLayerNormFusion", "FastGeluFusion", "QuickGeluFusion",
    "BiasSoftmaxFusion", "BiasDropoutFusion", "MatMulScaleFusion", "MatMulActivationFusion", "MatMulNBitsFusion",
    "DQMatMulNBitsFusion", "QDQSelectorActionTransformer", "QDQFinalCleanupTransformer", "QDQS8ToU8Transformer",
    "Avx2WeightS8ToU8Transformer", "SliceConcatToSpaceToDepthFusion", "GroupQueryAttentionPreNormFusion",
    "IsInfReduceSumFusion", "NchwcTransformer", "NhwcTransformer", "ConvTransposeAddFusion",
)  # fmt: skip

# Where the external data of a model that is given as bytes lies; 1.20 takes the entry and does not look at it.
_FOLDER_ENTRY = "session.model_external_initializers_file_folder_path"
_TAKES_FOLDER = tuple(int(part) for part in ort.__version__.split(".")[:2]) >= (1, 21)

_LEVELS = {
    Optimisation.AS_SHIPPED: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    Optimisation.EXTENDED: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    Optimisation.BASIC: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
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

    @property
    def passes(self) -> Sequence[str]:
        """The names that ``disabled_optimizers`` takes."""
        return PASSES

    def open(
        self, model: str | Path | onnx.ModelProto, optimisation: Optimisation, disabled: Sequence[str] = ()
    ) -> _OrtSession:
        """A session for a model; `BackendError` when the runtime refuses it."""
        return _OrtSession(self._session(model, self._options(optimisation), disabled))

    def optimised(self, model: str | Path | onnx.ModelProto, optimisation: Optimisation) -> onnx.ModelProto:
        """The graph that onnxruntime runs at an optimisation level, as it saves it."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "optimised.onnx"
            options = self._options(optimisation)
            options.optimized_model_filepath = str(path)
            self._session(model, options, ())
            return onnx.load_model(path)

    def _options(self, optimisation: Optimisation) -> ort.SessionOptions:
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[optimisation]
        if optimisation is Optimisation.NONE:  # as the file lists them: what is not read any more goes at once
            options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
            options.add_session_config_entry("session.disable_prepacking", "1")  # run once: copies do not pay
        options.log_severity_level = 4
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        return options

    def _session(
        self, model: str | Path | onnx.ModelProto, options: ort.SessionOptions, disabled: Sequence[str]
    ) -> ort.InferenceSession:
        if isinstance(model, (str, Path)):
            source: str | bytes = str(model)
        else:
            folder = folder_of(model)
            if folder is not None and _TAKES_FOLDER:
                options.add_session_config_entry(_FOLDER_ENTRY, str(folder))
            elif folder is not None:
                model = with_weights(model)
            source = model.SerializeToString()
        try:
            return ort.InferenceSession(
                source, options, providers=self._providers, disabled_optimizers=list(disabled) or None
            )
        except _ERRORS as error:
            raise _failure("refuses the model", error, self._advice(error)) from error

    def _advice(self, error: Exception) -> str:
        """The next step where the runtime has no kernel for an operator in the type it gets."""
        if not isinstance(error, ort.capi.onnxruntime_pybind11_state.NotImplemented):
            return ""
        return (
            f"; {', '.join(self._providers)} computes this operator in other number formats only (bfloat16 and float64 "
            "are often missing): export in float32, or give backend=OnnxRuntime([...]) with a provider that has it"
        )

    def without(self, passes: Sequence[str]) -> str:
        """A session without some passes."""
        return f"onnxruntime.InferenceSession(path, disabled_optimizers={list(passes)!r})"

    def describe(self) -> dict[str, str]:
        """Version and execution providers."""
        return {"onnxruntime": ort.__version__, "providers": ", ".join(self._providers)}


class _OrtSession:
    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self._inputs = {port.name: port.type for port in session.get_inputs() if port.type in NARROW}
        kinds = [port.type for port in (*session.get_inputs(), *session.get_outputs())]
        dense = all(kind.startswith("tensor(") and kind != "tensor(string)" for kind in kinds)
        self._foreign = not dense and NARROW.keys().isdisjoint(kinds)

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any] | None]:
        names = list(outputs) if outputs is not None else [output.name for output in self._session.get_outputs()]
        try:
            arrays = self._arrays(names, feeds)
        except _ERRORS as error:
            raise _failure("failed while running", error) from error
        return {n: a if isinstance(a, np.ndarray) else None for n, a in zip(names, arrays, strict=True)}

    def run_into(self, room: Room, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any] | None]:
        ports = self._session.get_outputs()
        takes = not self._foreign and all(array.dtype.kind in "fciub" for array in feeds.values()) and not self._inputs
        places = {p.name: a for p in ports if p.type == "tensor(float)" and (a := room.take(p.name)) is not None}
        if not takes or not places:
            return self.run(feeds)
        binding = self._session.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array)))
        for port in ports:
            if port.name in places:
                array = places[port.name]
                binding.bind_output(port.name, "cpu", 0, np.float32, array.shape, array.ctypes.data)
            else:
                binding.bind_output(port.name, "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except _ERRORS:  # a shape is another one than was inferred: run as usual, or told there
            return self.run(feeds)
        found = {port.name: value for port, value in zip(ports, binding.get_outputs(), strict=True)}
        rest = {n: widened(v) if v.data_type() in NARROW else v.numpy() for n, v in found.items() if n not in places}
        return {port.name: places.get(port.name, rest.get(port.name)) for port in ports}

    def _arrays(self, names: list[str], feeds: Mapping[str, np.ndarray[Any, Any]]) -> list[Any]:
        if self._foreign or any(array.dtype.kind not in "fciub" for array in feeds.values()):
            return list(self._session.run(names, dict(feeds)))
        given = {
            name: narrowed(array, self._inputs[name])
            if name in self._inputs
            else ort.OrtValue.ortvalue_from_numpy(array if array.flags.c_contiguous else array.copy())
            for name, array in feeds.items()
        }
        found = self._session.run_with_ort_values(names, given)
        return [widened(v) if v.data_type() in NARROW else v.numpy() for v in found]  # numpy() shares the memory


def _failure(what: str, error: Exception, advice: str = "") -> BackendError:
    """The runtime's own words as an error of ours."""
    text = _first_line(error)
    if isinstance(error, MemoryError) or _MEMORY.search(str(error)):
        return RuntimeDiedError(f"onnxruntime {ort.__version__} ran out of memory: {text}", Death.MEMORY)
    return BackendError(f"onnxruntime {ort.__version__} {what}: {text}{advice}")


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
