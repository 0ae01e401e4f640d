"""The accused pair as something that can be run: reference operators on one side, ONNX nodes on the other.

Good values go in on both sides. A hypothesis about the cause is a patch of the nodes; it is right when the tensor that
came out wrong then comes out right.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.weights import parameters_of_sites
from layerdiff.diagnose.difference import differences
from layerdiff.diagnose.parts import MOVING, Beside, Part
from layerdiff.errors import BackendError, PatchError
from layerdiff.exporting import Exporter
from layerdiff.formats import QUANTISED, rounds_to
from layerdiff.layout import inverse
from layerdiff.localise import Slot, reference_region
from layerdiff.lowering import lowered
from layerdiff.model import Kind
from layerdiff.operators import is_reshaping
from layerdiff.patch import (
    Splice,
    patched,
    with_cast_input,
    with_cast_output,
    with_reshaped_input,
    with_reshaped_output,
    with_turned_input,
    with_turned_output,
    within,
)
from layerdiff.sides.torch_nodes import DOMAIN as TORCH
from layerdiff.taken import is_onnx, recorded, taken

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx

    from layerdiff.align import Alignment
    from layerdiff.diagnose.difference import Difference
    from layerdiff.graph import Node
    from layerdiff.localise import Origin
    from layerdiff.lowering import Lowered
    from layerdiff.model import Divergence, Site
    from layerdiff.patch import Change

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Comparison:
    """What the stretch should have become, and every difference to it."""

    fresh: Lowered
    beside: Beside

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """Every one, in the order of the nodes."""
        return tuple(differences(self.beside))

    @property
    def constants(self) -> Mapping[str, Array]:
        """The numbers of the constant operands that it should have."""
        return self.beside.wanted.constants


@dataclass(frozen=True, slots=True)
class Runnable:
    """A few nodes as a model of their own: what it is fed, what it computes, and the value that this stands for."""

    tensor: str
    value: int
    model: onnx.ModelProto
    feeds: Mapping[str, Array]


@dataclass(frozen=True)
class Stretch:
    """One origin with all that is known about it."""

    alignment: Alignment
    origin: Origin
    divergence: Divergence
    exporter: Exporter = Exporter.TORCHSCRIPT
    given: Comparison | None = None  # instead of that of the whole stretch

    @cached_property
    def sites(self) -> tuple[Site, ...]:
        """The reference operators from right values to the wrong one, in execution order."""
        reference, found = self.alignment.reference, set(self.origin.sites)
        behind: set[int] = set()
        site = reference.producer(self.value)
        while site is not None and site.index not in found and is_reshaping(site.op) and site.inputs:
            behind.add(site.index)  # the value may be a view of what they compute
            site = reference.producer(site.inputs[0])
        found |= behind if site is not None and site.index in found else set()
        return tuple(reference.sites[index] for index in sorted(found))

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """The values that come in on the reference side, and that the candidate has too."""
        made = {value for site in self.sites for value in site.outputs}
        read = dict.fromkeys(value for site in self.sites for value in site.inputs)
        known = self.alignment.reference.values
        return tuple(value for value in read if value not in made and not known[value].constant)

    @property
    def value(self) -> int:
        """The value that the stretch should compute."""
        return self.origin.value

    @cached_property
    def expected(self) -> Array | None:
        """What PyTorch computed at the end of the stretch."""
        return self.alignment.reference.values[self.value].array

    @cached_property
    def actual(self) -> Array | None:
        """What the nodes make of right inputs there."""
        name = self.origin.slot.tensor
        found = self.alignment.isolated.get(name)
        return self.alignment.candidate.tapped.get(name) if found is None else found

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The accused ONNX nodes, in topological order."""
        graph = self.alignment.candidate.graph
        return tuple(graph.nodes[index] for index in self.origin.nodes)

    def constant(self, name: str) -> Array | None:
        """The numbers of a constant operand."""
        return self.alignment.candidate.constants.get(name)

    @cached_property
    def constants(self) -> tuple[tuple[Node, int, Array], ...]:
        """Every constant operand of the accused nodes: node, slot, numbers."""
        return tuple(
            (node, slot, array)
            for node in self.nodes
            for slot, name in enumerate(node.inputs)
            if (array := self.constant(name)) is not None
        )

    def parameters(self, site: Site) -> dict[str, Array]:
        """The parameters that a site reads, by qualified name."""
        reference = self.alignment.reference
        return {name: reference.parameters[name] for name in self._parameters.get(site.index, ())}

    @cached_property
    def _parameters(self) -> dict[int, tuple[str, ...]]:
        return parameters_of_sites(self.alignment.reference)

    def holder(self, value: int) -> str | None:
        """A tensor of the candidate that holds a reference value (or a reshape of it); live ones first."""
        tapped, shape = self.alignment.candidate.tapped, self.alignment.reference.values[value].shape
        names = self._holders(value)
        return next((name for name in names if tapped[name].shape == shape), next(iter(names), None))

    def _holders(self, value: int) -> list[str]:
        found, root = self.alignment, self.alignment.root(value)
        names = [*sorted(found.tensors_of(value)), *sorted(found.tensors_of(root))]
        names += [*found.matched.get(value, ()), *found.matched.get(root, ())]
        size = int(np.prod(found.reference.values[value].shape))
        tapped = found.candidate.tapped
        return [name for name in dict.fromkeys(names) if name in tapped and tapped[name].size == size]

    @cached_property
    def comparison(self) -> Comparison | None:
        """The accused nodes beside what the stretch should have become; None where the exporter cannot express it."""
        return self.given or self._compared(self.exporter)

    def by(self, exporter: Exporter) -> Stretch:
        """The same stretch, lowered by another exporter."""
        return replace(self, exporter=exporter)

    def widened(self) -> Stretch:
        """The same origin as it was before trials narrowed it down: up to the tensor that came out wrong."""
        if self.origin.wrong is None:
            return self
        tensor, value = self.origin.wrong
        nodes, _ = self.alignment.candidate.graph.region(tensor, self.alignment.forced())
        sites, _ = reference_region(self.alignment, value)
        origin = replace(
            self.origin,
            value=value,
            slot=Slot(tensor),
            sites=tuple(sorted(sites)),
            nodes=tuple(sorted(nodes)),
            inserted=False,
            rewired=False,
        )
        kind = Kind.COMPUTED if nodes else Kind.DROPPED
        return replace(self, origin=origin, divergence=replace(self.divergence, kind=kind))

    def upstream(self) -> Stretch:
        """The same origin from further up: before what only moves numbers, and before any layout of the file's own.

        A tensor behind a Transpose can hold the right numbers in the wrong place, and a foreign order of axes can be
        the fault itself. So the stretch begins where numbers were last computed, in the model's layout.
        """
        found, graph = self.alignment, self.alignment.candidate.graph
        moved = {name for node in graph.nodes if node.op in MOVING for name in node.outputs}
        moved |= set(found.candidate.layout)
        candidate = found.candidate.as_kept()
        matched = {v: kept for v, names in found.matched.items() if (kept := [n for n in names if n not in moved])}
        isolated = {v: k for v, names in found.isolated_matches.items() if (k := [n for n in names if n not in moved])}
        proposed = {v: pair for v, pair in found.proposed.items() if pair.tensor not in moved}
        plain = replace(
            found, candidate=candidate, matched=matched, isolated_matches=isolated, proposed=proposed, isolated={}
        )
        return replace(self, alignment=plain, given=None).widened()

    @property
    def turned(self) -> bool:
        """Whether the accused nodes read a tensor whose axes the file keeps in another order."""
        layout = self.alignment.candidate.layout
        return any(name in layout for node in self.nodes for name in node.inputs)

    def _compared(self, exporter: Exporter) -> Comparison | None:
        reference, graph = self.alignment.reference, self.alignment.candidate.graph
        if not self.sites:
            return None
        once = exporter is Exporter.TORCHSCRIPT  # where nothing is exported there is one way
        sites = [site.index for site in self.sites]
        if is_onnx(self.sites):
            fresh = taken(reference, self.sites, self.inputs, self.value, graph.opset()) if once else None
        elif any(entry.domain == TORCH for entry in graph.model.opset_import):
            fresh = recorded(reference, self.sites, self.inputs, self.value) if once else None
        else:
            fresh = lowered(reference, sites, self.inputs, self.value, (exporter, graph.opset()))
        if fresh is None:
            return None
        part = self.alignment.candidate.part(fresh.model, {})
        wanted = Part.of(part.graph, range(len(part.graph.nodes)), part.constants)
        got = Part.of(graph, self.origin.nodes, self.alignment.candidate.constants)
        sources = {name: frozenset(self._holders(value)) for name, value in fresh.inputs.items()}
        return Comparison(fresh, Beside(wanted, got, sources))

    def only_quantised(self, difference: Difference) -> bool:
        """Whether weights that are kept in integers are about the model's: rounding is no fault of theirs."""
        node, wanted, got = difference.node, difference.wanted, difference.got
        if node is None or not isinstance(got, np.ndarray) or not isinstance(wanted, np.ndarray):
            return False
        graph = self.alignment.candidate.graph
        slot = difference.slot if difference.place is None else difference.place.slot
        names = graph.nodes[node.index].inputs
        if got.size != wanted.size or not 0 <= slot < len(names) or graph.dequantiser(names[slot]) is None:
            return False
        off = float(np.linalg.norm(got.reshape(-1).astype(np.float64) - wanted.reshape(-1)))
        return off <= QUANTISED * float(np.linalg.norm(wanted))

    def splice(self, fresh: Lowered) -> Splice | None:
        """The change that puts fresh nodes in place of the accused ones; None where an input is nowhere in the file."""
        candidate, values = self.alignment.candidate, self.alignment.reference.values
        model, inputs = fresh.model, []
        for name, value in fresh.inputs.items():
            tensor = self.holder(value)
            if tensor is None:
                return None
            outside, inside = candidate.tapped[tensor], values[value].array
            if outside.shape != values[value].shape:
                model = with_reshaped_input(model, name, values[value].shape)
            if inside is not None and outside.dtype != inside.dtype:
                model = with_cast_input(model, name, inside.dtype)
            if tensor in candidate.layout:
                model = with_turned_input(model, name, candidate.layout[tensor])
            inputs.append((name, tensor))
        slot = self.origin.slot
        wanted = values[self.value].shape
        if slot.axes is not None:  # the file keeps the value in another layout there
            model, wanted = with_turned_output(model, slot.axes), tuple(wanted[axis] for axis in slot.axes)
        if self.actual is not None and self.actual.shape != wanted and self.actual.size == int(np.prod(wanted)):
            model = with_reshaped_output(model, self.actual.shape)
        if self.actual is not None and self.expected is not None and self.actual.dtype != self.expected.dtype:
            model = with_cast_output(model, self.actual.dtype)
        if slot.tensor in candidate.layout:
            model = with_turned_output(model, inverse(candidate.layout[slot.tensor]))
        graph = candidate.graph
        edges = None if slot.edges is None else tuple((graph.nodes[n].outputs[0], s) for n, s in sorted(slot.edges))
        return Splice(slot.tensor, model, tuple(inputs), edges)

    @property
    def misread(self) -> bool:
        """Whether another value heals on some edges only: then all between there and the wrong tensor counts.

        Where nothing stands for an operator its absence is the cause, and the rest of the way is right.
        """
        kind, origin = self.divergence.kind, self.origin
        wired = kind in (Kind.COMPUTED, Kind.REWIRED)
        return wired and origin.slot.edges is not None and origin.wrong is not None

    @property
    def narrow(self) -> bool:
        """Whether the accused nodes compute in half precision somewhere, or read what does."""
        tapped = self.alignment.candidate.tapped
        names = {name for node in self.nodes for name in (*node.inputs, *node.outputs)}
        names |= set() if self.part is None else set(self.part.feeds)
        return any(name in tapped and tapped[name].dtype == np.float16 for name in names)

    @property
    def expected_wrong(self) -> Array | None:
        """What the tensor that came out wrong should hold."""
        return None if self.part is None else self.alignment.reference.values[self.part.value].array

    @cached_property
    def part(self) -> Runnable | None:
        """The nodes from right sources to the tensor that came out wrong, as a model of their own."""
        if self.origin.wrong is None:
            return None
        tensor, value = self.origin.wrong
        found, graph = self.alignment, self.alignment.candidate.graph
        forced = found.forced()
        nodes, start = graph.region(tensor, forced)
        borders = {name: value for value in self._border() if (name := self.holder(value)) is not None}
        inside = {name for index in nodes for name in graph.nodes[index].outputs}
        sources = {name: found.expected_for(name, forced[name]) for name in start if name in forced}
        sources |= {n: a for n in start - set(sources) if (a := found.candidate.tapped.get(n)) is not None}
        extra = {n: found.expected_for(n, v) for n, v in borders.items() if n not in inside and n not in sources}
        feeds = {name: found.candidate.as_in_file(name, array) for name, array in (sources | extra).items()}
        return Runnable(tensor, value, found.candidate.excerpt(tensor, nodes, feeds), feeds)

    def _border(self) -> set[int]:
        """Every right value that the stretch, or what lies between it and the wrong tensor, starts from."""
        wrong = () if self.origin.wrong is None else (self.origin.wrong[1],)
        found: set[int] = set(self.inputs) | {self.value}
        for value in (self.value, *wrong):
            found |= set(reference_region(self.alignment, value)[1])
        return found

    def outcome(self, patch: Iterable[Change]) -> Array | None:
        """The tensor that came out wrong, computed by the patched nodes; None when they cannot run."""
        if self.part is None:
            return None
        try:
            model = patched(self.part.model, within(self.part.model, patch))
            candidate = self.alignment.candidate
            return candidate.shown(candidate.part(model, self.part.feeds).outputs_with(())).get(self.part.tensor)
        except (BackendError, PatchError):
            return None

    def holds(self, patch: Iterable[Change]) -> bool:
        """Whether the patched nodes compute the right value, to the noise floor."""
        return self.is_right(self.outcome(patch))

    def gap(self, patch: Iterable[Change] = ()) -> float:
        """The largest error of the tensor that came out wrong, after the patch; infinite when it cannot run."""
        return self.off_by(self.outcome(patch))

    def is_right(self, outcome: Array | None) -> bool:
        """Whether what came out is the right value: to the noise floor, or to the format that the nodes compute in."""
        if self.part is None:
            return False
        return self.alignment.holds(self.part.value, outcome) or self._rounds_to(self.format, outcome)

    def _rounds_to(self, kind: str | None, outcome: Array | None) -> bool:
        expected = self.expected_wrong
        return kind is not None and expected is not None and outcome is not None and rounds_to(kind, expected, outcome)

    @cached_property
    def format(self) -> str | None:
        """The half precision that the nodes compute in, where the error is more than that explains; else None.

        Where it explains the error, the format itself is the cause, and only float32 is right.
        """
        if not self.narrow:
            return None
        return None if self._rounds_to("float16", self.outcome(())) else "float16"

    def off_by(self, actual: Array | None) -> float:
        """The largest error of what came out; infinite where nothing did."""
        expected = self.expected_wrong
        if expected is None or actual is None or actual.size != expected.size or expected.dtype.kind not in "fiub":
            return float("inf")
        with np.errstate(invalid="ignore"):
            difference = np.abs(actual.reshape(-1).astype(np.float64) - expected.reshape(-1).astype(np.float64))
        difference[(actual.reshape(-1) == expected.reshape(-1))] = 0.0  # equal infinities
        return float(difference.max(initial=0.0))
