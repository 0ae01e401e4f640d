"""The right operator with a wrong attribute or operand, another operator, one too few or one too many.

Every difference between the accused nodes and what the stretch should have become is a hypothesis of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.difference import Difference, What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.parts import RESHAPING
from layerdiff.diagnose.wires import Wire, put_in, wire
from layerdiff.graph import RANDOM
from layerdiff.operators import ACTIVATIONS, ONNX, ONNX_ACTIVATIONS, base_name, is_torch, likeness
from layerdiff.patch import Rewire, SetAttribute, SetConstant, SetOperator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.graph import Node
    from layerdiff.model import Site
    from layerdiff.patch import Patch

POOLS = frozenset(
    {"MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "GlobalLpPool", "MaxRoiPool"}
)
RECURRENT = frozenset({"LSTM", "GRU", "RNN"})
_RECURRENT_WEIGHTS = (1, 2, 3)
NORMS = frozenset(
    {"BatchNormalization", "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization"}
)
REDUCTIONS = frozenset(
    {"ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp"}
)
# Operators of torch that take a part of what they get.
SELECTIONS = frozenset(
    {
        *("slice", "select", "narrow", "index", "index_select", "gather", "flip", "roll"),
        *("unbind", "split", "split_with_sizes", "chunk"),
    }
)
_BY_ATTRIBUTE = {
    "epsilon": "epsilon", "axis": "axis", "axes": "axis", "keepdims": "axis", "noop_with_empty_axes": "axis",
    "perm": "layout", "pads": "padding", "auto_pad": "padding", "output_padding": "padding",
    "training_mode": "training-mode", "to": "dtype",
    "alpha": "activation", "beta": "activation", "gamma": "activation", "approximate": "activation",
    "min": "activation", "max": "activation", "fmod": "rounding", "upper": "masking", "is_causal": "masking",
    "unidirectional": "masking", "num_groups": "constant", "group": "constant",
    "largest": "order", "sorted": "order",
    "select_last_index": "ties", "reduction": "indexing", "batch_dims": "indexing",
    "num_outputs": "indexing", "equation": "axis",
}  # fmt: skip
# The same by the argument names of torch's operators.
_BY_ARGUMENT = {
    "eps": "epsilon", "dim": "axis", "dims": "layout", "dim0": "layout", "dim1": "layout", "training": "training-mode",
    "train": "training-mode", "negative_slope": "activation", "approximate": "activation", "min_val": "activation",
    "max_val": "activation", "alpha": "activation", "padding": "padding", "pad": "padding", "stride": "constant",
    "dilation": "constant", "other": "constant", "dtype": "dtype", "keepdim": "axis", "start": "indexing",
    "end": "indexing", "index": "indexing", "step": "indexing", "align_corners": "resize", "is_causal": "masking",
    "diagonal": "masking", "rounding_mode": "rounding", "largest": "order", "descending": "order",
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
    | dict.fromkeys(("TopK", "ArgMax", "ArgMin"), "indexing")
    | dict.fromkeys(("Round", "Floor", "Ceil", "Mod"), "rounding")
    | {"Pad": "padding", "Concat": "order", "Cast": "dtype"}
    | dict.fromkeys(ONNX_ACTIVATIONS, "activation")
)
# The cause that the reference operator suggests when its whole lowering is another.
_BY_SITE: dict[str, str] = {
    "native_batch_norm": "bn-folding", "native_layer_norm": "constant", "native_group_norm": "constant",
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
        patch = changes_for(stretch, difference)
        cause = _around(stretch, difference) or _baked(stretch, difference) or cause_of(difference)
        if not patch or cause is None or stretch.only_quantised(difference):
            continue
        node, text, found = difference.node, text_of(difference), Wire(cause)
        if difference.what is What.WIRING and cause == "order":
            readers = () if node is None else ((node.index, difference.slot),)
            found = wire(stretch, difference.got, difference.wanted, readers)
            cause = found.cause
            text = f"{text[:-1]}: {found.text}." if found.text else text
        yield Hypothesis(
            cause,
            text,
            {
                "node": "" if node is None else node.name,
                "operator": difference.op,
                **({"attribute": difference.name} if difference.name else {}),
                **({"operand": difference.slot} if difference.slot >= 0 else {}),
                "wanted": shown(difference.wanted),
                "got": shown(difference.got),
                **found.evidence,
            },
            patch,
            site=_only_site(stretch, difference) if found.site is None else found.site,
            decided=found.decided,
        )


def _only_site(stretch: Stretch, difference: Difference) -> int | None:
    """The one operator of several that a node with another attribute or constant stands for."""
    if difference.what not in (What.ATTRIBUTE, What.CONSTANT):
        return None
    found = [site.index for site in stretch.sites if likeness(site.op, difference.op) == 1]
    return found[0] if len(found) == 1 and len(stretch.sites) > 1 else None


def _baked(stretch: Stretch, difference: Difference) -> str | None:
    """The cause, where the model's number is a size of what comes in and the file, made for any size, has another."""
    ports = stretch.alignment.candidate.graph.inputs
    dynamic = any(port.shape is None or None in port.shape for port in ports)
    wanted, got = (np.atleast_1d(np.asarray(x)) for x in (difference.wanted, difference.got))
    if not dynamic or wanted.dtype.kind not in "iu" or got.dtype.kind not in "iu" or wanted.shape != got.shape:
        return None
    values = stretch.alignment.reference.values
    sizes = {size for index in stretch.inputs for size in values[index].shape}
    changed = wanted[wanted != got]
    return "baked-constant" if changed.size and all(size > 1 and size in sizes for size in changed.tolist()) else None


def _around(stretch: Stretch, difference: Difference) -> str | None:
    """The cause, where a node reads the result of one that should not be there: to read past it is the cure."""
    graph = stretch.alignment.candidate.graph
    between = graph.producer.get(difference.got) if difference.what is What.WIRING else None
    extra = [d.node for d in stretch.comparison.differences if d.what is What.EXTRA] if stretch.comparison else []
    node = next((n for n in extra if n is not None and n.index == between), None)
    if node is None or {reader for reader, _ in graph.consumers[difference.got]} - {_index(difference.node)}:
        return None  # what others read as well is not put in
    if any(n is not None and n.op in RANDOM for n in extra):
        return put_in(stretch, [n for n in extra if n is not None])
    arrays = [array for name in node.inputs if (array := stretch.constant(name)) is not None]
    masks = any(n is not None and n.op in ("Where", "Trilu") for n in extra) or any(map(mask_values, arrays))
    return "masking" if masks else "extra-op"


def _index(node: Node | None) -> int:
    return -1 if node is None else node.index


def cause_of(difference: Difference) -> str | None:
    """The slug for a difference; None for a constant that is a weight."""
    node, wanted = difference.node, difference.wanted_node
    if difference.what is What.ATTRIBUTE:
        if is_torch(difference.op) and difference.name in _BY_ARGUMENT:
            return _BY_ARGUMENT[difference.name]
        own = _BY_OPERATOR.get(difference.op) or (_of_site(base_name(difference.op)) if is_torch(difference.op) else "")
        if own in ("pooling", "resize", "recurrent", "padding"):
            return own
        return _BY_ATTRIBUTE.get(difference.name, own or "constant")
    if difference.what in (What.WIRING, What.EXCHANGED):
        return "order"
    if difference.what is What.OPERATOR:
        assert node is not None
        assert wanted is not None
        return replaced_by(wanted.op, node.op)
    if difference.what is What.EXTRA:
        return "layout" if difference.op == "Transpose" else "extra-op"
    if difference.what is What.MISSING:
        return "layout" if difference.op in RESHAPING | {"Transpose"} else "dropped-op"
    return _constant_cause(difference)


def replaced_by(wanted: str, got: str) -> str:
    """The slug for an operator that another one stands in the place of."""
    if {wanted, got} <= ONNX_ACTIVATIONS | {"Sin", "Cos", "Exp", "Abs", "Erf", "Sqrt", "Log", "Neg"}:
        return "activation"
    if is_torch(wanted):
        both = {base_name(wanted), base_name(got)}
        return "activation" if both <= ACTIVATIONS else _of_site(base_name(wanted)) or "dropped-op"
    if wanted in POOLS or got in POOLS or {wanted, got} <= REDUCTIONS:
        return "pooling"
    return _BY_OPERATOR.get(wanted, "dropped-op")


def _constant_cause(difference: Difference) -> str | None:
    wanted, got = difference.wanted, difference.got
    if isinstance(got, np.ndarray) and isinstance(wanted, str) and wanted:
        return "baked-constant"
    if difference.op in ("Add", "Sub") and isinstance(wanted, np.ndarray) and mask_values(wanted):
        return "masking"
    arrays = isinstance(wanted, np.ndarray) and isinstance(got, np.ndarray)
    if arrays and wanted.dtype.kind != got.dtype.kind and {wanted.dtype.kind, got.dtype.kind} <= set("iuf"):
        return "dtype"
    if arrays and difference.op in RECURRENT and difference.slot in _RECURRENT_WEIGHTS:
        return "recurrent" if _same_multiset(wanted, got) else "weights"
    own = _BY_OPERATOR.get(difference.op)
    if own is not None:
        return own
    if difference.op == "Add" and isinstance(wanted, np.ndarray) and wanted.size == 1 and 0 < float(wanted) <= 1e-2:
        return "epsilon"
    if isinstance(wanted, np.ndarray) and wanted.size > 1 and wanted.dtype.kind == "b":
        return "masking"
    return "constant"


def _same_multiset(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    """Whether two arrays hold the same numbers in another order: gates or directions are exchanged."""
    return one.size == other.size and np.allclose(np.sort(one, axis=None), np.sort(other, axis=None), rtol=1e-5)


def mask_values(array: np.ndarray[Any, Any]) -> bool:
    """Whether an array is an additive mask: zeros, and huge negative numbers."""
    if array.dtype.kind != "f" or array.size < 2:
        return False
    return bool(np.all((array == 0) | (array < -1e4)) and np.any(array < -1e4))


def changes_for(stretch: Stretch, difference: Difference) -> Patch:
    """The changes of one node that take a difference away; none where it needs more than that."""
    node, wanted, place = difference.node, difference.wanted_node, difference.place
    if node is None:
        return ()
    if difference.what is What.ATTRIBUTE:
        mended = SetAttribute(node.outputs[0], difference.name, difference.wanted)
        automatic = difference.name == "pads" and "auto_pad" in node.attributes  # no node may have both
        return (SetAttribute(node.outputs[0], "auto_pad", None), mended) if automatic else (mended,)
    if difference.what is What.OPERATOR and wanted is not None and len(wanted.inputs) == len(node.inputs):
        return (SetOperator(node.outputs[0], wanted.op, tuple(sorted(wanted.attributes.items()))),)
    if place is None:
        return ()
    if difference.what is What.EXCHANGED:
        return (Rewire(place.node, 0, difference.wanted), Rewire(place.node, 1, difference.got))
    if difference.what is What.WIRING:
        return (Rewire(place.node, place.slot, min(difference.wanted)),)
    if isinstance(difference.wanted, np.ndarray):
        right = difference.wanted.T if place.transposed else difference.wanted
        got = difference.got
        if isinstance(got, np.ndarray) and got.dtype.kind == right.dtype.kind == "f":
            right = right.astype(got.dtype)  # a file in half precision keeps it so
        return (SetConstant(place.node, place.slot, _as_shaped(right, difference.got)),)
    if difference.wanted and stretch.comparison is not None:
        value = stretch.comparison.fresh.inputs.get(difference.wanted)
        tensor = None if value is None else stretch.holder(value)
        return () if tensor is None else (Rewire(place.node, place.slot, tensor),)
    return ()


def _as_shaped(right: np.ndarray[Any, Any], got: Any) -> np.ndarray[Any, Any]:
    """The right numbers, in the file's shape where only axes of length one differ."""
    if isinstance(got, np.ndarray) and got.size == right.size and np.squeeze(got).shape == np.squeeze(right).shape:
        return right.reshape(got.shape)
    return right


def text_of(difference: Difference) -> str:
    """One sentence about a difference."""
    node, op = difference.node, difference.op
    wanted, got = shown(difference.wanted), shown(difference.got)
    if difference.what is What.ATTRIBUTE:
        return f"{op} has {difference.name}={got}; the model's is {wanted}."
    if difference.what is What.OPERATOR:
        assert node is not None
        return f"The file computes {node.op} where the model computes {op}."
    if difference.what is What.EXCHANGED:
        return f"The operands of {op} are exchanged."
    if difference.what is What.WIRING:
        return f"{op} reads {got} as operand {difference.slot}; it should read {wanted}."
    if difference.what is What.EXTRA:
        return f"{op} is in the file and not in the model."
    if difference.what is What.MISSING:
        return f"{op} is missing from the file."
    if (masked := _masked_apart(difference)) is not None:
        return f"Operand {difference.slot} of {op} masks other positions than the model: {masked}."
    if isinstance(got, str) and got == wanted:
        return f"Operand {difference.slot} of {op} is not the model's: {_first_apart(difference)}."
    return f"Operand {difference.slot} of {op} is {got}; the model's is {wanted}."


def _masked_apart(difference: Difference) -> str | None:
    """How many positions one of two masks takes out and the other does not; None for what are no masks."""
    masks = [side for side in (difference.wanted, difference.got) if isinstance(side, np.ndarray) and mask_values(side)]
    if len(masks) != 2 or masks[0].size != masks[1].size:
        return None
    wanted, got = (mask.reshape(-1) < 0 for mask in masks)
    lost, added = int(np.sum(wanted & ~got)), int(np.sum(got & ~wanted))
    parts = [f"{lost} fewer"] * bool(lost) + [f"{added} more"] * bool(added)
    return f"{' and '.join(parts)} of {wanted.size}" if parts else None


def _first_apart(difference: Difference) -> str:
    """How many numbers of two arrays that look alike by shape and range differ, and those that do most."""
    wanted, got = (np.asarray(side).reshape(-1) for side in (difference.wanted, difference.got))
    wrong = np.flatnonzero(wanted != got) if wanted.size == got.size else np.zeros(0, int)
    if not wrong.size:
        return str(shown(difference.got))
    with np.errstate(invalid="ignore"):
        gaps = np.abs(wanted[wrong].astype(np.float64) - got[wrong].astype(np.float64))
    worst = int(wrong[int(np.argmax(np.nan_to_num(gaps, nan=np.inf)))])
    place = [int(i) for i in np.unravel_index(worst, np.shape(difference.wanted))]
    return f"{wrong.size} of {wanted.size} values differ, most at {place}: {got[worst]:.6g}, not {wanted[worst]:.6g}"


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
    """What the reference operators suggest, where the file's nodes are altogether different ones.

    Of several operators those count whose own nodes differ.
    """
    found = () if stretch.comparison is None else stretch.comparison.differences
    wanted = [d.wanted_node.op for d in found if d.wanted_node is not None and d.what is not What.WIRING]
    differing = [site for site in stretch.sites if any(likeness(site.op, op) > 0 for op in wanted)]
    if _other_epsilon(stretch):
        return "epsilon"
    for site in reversed(differing or stretch.sites):
        if (cause := cause_at(site)) is not None:
            return cause
    names = {base_name(site.op) for site in stretch.sites}
    return "constant" if {"mul", "div", "add", "sub", "rsub", "pow"} & names else "unknown"


def cause_at(site: Site) -> str | None:
    """What one reference operator suggests, where the file computes something else."""
    return "rounding" if site.arguments.get("rounding_mode") else _of_site(base_name(site.op))


def _other_epsilon(stretch: Stretch) -> bool:
    """Whether a norm of the file keeps another epsilon than the norm it stands for."""
    wanted = [site.arguments.get("eps", site.arguments.get("epsilon")) for site in stretch.sites if "norm" in site.op]
    got = [node.attributes.get("epsilon") for node in stretch.nodes if node.op in NORMS]
    pairs = [(w, g) for w, g in zip(wanted, got, strict=False) if w and g]
    return any(abs(w - g) > 1e-3 * abs(w) for w, g in pairs)


def _of_site(name: str) -> str | None:
    if name.startswith(ONNX):
        return _BY_OPERATOR.get(name.removeprefix(ONNX))
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
    return "recurrent" if name.startswith("nn.") else _BY_SITE.get(name)
