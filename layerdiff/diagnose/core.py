"""Which part of a stretch is at fault, where only all of it together could be replaced.

The fresh nodes are a model of their own, node by node: what they compute inside is what the accused nodes should
compute inside. So the search that led to the stretch is done once more within it. Numbers that both hold bound the
fault from above; the earliest fresh tensor that makes the result right when it is put into the accused nodes bounds it
from below.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.parts import Beside, Part
from layerdiff.diagnose.stretch import Comparison
from layerdiff.errors import BackendError
from layerdiff.graph import Injection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.candidate import Candidate
    from layerdiff.diagnose.stretch import Stretch

    Array = np.ndarray[Any, Any]

TRIALS = 60
"""How many values are put in somewhere, at most; each is one run of the few nodes."""

# Two kernels that compute the same; what a fault changes, it changes by more.
_EQUAL = 1e-5


@dataclass(frozen=True, slots=True)
class _Slot:
    """A tensor of the accused nodes, or one edge from it to a reader."""

    tensor: str
    edge: tuple[int, int] | None = None


@dataclass(frozen=True)
class _Both:
    """The fresh nodes and the accused ones, each run on right inputs; `right` says which tensors hold the same."""

    fresh: Candidate
    accused: Candidate
    right: Mapping[str, str]  # by the accused's tensor

    @classmethod
    def of(cls, stretch: Stretch) -> _Both | None:
        comparison, part = stretch.comparison, stretch.part
        if comparison is None or part is None:
            return None
        candidate, values = stretch.alignment.candidate, stretch.alignment.reference.values
        feeds = {name: values[v].array for name, v in comparison.fresh.inputs.items()}
        known = {name: array for name, array in feeds.items() if array is not None}
        fresh = candidate.part(comparison.fresh.model, known)
        accused = candidate.part(part.model, part.feeds)
        try:
            wanted, got = fresh.tapped, accused.tapped
        except BackendError:
            return None
        right: dict[str, str] = {}
        for tensor, actual in got.items():
            names = known if tensor in part.feeds else wanted  # what is fed besides may be the right result itself
            same = next((name for name in names if _equal(wanted[name], actual)), None)
            if same is not None and tensor != part.tensor:
                right[tensor] = same
        return cls(fresh, accused, right)

    def slots(self, end: str) -> Iterator[_Slot]:
        """Every tensor that is not known to be right, and every edge from one that is; the result itself last."""
        graph = self.accused.graph
        for node in graph.nodes:
            for at, name in enumerate(node.inputs):
                if name in self.accused.tapped and (name in self.right or name in self.accused.feeds):
                    yield _Slot(name, (node.index, at))
            for name in node.outputs:
                if name in self.accused.tapped and name not in self.right and name not in (end, *graph.constant):
                    yield _Slot(name)
        yield _Slot(end)


def narrowed(stretch: Stretch) -> Stretch | None:
    """The same stretch, compared only where it is at fault; None where that is all of it."""
    both = _Both.of(stretch)
    if both is None or stretch.comparison is None:
        return None
    found = _cure(stretch, both)
    if found is None:
        return None
    tensor, slot = found
    fresh, accused = both.fresh.graph, both.accused.graph
    wanted, _ = fresh.region(tensor, {*both.right.values(), *both.fresh.feeds})
    known = {*both.right, *both.accused.feeds}
    got = set() if slot.edge is not None and slot.tensor in known else accused.region(slot.tensor, known)[0]
    if len(wanted) == len(fresh.nodes) and len(got) == len(accused.nodes):
        return None
    sources: dict[str, frozenset[str]] = {}
    for name, same in both.right.items():
        sources[same] = sources.get(same, frozenset()) | {name}
    parts = Part.of(fresh, wanted, both.fresh.constants), Part.of(accused, got, both.accused.constants)
    return replace(stretch, given=Comparison(stretch.comparison.fresh, Beside(*parts, sources)))


def _cure(stretch: Stretch, both: _Both) -> tuple[str, _Slot] | None:
    """The earliest fresh tensor that makes the result right, and where in the accused nodes it does."""
    part = stretch.part
    assert part is not None
    held, count = set(both.right.values()), 0
    slots, tapped = list(both.slots(part.tensor)), both.accused.tapped
    for name in both.fresh.graph.computed:
        array = both.fresh.tapped.get(name)
        if array is None or name in both.fresh.graph.constant:
            continue
        for slot in slots:
            actual = tapped[slot.tensor]
            if actual.size != array.size or actual.dtype.kind != array.dtype.kind or _equal(array, actual):
                continue
            if slot.edge is None and name in held:  # the accused nodes have it; only a reader may have missed it
                continue
            count += 1
            if count > TRIALS:
                return None
            if _heals(stretch, both, slot, array):
                return name, slot
    return None


def _heals(stretch: Stretch, both: _Both, slot: _Slot, array: Array) -> bool:
    part = stretch.part
    assert part is not None
    like = both.accused.tapped[slot.tensor]
    value = np.ascontiguousarray(array).reshape(like.shape).astype(like.dtype)
    edges = None if slot.edge is None else frozenset({slot.edge})
    if slot.tensor == part.tensor and edges is None:
        return stretch.alignment.holds(part.value, value)
    try:
        nodes = range(len(both.accused.graph.nodes))
        found = both.accused.region(part.tensor, nodes, part.feeds, [Injection(slot.tensor, value, edges)])
    except BackendError:
        return False
    shown = None if found is None else stretch.alignment.candidate.shown({part.tensor: found})[part.tensor]
    return stretch.alignment.holds(part.value, shown)


def _equal(wanted: Array, actual: Array) -> bool:
    """Whether two tensors hold the same numbers in memory order, and enough different ones to tell."""
    if wanted.size != actual.size or wanted.dtype.kind != actual.dtype.kind or wanted.size < 2:
        return False
    a, b = wanted.reshape(-1), np.ascontiguousarray(actual).reshape(-1)
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = float(np.abs(a[finite]).max(initial=0.0))
    return bool(np.all(np.abs(a[finite] - b[finite]) <= _EQUAL * scale))
