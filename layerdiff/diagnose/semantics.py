"""The right operator with a wrong attribute or operand, another operator, one too few or one too many.

Every difference between the accused nodes and what the stretch should have become is a hypothesis of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.difference import RESHAPING, Difference, What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.operators import ACTIVATIONS, ONNX_ACTIVATIONS, base_name
from layerdiff.patch import Change, Rewire, SetAttribute, SetConstant, SetOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch

POOLS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "MaxRoiPool"}
)
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
NORMS = frozenset(
    {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
)
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"}
)
_BY_ATTRIBUTE = {
    "epsilon": "epsilon", "axis": "axis", "axes": "axis", "keepdims": "axis", "noop_with_empty_axes": "axis",
    "perm": "layout", "pads": "padding", "auto_pad": "padding", "training_mode": "training-mode", "to": "dtype",
    "alpha": "activation", "beta": "activation", "gamma": "activation", "approximate": "activation",
    "min": "activation", "max": "activation", "fmod": "rounding", "upper": "masking", "is_causal": "masking",
    "unidirectional": "masking", "num_groups": "constant", "group": "constant",
    "largest": "ties", "sorted": "ties", "select_last_index": "ties", "reduction": "indexing", "batch_dims": "indexing",
    "num_outputs": "indexing", "equation": "axis",
}  # fmt: skip
_BY_OPERATOR: dict[str, str] = (
    dict.fromkeys(POOLS, "pooling")
    | dict.fromkeys(RECURRENT, "recurrent")
    | dict.fromkeys(("Resize", "Upsample", "GridSample", "AffineGrid"), "resize")
    | dict.fromkeys(("Gather", "GatherElements", "GatherND", "Slice", "Split", "OneHot"), "indexing")
    | dict.fromkeys(("ScatterElements", "ScatterND", "Scatter", "NonZero", "Compress"), "indexing")
    | dict.fromkeys(("Reshape", "Transpose", "DepthToSpace", "SpaceToDepth", "Flatten", "Expand", "Tile"), "layout")
    | dict.fromkeys(REDUCTIONS | {"Softmax", "LogSoftmax", "Hardmax", "Squeeze", "Unsqueeze", "CumSum"}, "axis")
    | dict.fromkeys(("Where", "Trilu"), "masking")
    | dict.fromkeys(("TopK", "ArgMax", "ArgMin"), "ties")
    | dict.fromkeys(("Round", "Floor", "Ceil", "Mod"), "rounding")
    | {"Pad": "padding", "Concat": "order", "Cast": "dtype"}
    | dict.fromkeys(ONNX_ACTIVATIONS, "activation")
)
# The cause that the reference operator suggests when its whole lowering is another.
_BY_SITE: dict[str, str] = {
    "native_batch_norm": "bn-folding", "native_layer_norm": "epsilon", "native_group_norm": "epsilon",
    "cat": "order", "slice": "indexing", "select": "indexing", "index": "indexing", "gather": "indexing",
    "index_select": "indexing", "scatter": "indexing", "scatter_add": "indexing", "index_put": "indexing",
    "embedding": "indexing", "constant_pad_nd": "padding", "permute": "layout", "transpose": "layout",
    "pixel_shuffle": "layout", "topk": "ties", "sort": "ties", "argsort": "ties", "argmax": "ties",
    "remainder": "rounding", "fmod": "rounding", "round": "rounding", "floor": "rounding", "floor_divide": "rounding",
    "masked_fill": "masking", "where": "masking", "tril": "masking", "triu": "masking", "convolution": "padding",
    "_softmax": "axis", "_log_softmax": "axis", "cumsum": "axis", "roll": "indexing", "flip": "order",
}  # fmt: skip


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for every difference that a change of one node cures."""
    if stretch.comparison is None:
        return
    for difference in stretch.comparison.differences:
        change = change_for(stretch, difference)
        cause = cause_of(difference)
        if change is None or cause is None:
            continue
        node = difference.node
        yield Hypothesis(
            cause,
            text_of(difference),
            {
                "node": "" if node is None else node.name,
                "operator": difference.op,
                **({"attribute": difference.name} if difference.name else {"operand": difference.slot}),
                "wanted": shown(difference.wanted),
                "got": shown(difference.got),
            },
            (change,),
        )


def cause_of(difference: Difference) -> str | None:
    """The slug for a difference; None for a constant that is a weight."""
    node, wanted = difference.node, difference.wanted_node
    if difference.what is What.ATTRIBUTE:
        own = _BY_OPERATOR.get(difference.op)
        if own in ("pooling", "resize", "recurrent", "padding"):
            return own
        return _BY_ATTRIBUTE.get(difference.name, own or "constant")
    if difference.what is What.WIRING:
        return "order"
    if difference.what is What.OPERATOR:
        assert node is not None
        assert wanted is not None
        return _replaced(wanted.op, node.op)
    if difference.what is What.EXTRA:
        return "layout" if difference.op == "Transpose" else "extra-op"
    if difference.what is What.MISSING:
        return "layout" if difference.op in RESHAPING | {"Transpose"} else "dropped-op"
    return _constant_cause(difference)


def _replaced(wanted: str, got: str) -> str:
    if {wanted, got} <= ONNX_ACTIVATIONS | {"Sin", "Cos", "Exp", "Abs", "Erf", "Sqrt", "Log", "Neg"}:
        return "activation"
    if wanted in POOLS or got in POOLS:
        return "pooling"
    return _BY_OPERATOR.get(wanted, "dropped-op")


def _constant_cause(difference: Difference) -> str | None:
    wanted, got = difference.wanted, difference.got
    if isinstance(got, np.ndarray) and isinstance(wanted, str) and wanted:
        return "baked-constant"
    if difference.op in ("Add", "Sub") and isinstance(wanted, np.ndarray) and mask_values(wanted):
        return "masking"
    own = _BY_OPERATOR.get(difference.op)
    if own is not None:
        return own
    if difference.op == "Add" and isinstance(wanted, np.ndarray) and wanted.size == 1 and 0 < float(wanted) <= 1e-2:
        return "epsilon"
    if isinstance(wanted, np.ndarray) and wanted.size > 1 and wanted.dtype.kind == "b":
        return "masking"
    return "constant"


def mask_values(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array is an additive mask: zeros, and huge negative numbers."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    return bool(np.all((array == 0) | (array < -1e4)) and np.any(array < -1e4))


def change_for(stretch: Stretch, difference: Difference) -> Change | None:
    """The change of one node that takes a difference away; None where it needs more than that."""
    node, wanted = difference.node, difference.wanted_node
    if node is None:
        return None
    if difference.what is What.ATTRIBUTE:
        return SetAttribute(node.outputs[0], difference.name, difference.wanted)
    if difference.what is What.CONSTANT and isinstance(difference.wanted, np.ndarray):
        return SetConstant(node.outputs[0], difference.slot, difference.wanted)
    if difference.what is What.WIRING:
        tensor = next(iter(sorted(difference.wanted)))
        return Rewire(node.outputs[0], difference.slot, tensor)
    if difference.what is What.OPERATOR and wanted is not None and len(wanted.inputs) == len(node.inputs):
        return SetOperator(node.outputs[0], wanted.op, tuple(sorted(wanted.attributes.items())))
    if difference.what is What.CONSTANT and isinstance(difference.wanted, str) and difference.wanted:
        inputs = {} if stretch.comparison is None else stretch.comparison.fresh.inputs
        value = inputs.get(difference.wanted)
        tensor_name = None if value is None else stretch.holder(value)
        return None if tensor_name is None else Rewire(node.outputs[0], difference.slot, tensor_name)
    return None


def text_of(difference: Difference) -> str:
    """One sentence about a difference."""
    node, op = difference.node, difference.op
    wanted, got = shown(difference.wanted), shown(difference.got)
    if difference.what is What.ATTRIBUTE:
        return f"{op} has {difference.name}={got}; the model's is {wanted}."
    if difference.what is What.OPERATOR:
        assert node is not None
        return f"The file computes {node.op} where the model computes {op}."
    if difference.what is What.WIRING:
        return f"{op} reads {got} as operand {difference.slot}; it should read {wanted}."
    if difference.what is What.EXTRA:
        return f"{op} is in the file and not in the model."
    if difference.what is What.MISSING:
        return f"{op} is missing from the file."
    return f"Operand {difference.slot} of {op} is {got}; the model's is {wanted}."


def shown(value: Any) -> Any:
    """A value as it goes into a report: numbers short, large arrays by shape and range."""
    if isinstance(value, np.ndarray):
        if value.size <= 8:
            return value.tolist()
        text = "x".join(map(str, value.shape))
        if value.dtype.kind == "f":
            text += f" values in [{np.nanmin(value):.4g}, {np.nanmax(value):.4g}]"
        return text
    if isinstance(value, frozenset):
        return ", ".join(sorted(value))
    return value if isinstance(value, (int, float, str, list, type(None))) else str(value)


def cause_by_site(stretch: Stretch) -> str:
    """What the reference operators suggest, where the file's nodes are altogether different ones."""
    names = [base_name(site.op) for site in stretch.sites]
    for name in reversed(names):
        if name in ACTIVATIONS:
            return "activation"
        if "pool" in name:
            return "pooling"
        if name.startswith("upsample") or name in ("grid_sampler_2d", "grid_sampler_3d"):
            return "resize"
        if "_pad" in name:
            return "padding"
        if "attention" in name:
            return "masking"
        if name.startswith("nn."):
            return "recurrent"
        if name in _BY_SITE:
            return _BY_SITE[name]
    return "constant" if {"mul", "div", "add", "sub", "rsub", "pow"} & set(names) else "unknown"
