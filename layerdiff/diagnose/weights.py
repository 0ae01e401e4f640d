"""Weights that are not the model's: which parameter, which channels, in what way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import Tie, relation
from layerdiff.audit.forms import in_format
from layerdiff.blocks import rows_in_double
from layerdiff.diagnose.difference import What
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.semantics import RECURRENT, changes_for, mask_values, shown
from layerdiff.operators import base_name, only_moves
from layerdiff.patch import SetConstant
from layerdiff.unlike import Unlike, share_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose.difference import Difference
    from layerdiff.diagnose.stretch import Stretch

    Array = np.ndarray[Any, Any]

# So many numbers are on a grid of eight bits at most.
_GRID = 256
# What rounding to half precision changes at most; below the smallest normal number its steps are fixed.
_HALF_UNIT, _SMALLEST_HALF = 2.0**-11, 2.0**-25
# Half a step, and what two roundings of it come to.
_HALF = 0.51
# Where more numbers than these are the model's own, the others were changed one by one, and not rounded.
_UNROUNDED = 0.75
_LOOKUPS = frozenset({"embedding", "index_select", "index", "gather", "slice", "select", "narrow"})


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One for every constant operand that stands for a parameter and is not it."""
    told: set[tuple[str, int]] = set()
    for found in _by_differences(stretch):
        told |= {(change.node, change.slot) for change in found.patch or () if isinstance(change, SetConstant)}
        yield found
    if not told:
        yield from _by_likeness(stretch)


def _by_likeness(stretch: Stretch) -> Iterator[Hypothesis]:
    """Of nodes that an exporter would not have written (an Einsum): what looks like a parameter and is not it."""
    differences = () if stretch.comparison is None else stretch.comparison.differences
    strange = {d.node.index for d in differences if d.what in (What.EXTRA, What.OPERATOR) and d.node is not None}
    parameters = {name: array for site in stretch.sites for name, array in stretch.parameters(site).items()}
    for node, slot, got in stretch.constants:
        if node.index not in strange or got.dtype.kind != "f" or got.size < 2:
            continue
        if stretch.alignment.candidate.graph.dequantiser(node.inputs[slot]):
            continue
        for name, array in parameters.items():
            views = [view for view in (array, array.T) if view.shape == got.shape and view.size > 1]
            if array.dtype.kind != "f" or any(np.array_equal(view, got) for view in views):
                continue
            wanted = next((view for view in views if relation(view, got) in (Tie.NEAR, Tie.SCALED)), None)
            if wanted is None:
                continue
            text, evidence = in_what_way(stretch, name, wanted, got)
            patch = (SetConstant(node.outputs[0], slot, wanted.astype(got.dtype)),)
            remedy = "export again from the model that is meant to ship"
            yield Hypothesis("weights", text, {"parameter": name, **evidence}, patch, remedy, reader_of(stretch, name))


def _by_differences(stretch: Stretch) -> Iterator[Hypothesis]:
    if stretch.comparison is None:
        return
    for difference in stretch.comparison.differences:
        if difference.what is not What.CONSTANT or not isinstance(difference.wanted, np.ndarray):
            continue
        wanted, got = difference.wanted, difference.got
        if difference.op in RECURRENT:
            wanted, got = _wrong_part(stretch, wanted, got)
        if stretch.format is not None:
            got = _unrounded(wanted, got)
        if np.array_equal(wanted, got) or stretch.only_quantised(difference):
            continue
        name = parameter_behind(stretch, wanted)
        patch = changes_for(stretch, difference)
        if name is None or not patch:
            continue
        if not isinstance(got, np.ndarray) or got.size != wanted.size:
            text, evidence = f"{name} is absent from {difference.op}.", {"got": shown(got)}
        else:
            text, evidence = in_what_way(stretch, name, wanted, got)
            text = text.replace(name, _with_partners(stretch, name), 1)
        misplaced = evidence.get("permuted") or evidence.get("equals")  # other gates, or the other direction
        cause = "recurrent" if difference.op in RECURRENT and misplaced else "weights"
        if _other_rows(stretch, name, difference):
            cause, text = "indexing", f"{name} is looked up at other positions."
        cause = "masking" if mask_values(difference.wanted) else cause
        evidence = {"parameter": name, **evidence}
        remedy = "export again from the model that is meant to ship"
        yield Hypothesis(cause, text, evidence, patch, remedy, reader_of(stretch, name))


def _unrounded(wanted: Array, got: Any) -> Any:
    """What the file holds, and the right number wherever that is it in half precision, in which all is kept there."""
    if not isinstance(got, np.ndarray) or got.size != wanted.size or wanted.dtype.kind != "f":
        return got
    shaped = got.reshape(wanted.shape).astype(wanted.dtype)
    return np.where(np.abs(shaped - wanted) <= _HALF_UNIT * np.abs(wanted) + _SMALLEST_HALF, wanted, shaped)


def _wrong_part(stretch: Stretch, wanted: Array, got: Any) -> tuple[Array, Any]:
    """The part of a recurrent operator's constant that is one parameter and differs; all of it where that is not one.

    ONNX keeps both directions in one constant, and the biases of input and state one behind the other.
    """
    if not isinstance(got, np.ndarray) or got.shape != wanted.shape or wanted.ndim not in (2, 3):
        return wanted, got
    rows = list(zip(wanted, got, strict=True))
    if wanted.ndim == 2:
        rows = [half for w, g in rows for half in zip(np.array_split(w, 2), np.array_split(g, 2), strict=True)]
    wrong = [(w, g) for w, g in rows if not np.array_equal(w, g)]
    return next(((w, g) for w, g in wrong if parameter_behind(stretch, w) is not None), (wanted, got))


def _with_partners(stretch: Stretch, name: str) -> str:
    """A parameter, with those that a constant is computed from besides: a direction with its length."""
    reference = stretch.alignment.reference
    parameters = {value.index: value.parameter for value in reference.values if value.parameter is not None}
    made = [s for s in reference.sites if not only_moves(s.op) and all(reference.values[o].constant for o in s.outputs)]
    read = [[parameters[index] for index in site.inputs if index in parameters] for site in made]
    others = dict.fromkeys(other for names in read if name in names for other in names if other != name)
    return f"{name}, with {', '.join(others)} in it," if others else name


def reader_of(stretch: Stretch, name: str) -> int | None:
    """The one site of the stretch that reads a parameter."""
    found = [site.index for site in stretch.sites if name in stretch.parameters(site)]
    return found[0] if len(found) == 1 else None


def parameter_behind(stretch: Stretch, wanted: Array) -> str | None:
    """The parameter of the stretch that a right constant is (in any layout), or was made from by a fold."""
    if wanted.dtype.kind != "f" or wanted.size < 2:
        return None
    table = _folded_table(stretch, wanted)
    if table is not None:
        return table
    best: tuple[int, str] | None = None
    for site in stretch.sites:
        for name, array in stretch.parameters(site).items():
            if array.size != wanted.size or array.dtype.kind != "f":
                continue
            tie = relation(array, wanted)
            rank = [Tie.EXACT, Tie.SCALED, Tie.NEAR, None].index(tie)
            if tie is not None and (best is None or rank < best[0]):
                best = (rank, name)
    return None if best is None else best[1]


def _other_rows(stretch: Stretch, name: str, difference: Difference) -> bool:
    """Whether a folded look-up holds rows of the right table, only others than the model's.

    Attention biases are looked up, and their axes permuted: the rows can lie along any axis.
    """
    table, got = stretch.alignment.reference.parameters[name], difference.got
    if not isinstance(got, np.ndarray) or table.ndim != 2 or got.size == table.size or got.size % table.shape[1]:
        return False
    rows, width = {row.tobytes() for row in np.ascontiguousarray(table)}, table.shape[1]
    views = [got, *(np.moveaxis(got, axis, -1) for axis, length in enumerate(got.shape[:-1]) if length == width)]
    found = (np.ascontiguousarray(view.reshape(-1, width).astype(table.dtype)) for view in views)
    return any(all(row.tobytes() in rows for row in some) for some in found)


def _folded_table(stretch: Stretch, wanted: Array) -> str | None:
    """The table that a constant was looked up in: exporters fold the embedding of positions away."""
    reference = stretch.alignment.reference
    for value in {v for site in stretch.sites for v in site.inputs}:
        known = reference.values[value]
        if not known.constant or known.array is None or known.array.size != wanted.size:
            continue
        if np.array_equal(known.array.reshape(-1), wanted.reshape(-1).astype(known.array.dtype)):
            return next(iter(_tables(stretch, value)), None)
    return None


def _tables(stretch: Stretch, value: int) -> list[str]:
    """The parameters that a constant value was looked up in (not those that something was computed from)."""
    reference = stretch.alignment.reference
    found, todo, seen = [], [value], set()
    while todo:
        known = reference.values[todo.pop()]
        maker = None if known.site is None else reference.sites[known.site]
        if known.parameter is not None:
            found.append(known.parameter)
        elif (
            maker is not None and known.index not in seen and (only_moves(maker.op) or base_name(maker.op) in _LOOKUPS)
        ):
            seen.add(known.index)
            todo += maker.inputs
    return [name for name in found if reference.parameters[name].dtype.kind == "f"]


def in_what_way(stretch: Stretch, name: str, wanted: Array, got: Array) -> tuple[str, dict[str, Any]]:
    """A sentence and numbers on how the file's weight differs from the right one (of the same size)."""
    found = Unlike(wanted, got) if stretch.format is None else Unlike(wanted, got, 2 * _HALF_UNIT)
    evidence: dict[str, Any] = {"max_abs": found.max_abs, "rel_l2": found.rel_l2}
    other = _another_parameter(stretch, name, got)
    if other is not None:
        return f"Where {name} belongs the file holds {other}.", {**evidence, "equals": other}
    if found.is_zero:
        return f"{name} is all zeros in the file.", {**evidence, "zero": True}
    if found.factor is not None:
        return f"{name} is multiplied by {found.factor:.6g} in the file.", {**evidence, "factor": found.factor}
    if found.shift is not None:
        return f"{name} is shifted by {found.shift:.6g} in the file.", {**evidence, "shift": found.shift}
    if found.is_permuted:
        return f"{name} holds the right numbers in another order.", {**evidence, "permuted": True}
    rounded = _rounded_to(wanted, got.reshape(wanted.shape))
    if rounded:
        return f"{name} was rounded to {rounded}.", {**evidence, "format": rounded}
    for axis, gaps in enumerate(found.along):  # a product's matrix keeps its output channels last
        if channels := _channels(gaps):
            few = ", ".join(map(str, channels[:8]))
            where = f" along axis {axis}" if axis else ""
            return f"{name} differs in channel {few} of {len(gaps)}{where}.", {**evidence, "channels": channels}
    if np.isinf(found.rel_l2):
        return f"{name} is not the model's, which is all zeros: it goes up to {found.max_abs:.3g}.", evidence
    wrong = int(np.count_nonzero(wanted != got.reshape(wanted.shape)))
    where = "everywhere" if wrong > _UNROUNDED * wanted.size else f"in {wrong:,} of its {wanted.size:,} numbers"
    return f"{name} is not the model's: it differs {where}, by {share_of(found.rel_l2)}.", evidence


def _channels(gaps: Array) -> list[int]:
    """The few indices that hold all of the error; empty when it is spread."""
    if len(gaps) < 4:
        return []
    wrong = np.flatnonzero(gaps > 1e-5 * max(float(gaps.max()), 1e-300) + 1e-12)
    return [int(i) for i in wrong] if 0 < wrong.size <= len(gaps) // 4 else []


def _another_parameter(stretch: Stretch, name: str, got: Array) -> str | None:
    """Another parameter of the model that holds exactly these numbers (in any layout)."""
    for other, array in stretch.alignment.reference.parameters.items():
        if other == name or array.size != got.size or array.size < 4 or array.dtype != got.dtype:
            continue
        if relation(array, got) is Tie.EXACT and np.ptp(array) > 0:
            return other
    return None


def _rounded_to(w: Array, g: Array) -> str:
    """The number format that turns the right weight into the file's, if one does."""
    for kind in ("float16", "bfloat16"):
        if all(bool(np.all(in_format(wanted, kind) == got)) for _, wanted, got in rows_in_double(w, g)):
            return kind
    return _grid(np.atleast_1d(w), np.atleast_1d(g))


def _grid(w: Array, g: Array) -> str:
    """The grid of integers that all numbers were rounded to, if they are few enough.

    Numbers on it that are mostly the model's own, or mostly farther away than half a step, were not rounded.
    """
    if np.unique(g[:1]).size > _GRID or np.mean(w == g) > _UNROUNDED:
        return ""
    values: Array = np.unique(g)
    steps = np.diff(values)
    if (
        2 < values.size <= _GRID
        and steps.size
        and np.median(np.abs(w - g)) <= _HALF * steps.min()
        and np.allclose(steps / steps.min(), np.round(steps / steps.min()), atol=1e-2)
    ):
        return "an 8-bit grid" if values.size > 16 else "a 4-bit grid"
    return ""
