"""Number formats: half precision that rounds or overflows, integers that saturate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.difference import What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.quantisers import ends
from layerdiff.formats import QUANTISED
from layerdiff.patch import SetAttribute
from layerdiff.unlike import share_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.difference import Difference
    from layerdiff.diagnose.stretch import Stretch

    Array = np.ndarray[Any, Any]

FLOAT, HALF, BFLOAT = 1, 10, 16  # onnx.TensorProto.DataType
_LARGEST = {HALF: 65504.0, BFLOAT: 3.3895e38}
# What no scale brings nearer than to such a share of its size are other numbers.
_ANOTHER = 0.5
# What a range cuts off, and a factor brings in, that is worth a word.
_CLIPPED = 0.02
_NAMES = {HALF: "float16", BFLOAT: "bfloat16"}


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """Casts to a narrower format, taken out; stored integers that were clipped or scaled wrongly, made right."""
    yield from _casts(stretch)
    yield from _stored(stretch)


def _casts(stretch: Stretch) -> Iterator[Hypothesis]:
    casts = [n for n in stretch.nodes if n.op == "Cast" and n.attributes.get("to") in _NAMES]
    if not casts:
        return
    to = int(casts[0].attributes["to"])
    patch = tuple(SetAttribute(node.outputs[0], "to", FLOAT) for node in casts)
    largest = _largest(stretch)
    evidence = {"format": _NAMES[to], "largest_value": largest, "largest_in_format": _LARGEST[to]}
    if _overflows(stretch, largest, _LARGEST[to]):
        text = f"A value of {largest:.4g} does not fit into {_NAMES[to]}, whose largest is {_LARGEST[to]:.5g}."
        yield Hypothesis(
            "overflow", text, evidence, patch, f"keep this layer in float32 ({_NAMES[to]} conversion: block list)"
        )
        return
    text = f"Its result is rounded to {_NAMES[to]}."
    yield Hypothesis("precision", text, evidence, patch, "keep this layer in float32")


def _largest(stretch: Stretch) -> float:
    """The largest magnitude inside the stretch, by the reference."""
    values = stretch.alignment.reference.values
    inside = [i for site in stretch.sites for i in (*site.inputs, *site.outputs)]
    arrays = [values[i].array for i in (*inside, stretch.value)]
    sizes = [float(np.abs(a[np.isfinite(a)]).max(initial=0.0)) for a in arrays if a is not None and a.dtype.kind == "f"]
    return max(sizes, default=0.0)


def _overflows(stretch: Stretch, largest: float, limit: float) -> bool:
    actual, expected = stretch.actual, stretch.expected
    if actual is None or expected is None or actual.dtype.kind != "f":
        return largest > limit
    return bool((~np.isfinite(actual)).sum() > (~np.isfinite(expected)).sum()) or largest > limit


def too_narrow(stretch: Stretch) -> str | None:
    """The cause, where half precision made something infinite that is not."""
    actual, expected = stretch.actual, stretch.expected
    if not stretch.narrow or actual is None or expected is None or actual.dtype.kind != "f":
        return None
    lost = (~np.isfinite(actual)).sum() > (~np.isfinite(expected)).sum()
    return "overflow" if lost or _largest(stretch) > _LARGEST[HALF] else None


def _stored(stretch: Stretch) -> Iterator[Hypothesis]:
    """Weights that the file keeps as integers and that do not stand for the model's."""
    differences = () if stretch.comparison is None else stretch.comparison.differences
    for difference in differences:
        if difference.what is What.CONSTANT and (stored := _integers_behind(stretch, difference)) is not None:
            from layerdiff.diagnose.semantics import changes_for

            if stretch.only_quantised(difference):
                continue
            name, kind = stored
            numbers = stretch.alignment.candidate.graph.initializer(name)
            assert numbers is not None
            smallest, largest = ends(kind, numbers.dtype)
            clipped = int(np.sum((numbers == smallest) | (numbers == largest)))
            text = f"A constant of {difference.op} is kept as {kind}, in a scale that does not hold it."
            if clipped:
                text = f"{clipped} of {numbers.size} stored {kind} numbers of {difference.op} are clipped."
            if (unlike := _unlike(difference)) is not None:
                text = f"The stored {kind} numbers of {difference.op} {unlike}."
            evidence = {"dtype": kind, "clipped": clipped}
            yield Hypothesis(
                "quantization", text, evidence, changes_for(stretch, difference), "quantise this layer anew"
            )


def _unlike(difference: Difference) -> str | None:
    """In what way stored numbers are not the model's, where the range that they have is not what is wrong."""
    wanted, got = difference.wanted, difference.got
    if not isinstance(wanted, np.ndarray) or wanted.shape != np.shape(got):
        return None
    e, a = wanted.astype(np.float64).reshape(-1), np.asarray(got, np.float64).reshape(-1)
    size = float(np.linalg.norm(e)) or 1.0
    held = np.clip(e, a.min(), a.max())  # what the range lets through
    factor = float(held @ a) / max(float(a @ a), 1e-300)
    whole = float(e @ a) / max(float(a @ a), 1e-300)
    if abs(whole - 1) > _CLIPPED and float(np.linalg.norm(whole * a - e)) <= QUANTISED * size:
        return f"have a scale that is {1 / whole:.4g} times theirs"
    if float(np.linalg.norm(factor * a - held)) > _ANOTHER * size:
        share = share_of(float(np.linalg.norm(a - e)) / size).replace("its", "their")
        return f"are not the model's: they differ by {share}"
    if float(np.linalg.norm(held - e)) > _CLIPPED * size or abs(factor - 1) <= _CLIPPED:
        return None
    return f"have a scale that is {1 / factor:.4g} times theirs"


def _integers_behind(stretch: Stretch, difference: Difference) -> tuple[str, str] | None:
    """The integers that a constant is dequantised from: their name, and their type."""
    graph, node = stretch.alignment.candidate.graph, difference.node
    if node is None or difference.place is None or not isinstance(difference.got, np.ndarray):
        return None
    reads = graph.nodes[node.index].inputs
    if difference.place.slot >= len(reads):  # an operand that only the model's own node has
        return None
    dequantiser = graph.dequantiser(reads[difference.place.slot])
    stored = None if dequantiser is None else graph.initializer(dequantiser.inputs[0])
    if dequantiser is None or stored is None or stored.dtype.kind not in "iu":
        return None
    return dequantiser.inputs[0], graph.format_of(dequantiser.inputs[0]) or str(stored.dtype)
