"""The final outputs: which of the model's is which of the graph's, and whether they agree."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import ref

import numpy as np

from layerdiff.errors import AlignmentError
from layerdiff.limits import limit_for
from layerdiff.measure import measure
from layerdiff.model import Noise, OutputResult
from layerdiff.nonfinite import not_finite
from layerdiff.operators import base_name
from layerdiff.parts import judged_by_parts, limits_of_parts

if TYPE_CHECKING:
    from collections.abc import Mapping

    from layerdiff.graph import Port
    from layerdiff.model import Metrics, Reference, Tolerance

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class OutputPairs:
    """Output values of the reference with the graph output that stands for each, and how to judge them.

    `listed` are the graph's outputs in the order of the file.
    """

    reference: Reference
    tensors: Mapping[int, str]
    unpaired: tuple[str, ...]
    floor: Mapping[int, Noise]
    tolerance: Tolerance | None
    masks: Mapping[int, Array] = field(default_factory=dict)
    listed: tuple[str, ...] = ()

    def measured(self, arrays: Mapping[str, Array | None]) -> dict[int, Metrics | None]:
        """Metrics per output value; None where the shapes differ or the candidate gives no tensor."""
        return {value: self.of(value, arrays.get(name)) for value, name in self.tensors.items()}

    def of(self, value: int, actual: Array | None) -> Metrics | None:
        """Metrics of an array as an output value; None where it is not there or of another shape."""
        if actual is None:
            return None
        seen = self._seen.get((value, id(actual)))
        if seen is None or seen[0]() is not actual:  # the same run is asked for several times
            seen = self._seen[value, id(actual)] = ref(actual), self._of(value, actual)
        return seen[1]

    @cached_property
    def _seen(self) -> dict[tuple[int, int], tuple[ref[Array], Metrics | None]]:
        return {}

    def _of(self, value: int, actual: Array) -> Metrics | None:
        known = self.reference.values[value]
        if known.array is None or known.array.shape != actual.shape:
            return None
        expected = known.array
        if expected.dtype.kind in "iu" and (tied := self._tied(value, actual)) is not None:
            expected, actual = tied
        if value in self.masks:
            actual = np.where(self.masks[value], actual, expected)
        metrics = measure(expected, actual, dtype=known.dtype, noise=self.floor.get(value), tolerance=self.tolerance)
        parts = self._parts.get(value) if metrics.agrees else None
        return metrics if parts is None else judged_by_parts(metrics, expected, actual, parts)

    @cached_property
    def _parts(self) -> dict[int, Array]:
        """What is allowed for each element of the outputs that have parts of unlike size."""
        if self.tolerance is not None:
            return {}
        found = {value: limits_of_parts(self.reference, value, self.floor) for value in self.tensors}
        return {value: limits for value, limits in found.items() if limits is not None}

    def _tied(self, value: int, actual: Array) -> tuple[Array, Array] | None:
        """For positions of the largest or sorted elements, the elements there: equals may come in any order."""
        site = self.reference.producer(value)
        if site is None or base_name(site.op) not in ("argmax", "argmin", "max", "min", "topk", "sort", "argsort"):
            return None
        source = self.reference.values[site.inputs[0]]
        axis = site.arguments.get("dim", -1)
        expected = self.reference.values[value].array
        if source.array is None or source.array.ndim == 0 or not isinstance(axis, int) or expected is None:
            return None
        if site.arguments.get("dim") is None and base_name(site.op) in ("argmax", "argmin"):
            flat = source.array.reshape(-1)
            return _rounded(flat[expected], flat[actual], source.dtype, self.floor.get(site.inputs[0]))
        if expected.ndim < source.array.ndim:
            expected, actual = np.expand_dims(expected, axis), np.expand_dims(actual, axis)
        if actual.size and not (actual.min() >= 0 and actual.max() < source.array.shape[axis]):
            return None
        left, right = (np.take_along_axis(source.array, i, axis) for i in (expected, actual))
        return _rounded(left, right, source.dtype, self.floor.get(site.inputs[0]))

    def everywhere(self) -> OutputPairs:
        """The same pairs, judged at every position."""
        return replace(self, masks={})

    def unmoved(self, before: Mapping[str, Array], after: Mapping[str, Array]) -> bool:
        """Whether no output moves between two runs of the candidate, at the positions that count."""
        for value, name in self.tensors.items():
            known, old, new = self.reference.values[value], before.get(name), after.get(name)
            if old is None or new is None or old.shape != new.shape:
                return False
            if value in self.masks and old.shape == known.shape:
                new = np.where(self.masks[value], new, old)
            noise = self.floor.get(value) if old.shape == known.shape else None
            if not measure(old, new, dtype=known.dtype, noise=noise, tolerance=self.tolerance).agrees:
                return False
        return True

    def all_agree(self, arrays: Mapping[str, Array] | Mapping[str, Array | None]) -> bool:
        """Whether every output agrees."""
        return all(metrics is not None and metrics.agrees for metrics in self.measured(arrays).values())

    def comparable(self, arrays: Mapping[str, Array]) -> dict[int, str]:
        """The pairs whose tensor has as many elements as the value."""
        found = {}
        for value, name in self.tensors.items():
            array = self.reference.values[value].array
            if array is not None and name in arrays and arrays[name].size == array.size:
                found[value] = name
        return found

    def results(self, shipped: Mapping[str, Array | None], tapped: Mapping[str, Array]) -> tuple[OutputResult, ...]:
        """One result per output, in the model's order."""
        names = {value: name for name, value in reversed(list(self.reference.outputs.items()))}
        of_shipped, of_tapped = self.measured(shipped), self.measured(tapped)
        unmasked = self.everywhere().measured(shipped) if self.masks else {}
        found = []
        for value, tensor in self.tensors.items():
            actual = shipped.get(tensor)
            shape = None if actual is None else actual.shape
            expected = self.reference.values[value].shape
            found.append(
                OutputResult(
                    tensor if names[value].isdigit() or not names[value] else names[value],
                    tensor,
                    expected,
                    shape,
                    of_shipped[value],
                    of_tapped[value],
                    unmasked[value] if value in self.masks else None,
                )
            )
        return tuple(found)

    def warnings(self) -> tuple[str, ...]:
        """Sentences about outputs that have no partner, of which nothing counts, or that are no numbers."""
        empty = [self.tensors[value] for value, mask in self.masks.items() if mask.size and not mask.any()]
        found = [f"not compared, for want of a partner: output {', '.join(self.unpaired)}"] if self.unpaired else []
        found += [f"not compared, because `valid` excludes all of it: output {', '.join(empty)}"] if empty else []
        ours = [name for name in self.tensors.values() if name not in self.reference.outputs]
        theirs = [name for name in self.listed if name in ours]
        if theirs != ours[: len(theirs)]:
            found.append(f"the file gives its outputs in another order, {', '.join(theirs)}: paired by shape")
        return (*found, *not_finite(self.reference, self.tensors))

    def worst(self, metrics: Mapping[int, Metrics | None]) -> float:
        """The largest max_abs; infinity where an output cannot be compared or only one side is finite."""
        return max(
            (np.inf if m is None or m.nonfinite_mismatches else m.max_abs for m in metrics.values()), default=0.0
        )


def _rounded(expected: Array, actual: Array, dtype: str, noise: Noise | None) -> tuple[Array, Array]:
    """Elements that are equal within rounding are made equal, so that a tie is no difference."""
    if expected.dtype.kind != "f":
        return expected, actual
    limit = limit_for(expected, dtype, None if noise is None else Noise(noise.max_abs, noise.rms))
    return expected, np.where(np.abs(actual - expected) <= limit, expected, actual)


def pair_outputs(
    reference: Reference, ports: tuple[Port, ...], hint: str = ""
) -> tuple[dict[int, str], tuple[str, ...]]:
    """Output values with the graph output of each, and the outputs on either side that found no partner.

    By name where every graph output is named as the model names it, else by position; where the numbers differ, in
    order by shape.

    Raises
    ------
    AlignmentError
        Nothing could be paired.

    """
    named = dict(reference.outputs)
    names = [port.name for port in ports]
    if set(names) <= set(named):
        pairs = [(named[name], name) for name in names]
    elif len(names) == len(named):
        pairs = list(zip(named.values(), names, strict=True))
        by_shape = _by_shape(reference, ports)
        if not _shapes_fit(reference, pairs, ports) and len(by_shape) == len(pairs):
            pairs = by_shape  # listed in another order
    else:
        pairs = _by_shape(reference, ports)
    # One value may leave twice; the later name is dropped from the pairs, not from the graph.
    tensors = dict(reversed(pairs))
    if not tensors:
        ours = ", ".join(f"{k or 'output'} {reference.values[v].shape}" for k, v in named.items()) or "no tensor"
        theirs = ", ".join(f"{port.name} {port.shape}" for port in ports) or "nothing"
        raise AlignmentError(
            f"outputs cannot be paired: the model returns {ours}, the graph {theirs}; is it an export of this model?"
            + (f" Note: {hint}." if hint else "")
        )
    unpaired = [name for name in names if name not in tensors.values()]
    unpaired += [name or "output" for name, value in named.items() if value not in tensors]
    return dict(reversed(list(tensors.items()))), tuple(unpaired)


def _shapes_fit(reference: Reference, pairs: list[tuple[int, str]], ports: tuple[Port, ...]) -> bool:
    shapes = {port.name: port.shape for port in ports}
    for value, name in pairs:
        shape, wanted = reference.values[value].shape, shapes[name]
        if wanted is None:
            continue
        if len(wanted) != len(shape) or any(w not in (None, n) for w, n in zip(wanted, shape, strict=True)):
            return False
    return True


def _by_shape(reference: Reference, ports: tuple[Port, ...]) -> list[tuple[int, str]]:
    free = list(ports)
    pairs = []
    for value in reference.outputs.values():
        shape = reference.values[value].shape
        for port in free:
            wanted = port.shape or shape
            if len(wanted) == len(shape) and all(w in (None, n) for w, n in zip(wanted, shape, strict=True)):
                pairs.append((value, port.name))
                free.remove(port)
                break
    return pairs
