"""What became of one constant operand of one operator."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from layerdiff.audit.folds import (
    EQUAL,
    HEAVY,
    Fold,
    bias_room,
    fold_gaps,
    folds,
    output_axis,
    views_of,
)
from layerdiff.audit.forms import Stored, held, in_parts, layout_of, quantised, rounded, rounded_in_parts
from layerdiff.operators import base_name
from layerdiff.unlike import Unlike
from layerdiff.weights import Carried, WeightResult, WeightVerdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from layerdiff.audit.forms import Held
    from layerdiff.audit.places import Operand, Place
    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]

# A tensor that shares so many numbers with a parameter is that parameter, and changed.
_KIN = 0.1
# Of weights larger than this, some rows tell which layout they are in.
_MANY = 1 << 18
_EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}
_AGREES, _DIFFERS, _ABSENT = WeightVerdict.AGREES, WeightVerdict.DIFFERS, WeightVerdict.ABSENT
_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}  # of torch, in ONNX's order


class _Half(NamedTuple):
    """The constant that a folded weight is most likely in, and how far off it is, with the channels."""

    name: str
    wrong: Array
    max_abs: float
    rel_l2: float


class Judge:
    """Compares operands with what the candidate has in their place."""

    def __init__(
        self,
        reference: Reference,
        constants: Mapping[str, Array],
        formats: Mapping[str, str],
        steps: Mapping[str, Array],
    ) -> None:
        self._reference = reference
        self._constants = constants
        self._formats = formats
        self._steps = steps
        self._stored: dict[str, Stored] = {}
        self._halves: dict[tuple[Any, ...], _Half | None] = {}
        self._folds: dict[int, list[Fold]] = {}
        self._readers: dict[int, list[Site]] = {}
        for site in reference.sites:
            for value in site.inputs:
                self._readers.setdefault(value, []).append(site)

    def operand(self, operand: Operand, site: Site, place: Place) -> WeightResult:
        """The result for an operand under the name of its first parameter."""
        wanted = _in_gate_order(operand.array, place)
        found = held(wanted, place.constants) if wanted.size else None
        folded = self._folded(operand, site, place) if found is None else None
        if folded is not None and folded.verdict is _AGREES:
            return folded
        found = found or self._otherwise(wanted, place.constants)
        if found is not None:
            return self._result(operand, found.name, found.how, wanted, found.array)
        if folded is not None:
            return folded
        rival = self._rival(operand, site, place)
        if rival is not None:
            return self._changed(operand, place, wanted, *rival)
        elsewhere = held(wanted, self._constants) or self._otherwise(wanted, self._constants)
        if elsewhere is not None:
            return self._result(operand, elsewhere.name, elsewhere.how, wanted, elsewhere.array)
        return _missing(operand, place)

    def _otherwise(self, wanted: Array, constants: Mapping[str, Array]) -> Held | None:
        """The constant that holds the numbers rounded, quantised, or among others."""
        alike = {name: array for name, array in constants.items() if array.size == wanted.size}
        found = rounded(wanted, alike, self._formats) or quantised(wanted, alike, self._steps, self._formats)
        if found is not None:
            return found
        stored = {name: self._kept(name, array) for name, array in constants.items()}
        return in_parts(wanted, stored) or rounded_in_parts(wanted, stored, self._formats)

    def _kept(self, name: str, array: Array) -> Stored:
        """A constant, looked into once for all parameters."""
        if name not in self._stored:
            self._stored[name] = Stored(name, array)
        return self._stored[name]

    def _result(self, operand: Operand, name: str, how: Carried, wanted: Array, array: Array) -> WeightResult:
        """A parameter that was found. Rounding counts as a difference only where the file's format had room for all."""
        if how in (Carried.ROUNDED, Carried.QUANTISED):
            kind = self._formats.get(name) or str(self._constants[name].dtype)
            return replace(_row(operand, name, how, _AGREES, Unlike(wanted, array)), note=f"to {kind}")
        if not operand.moved:
            how = Carried.FOLDED
        return WeightResult(operand.names[0], name, how, _AGREES, operand.array.shape, 0.0, 0.0)

    # Folding.

    def _folded(self, operand: Operand, site: Site, place: Place) -> WeightResult | None:
        """What became of an operand that belongs to a layer with affine operators behind it."""
        best: tuple[tuple[int, int], WeightResult] | None = None
        for heavy in self._heavy_before(site, place):
            for fold in self._folds_of(heavy):
                if operand.value not in (fold.weight, *fold.scaling, *fold.shifting):
                    continue
                result = self._compared(operand, heavy, fold, place)
                if result is None:
                    continue
                wrong, row = result
                rank = (wrong, -len(fold.shifting))
                if best is None or rank < best[0]:
                    best = (rank, row)
        return None if best is None else best[1]

    def _folds_of(self, heavy: Site) -> list[Fold]:
        """The folds that start at a layer; every parameter of it and of what is behind it asks for them."""
        if heavy.index not in self._folds:
            self._folds[heavy.index] = list(folds(self._reference, heavy, self._readers))
        return self._folds[heavy.index]

    def _heavy_before(self, site: Site, place: Place) -> Iterator[Site]:
        if base_name(site.op) in HEAVY:
            yield site
        for index in sorted(place.sites - {site.index}):
            other = self._reference.sites[index]
            if base_name(other.op) in HEAVY:
                yield other

    def _compared(self, operand: Operand, heavy: Site, fold: Fold, place: Place) -> tuple[int, WeightResult] | None:
        """How many channels of the half of the fold that the operand is in differ, and the result."""
        half = self._half(heavy, fold, place)
        if half is None or (place.right and _mostly(half.wrong)):
            return None  # it comes out right: something else was folded in besides
        count, shape, note = int(half.wrong.sum()), operand.array.shape, self._with(fold, operand)
        scaling = operand.value in (fold.weight, *fold.scaling)
        if scaling and (operand.value not in fold.shifting or count):
            verdict = _DIFFERS if count else _AGREES
            numbers = (half.max_abs, half.rel_l2, _few(half.wrong))
            return count, WeightResult(operand.names[0], half.name, Carried.FOLDED, verdict, shape, *numbers, note)
        shifts = self._shift(fold, place)
        if shifts is None:
            return count + half.wrong.size, _missing(operand, place)
        name, array, off = shifts
        verdict = _DIFFERS if off.any() else _AGREES
        numbers = (float(np.abs(array - fold.shift).max()), _relative(fold.shift, array), _few(off))
        row = WeightResult(operand.names[0], name or None, Carried.FOLDED, verdict, shape, *numbers, note)
        return count + int(off.sum()), row

    def _half(self, heavy: Site, fold: Fold, place: Place) -> _Half | None:
        """The constant that is the folded weight, most likely; several parameters ask for it."""
        key = (heavy.index, fold.scaling, fold.shifting, *place.constants)
        if key not in self._halves:
            weight = np.moveaxis(self._array(fold.weight), output_axis(heavy), 0)
            found = []
            for name, view in views_of(weight, place.constants):
                gaps = fold_gaps(weight, fold.factor, view, self._room(name, view))
                found.append(_Half(name, *gaps))
                if not gaps.wrong.any():
                    break
            self._halves[key] = min(found, key=lambda half: int(half.wrong.sum()), default=None)
        return self._halves[key]

    def _shift(self, fold: Fold, place: Place) -> tuple[str, Array, Array] | None:
        """The constant that is the folded bias, most likely, and the channels in which it is not."""
        room = bias_room(fold)
        found = []
        for name, array in place.constants.items():
            if array.size == fold.shift.size and array.dtype.kind == "f":
                flat = array.reshape(-1).astype(np.float64)
                step = self._room(name, array)
                found.append((name, flat, ~(np.abs(flat - fold.shift) <= room + np.reshape(step, -1) + 1e-12)))
        nothing = np.abs(fold.shift) > room
        if not nothing.any():
            found.append(("", np.zeros_like(fold.shift), nothing))
        best = min(found, key=lambda f: int(f[2].sum()), default=None)
        return None if best is None or (place.right and _mostly(best[2])) else best

    def _room(self, name: str, array: Array) -> Array | float:
        """What the number format of a constant may take from it, per leading index."""
        step = self._steps.get(name)
        if step is not None:
            return 0.51 * (
                step.reshape(-1) if step.size in (1, array.shape[0]) else np.full(array.shape[0], step.max())
            )
        kind = self._formats.get(name) or ("float16" if self._constants[name].dtype == np.float16 else "")
        epsilon = _EPSILON.get(kind)
        if epsilon is None or not array.ndim:
            return 0.0
        flat = np.abs(array.reshape(array.shape[0], -1)).max(axis=1, initial=0.0)
        return np.asarray(flat * epsilon + (2.0**-24 if kind == "float16" else 0.0))

    def _with(self, fold: Fold, operand: Operand) -> str:
        """The parameters that went into one with an operand."""
        reference = self._reference
        values = dict.fromkeys((fold.weight, *fold.scaling, *fold.shifting))
        names = [name for v in values if (name := reference.values[v].parameter) not in (None, *operand.names)]
        return f"with {', '.join(map(str, names))}" if names else ""

    def _array(self, value: int) -> Array:
        known = self._reference.values[value]
        found = known.array if known.parameter is None else self._reference.parameters[known.parameter]
        assert found is not None
        return found

    # Changed.

    def _rival(self, operand: Operand, site: Site, place: Place) -> tuple[str, Array] | None:
        """The constant in an operand's place that is not it, and no other operand of that place either."""
        wanted = operand.array
        if wanted.dtype.kind not in "fiu" or place.right is None:
            return None
        own = [self._array(v) for index in (place.sites | {site.index}) for v in self._constant_inputs(index)]
        own = [_in_gate_order(a, place) for a in own if a.size == wanted.size and a is not wanted]
        rivals = []
        for name, array in place.constants.items():
            if array.size != wanted.size or array.dtype.kind != wanted.dtype.kind:
                continue
            if any(self._holds(name, array, other) for other in own):
                continue
            rivals.append((_shared(wanted, array), name, array))
        best = max(rivals, key=lambda r: r[0], default=None)
        if best is None or (best[0] < _KIN and (place.right or wanted.size < 2)):
            return None  # it comes out right: this is something else, and the parameter went into it
        return best[1], best[2]

    def _holds(self, name: str, array: Array, other: Array) -> bool:
        """Whether a constant has an array's numbers, as they are or dequantised."""
        if other.dtype == array.dtype and layout_of(other, array) is not None:
            return True
        return name in self._steps and quantised(other, {name: array}, self._steps, self._formats) is not None

    def _constant_inputs(self, site: int) -> Iterator[int]:
        for value in self._reference.sites[site].inputs:
            known = self._reference.values[value]
            if known.constant and (known.parameter is not None or known.array is not None):
                yield value

    def _changed(self, operand: Operand, place: Place, wanted: Array, name: str, array: Array) -> WeightResult:
        shaped = _laid_out(wanted, array)
        found = Unlike(wanted, shaped)
        if not operand.moved and place.right:  # computed anew by the exporter, and it rounds in its own way
            return _row(operand, name, Carried.FOLDED, _AGREES, found)
        other = self._other(operand, array)
        row = _row(operand, name, Carried.CHANGED, _DIFFERS, found)
        if other is not None:
            return replace(row, note=f"holds {other}")
        if found.is_zero:
            return replace(row, note="all zeros")
        if found.factor is not None:
            return replace(row, note=f"multiplied by {found.factor:.6g}")
        if found.is_permuted:
            return replace(row, note="the right numbers in another order")
        if wanted.ndim == 0:
            return row
        return replace(row, channels=_few(found.along[0] > EQUAL * found.sizes))

    def _other(self, operand: Operand, array: Array) -> str | None:
        """Another parameter of the model that holds exactly these numbers."""
        for name, other in self._reference.parameters.items():
            if name in operand.names or other.size != array.size or other.size < 2 or other.dtype != array.dtype:
                continue
            if layout_of(other, array) is not None and np.ptp(other) > 0:
                return name
        return None


def _in_gate_order(array: Array, place: Place) -> Array:
    """A recurrent layer's weight with its gates as ONNX orders them."""
    for op, order in _GATES.items():
        if op in place.operators and array.ndim and array.shape[0] % len(order) == 0:
            gates = array.reshape(len(order), -1, *array.shape[1:])
            return np.ascontiguousarray(gates[list(order)]).reshape(array.shape)
    return array


def _shared(wanted: Array, array: Array) -> float:
    """The share of numbers other than zero that two arrays have in common, place by place, judged by some of them."""
    if wanted.size == 0:
        return 0.0
    some, others = _some(wanted), _some(_laid_out(wanted, array))
    return float(np.mean((others == some) & (some != 0)))


def _laid_out(wanted: Array, array: Array) -> Array:
    """An array in the layout of a parameter: that in which most numbers are the same, else are most alike."""
    views = [array.reshape(wanted.shape)]
    if wanted.ndim >= 2:
        swapped = np.swapaxes(wanted, 0, 1).shape
        views.append(np.swapaxes(array.reshape(swapped), 0, 1))
        if wanted.ndim > 2:
            views.append(np.swapaxes(array.reshape(np.swapaxes(wanted, 0, -1).shape), 0, -1))
    some = _some(wanted)
    return max(views, key=lambda v: (float(np.mean(_some(v) == some)), abs(float(np.sum(_some(v) * some)))))


def _some(array: Array) -> Array:
    """The numbers of an array, of a large one some rows from all over it."""
    count = max(1, _MANY // max(1, array[:1].size)) if array.ndim else 1
    return array[:: max(1, len(array) // count)] if array.ndim and array.size > _MANY else array


def _row(operand: Operand, name: str, how: Carried, verdict: WeightVerdict, found: Unlike) -> WeightResult:
    return WeightResult(operand.names[0], name, how, verdict, operand.array.shape, found.max_abs, found.rel_l2)


def _relative(wanted: Array, got: Array) -> float:
    return float(np.linalg.norm(got - wanted)) / max(float(np.linalg.norm(wanted)), 1e-300)


def _mostly(wrong: Array) -> bool:
    return 2 * int(wrong.sum()) > wrong.size


def _few(wrong: Array) -> tuple[int, ...]:
    """The channels that differ, where they are few."""
    found = np.flatnonzero(wrong)
    return tuple(map(int, found)) if 0 < found.size <= max(wrong.size // 2, 1) else ()


def _missing(operand: Operand, place: Place) -> WeightResult:
    """What is told of a parameter whose numbers are nowhere."""
    shape = operand.array.shape
    if place.right and not np.any(operand.array):
        return WeightResult(operand.names[0], None, Carried.OMITTED, _AGREES, shape, 0.0, 0.0, (), "all zeros")
    if place.right:
        note = "into other constants; what is computed from it is right"
        return WeightResult(operand.names[0], None, Carried.FOLDED, _AGREES, shape, None, None, (), note)
    return WeightResult(operand.names[0], None, Carried.ABSENT, _ABSENT, shape)


def worst(results: Sequence[WeightResult]) -> WeightResult:
    """Of what was found at several operators, that which speaks most against a parameter."""
    order = (_AGREES, _ABSENT, _DIFFERS)
    return max(results, key=lambda r: (order.index(r.verdict), r.how is not Carried.EXACT, r.max_abs or 0.0))
