"""Which operators of one side can end the computation of which operators of the other.

A torch operator is written with its namespace on either side (`aten.relu`). An ONNX operator is bare in a candidate
(`Relu`) and written `onnx.Relu` in a reference. Operators are hints here, as names are: an exporter may decompose and a
runtime may fuse. The tables only have to make the right pair more likely than a wrong one; values and healing decide.
"""

from __future__ import annotations

from functools import lru_cache

# Operators that move no number, by their aten name without namespace and overload.
RESHAPING = frozenset(
    {
        "view", "_unsafe_view", "reshape", "unsqueeze", "unsqueeze_", "squeeze", "squeeze_", "flatten", "detach",
        "detach_", "alias", "clone", "contiguous", "lift_fresh", "_reshape_alias", "native_dropout",
        "view_as_real", "view_as_complex",
    }
)  # fmt: skip

# The same of ONNX.
_ONNX_RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
_ONNX_MOVING = frozenset({"Transpose", "Expand"})
ONNX = "onnx."

_ARITHMETIC = {"Add", "Sub", "Mul", "Div"}
_ENDS: dict[str, set[str]] = {
    "convolution": {"Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "Add"},
    "addmm": {"Gemm", "Add", "FusedMatMul", "MatMul", "QGemm", "MatMulNBits"},
    "mm": {"MatMul", "Gemm", "FusedMatMul", "QLinearMatMul"},
    "bmm": {"MatMul", "Gemm", "FusedMatMul", "QLinearMatMul", "Einsum"},
    "native_batch_norm": {"BatchNormalization", "Conv", "Add", "Gemm", "ConvTranspose", "QLinearConv"},
    "native_layer_norm": {"LayerNormalization", "Add", "Mul", "SkipLayerNormalization"},
    "native_group_norm": {"GroupNormalization", "Add", "GroupNorm", "InstanceNormalization"},
    "rms_norm": {"Mul", "RMSNormalization", "SimplifiedLayerNormalization"},
    "relu": {"Relu", "Clip"},
    "silu": {"Mul", "Swish", "QuickGelu"},
    "gelu": {"Mul", "Gelu", "FastGelu", "BiasGelu", "QuickGelu"},
    "hardswish": {"HardSwish", "Mul", "Div"},
    "hardsigmoid": {"HardSigmoid", "Div", "Clip"},
    "hardtanh": {"Clip"},
    "clamp": {"Clip", "Min", "Max"},
    "leaky_relu": {"LeakyRelu"},
    "elu": {"Elu", "Selu", "Celu"},
    "max_pool2d_with_indices": {"MaxPool"},
    "max_pool3d_with_indices": {"MaxPool"},
    "avg_pool2d": {"AveragePool"},
    "_adaptive_avg_pool2d": {"GlobalAveragePool", "AveragePool", "ReduceMean"},
    "mean": {"ReduceMean", "GlobalAveragePool"},
    "sum": {"ReduceSum"},
    "_softmax": {"Softmax"},
    "_safe_softmax": {"Softmax", "Where"},
    "_log_softmax": {"LogSoftmax"},
    "cat": {"Concat"},
    "stack": {"Concat"},
    "remainder": {"Mod", "Sub"},
    "fmod": {"Mod", "Sub"},
    "floor_divide": {"Floor", "Div", "Sub"},
    "embedding": {"Gather", "EmbedLayerNormalization"},
    "upsample_nearest2d": {"Resize", "Upsample"},
    "upsample_bilinear2d": {"Resize", "Upsample"},
    "upsample_bicubic2d": {"Resize"},
    "transpose": {"Transpose", "Einsum"},  # einsum permutes what a product gives
    "permute": {"Transpose", "Einsum"},
    "t": {"Transpose"},
    "slice": {"Slice", "Split"},
    "select": {"Gather", "Slice"},
    "split": {"Split", "Slice"},
    "split_with_sizes": {"Split", "Slice"},
    "chunk": {"Split", "Slice"},
    "unbind": {"Split", "Gather", "Squeeze"},
    "index": {"Gather", "GatherND", "GatherElements", "Slice"},
    "gather": {"GatherElements"},
    "expand": {"Expand", "Tile"},
    "constant_pad_nd": {"Pad"},
    "reflection_pad2d": {"Pad"},
    "masked_fill": {"Where"},
    "where": {"Where"},
    "_scaled_dot_product_flash_attention_for_cpu": {"MatMul", "Attention", "MultiHeadAttention"},
    "_scaled_dot_product_attention_math": {"MatMul", "Attention", "MultiHeadAttention"},
    "scaled_dot_product_attention": {"MatMul", "Attention", "MultiHeadAttention"},
    "nn.LSTM": {"LSTM", "Transpose", "Squeeze", "Reshape", "Concat"},
    "nn.GRU": {"GRU", "Transpose", "Squeeze", "Reshape", "Concat"},
    "nn.RNN": {"RNN", "Transpose", "Squeeze", "Reshape", "Concat"},
    "rsub": {"Sub"},
    "add": {"Add", "SkipLayerNormalization", "Gemm"},
    "sub": {"Sub", "Add"},
    "mul": {"Mul", "Div", "Pow"},
    "div": {"Div", "Mul"},
    "topk": {"TopK"},
    "argmax": {"ArgMax"},
    "pixel_shuffle": {"DepthToSpace", "Reshape"},
}
_SELF_NAMED = {
    "sigmoid",
    "tanh",
    "exp",
    "log",
    "sqrt",
    "erf",
    "pow",
    "neg",
    "abs",
    "softplus",
    "cos",
    "sin",
    "reciprocal",
}
# An operator that was replaced was most likely replaced by one of its kin.
_KIN: tuple[tuple[frozenset[str], frozenset[str]], ...] = (
    (
        frozenset(
            {"max_pool2d_with_indices", "avg_pool2d", "_adaptive_avg_pool2d", "max_pool3d_with_indices", "avg_pool3d"}
        ),
        frozenset({"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"}),
    ),
    (frozenset({"add", "sub", "mul", "div", "rsub", "pow"}), frozenset(_ARITHMETIC | {"Pow", "Min", "Max"})),
    (
        frozenset({"mean", "sum", "amax", "amin", "max", "min"}),
        frozenset({"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin"}),
    ),
    (frozenset({"_softmax", "_safe_softmax", "_log_softmax"}), frozenset({"Softmax", "LogSoftmax", "Hardmax"})),
    (
        frozenset(
            {"constant_pad_nd", "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"}
        ),
        frozenset({"Pad"}),
    ),
    (
        frozenset({"upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa"}),
        frozenset({"Resize", "Upsample"}),
    ),
)
ONNX_ACTIVATIONS = frozenset(
    {
        "Relu", "HardSwish", "Gelu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "Clip", "PRelu", "Swish", "Softplus",
        "Mish", "HardSigmoid", "Selu", "Celu", "QuickGelu", "FastGelu", "BiasGelu", "ThresholdedRelu", "Softsign",
    }
)  # fmt: skip
ACTIVATIONS = frozenset(
    {
        "relu", "relu6", "silu", "gelu", "hardswish", "hardsigmoid", "hardtanh", "clamp", "clamp_min", "leaky_relu",
        "elu", "celu", "selu", "mish", "sigmoid", "tanh", "softplus", "threshold", "prelu", "_prelu_kernel",
    }
)  # fmt: skip
_KNOWN_ENDS = set().union(*_ENDS.values()) | {name.capitalize() for name in _SELF_NAMED}


# ONNX operators that the rest of layerdiff asks for by their torch names.
_TORCH_NAMES = {
    "Conv": "convolution", "BatchNormalization": "native_batch_norm", "Pad": "constant_pad_nd", "Gather": "embedding",
    "Gemm": "addmm", "MatMul": "mm", "ArgMax": "argmax", "ArgMin": "argmin", "TopK": "topk",
}  # fmt: skip
# What torch calls an operator where a kernel of the GPU computes it.
_ON_GPUS = {
    "cudnn_batch_norm": "native_batch_norm",
    "miopen_batch_norm": "native_batch_norm",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_cudnn_attention": "scaled_dot_product_attention",
}
# Operators of torch that do the same in another way: eight bits, another kernel.
_TORCH_KIN: tuple[frozenset[str], ...] = (
    frozenset({"addmm", "mm", "bmm", "matmul", "linear", "linear_dynamic", "linear_relu_dynamic"}),
    frozenset({"native_batch_norm", "_native_batch_norm_legit_no_training", "batch_norm"}),
    frozenset({"convolution", "_convolution", "mkldnn_convolution", "_slow_conv2d_forward"}),
    frozenset({"nn.LSTM", "nn.GRU", "nn.RNN"}),
    *(torch_ops for torch_ops, _ in _KIN),
    ACTIVATIONS,
)  # fmt: skip


@lru_cache(maxsize=4096)
def base_name(op: str) -> str:
    """``aten.add_.Tensor`` → ``add``: no namespace, no overload, no in-place mark; ``onnx.Conv`` → ``convolution``."""
    if op.startswith("nn."):
        return op
    if op.startswith(ONNX):
        return _TORCH_NAMES.get(op.removeprefix(ONNX), op)
    name = op.split(".")[1] if "." in op else op
    name = _ON_GPUS.get(name, name)
    return name if name in RESHAPING or name.startswith("_") else name.rstrip("_")


@lru_cache(maxsize=4096)
def likeness(op: str, other: str) -> float:
    """1 when a candidate's operator can end one of the reference, 0.5 for its kin, -1 when neither, 0 when unknown."""
    if op.startswith(ONNX):
        own = op.removeprefix(ONNX)
        return likeness(other, own) if is_torch(other) else _likeness_in_onnx(own, other)
    if is_torch(other):
        return _likeness_in_torch(base_name(op), base_name(other))
    name = base_name(op)
    certain = _likeness(name, other)
    if certain < 1 and (
        (name in ACTIVATIONS and other in ONNX_ACTIVATIONS)
        or any(name in torch_ops and other in onnx_ops for torch_ops, onnx_ops in _KIN)
    ):
        return 0.5
    return certain


def is_torch(op: str) -> bool:
    """Whether a candidate's operator is one of torch; a type of ONNX has no namespace."""
    return "." in op


def _likeness(name: str, onnx_op: str) -> float:
    if name in _SELF_NAMED:
        return 1.0 if onnx_op.lower() == name else -1.0
    ends = _ENDS.get(name)
    if ends is None:
        return 0.0
    if onnx_op in ends:
        return 1.0
    return -1.0 if onnx_op in _KNOWN_ENDS or onnx_op in _ARITHMETIC else 0.0


def _likeness_in_onnx(op: str, other: str) -> float:
    """Both of ONNX: the same, or two that the same torch operator may end in (what an optimizer makes of it)."""
    if op == other:
        return 1.0
    kin = any(op in ends and other in ends for ends in (*_ENDS.values(), *(onnx_ops for _, onnx_ops in _KIN)))
    if kin or (op in ONNX_ACTIVATIONS and other in ONNX_ACTIVATIONS):
        return 0.5
    return -1.0 if op in _KNOWN_ENDS and other in _KNOWN_ENDS else 0.0


def _likeness_in_torch(name: str, other: str) -> float:
    """Both of torch: the same, or kin."""
    if name == other:
        return 1.0
    if any(name in kin and other in kin for kin in _TORCH_KIN):
        return 0.5
    known = _SELF_NAMED | _ENDS.keys()
    return -1.0 if name in known and other in known else 0.0


@lru_cache(maxsize=4096)
def only_moves(op: str) -> bool:
    """Whether an operator computes nothing: it reshapes, permutes or repeats what it gets."""
    moving = {"transpose", "permute", "t", "expand", "numpy_T", "movedim", "swapaxes"}
    return is_reshaping(op) or base_name(op) in moving or op.removeprefix(ONNX) in _ONNX_MOVING


@lru_cache(maxsize=4096)
def is_reshaping(op: str) -> bool:
    """Whether an operator only renames or reshapes what it gets."""
    return base_name(op) in RESHAPING or op.removeprefix(ONNX) in _ONNX_RESHAPING


@lru_cache(maxsize=4096)
def is_batch_norm(op: str) -> bool:
    """Whether an operator is a BatchNorm, on either side."""
    return "batch_norm" in base_name(op) or op == "BatchNormalization"
