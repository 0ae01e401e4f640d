"""Where in the candidate a reference operator's weights must be: the constants of the nodes that compute its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerdiff.operators import only_moves
from layerdiff.shelf import Made

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np

    from layerdiff.align import Alignment
    from layerdiff.model import Site

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Operand:
    """A constant that an operator reads, and the parameters behind it; `moved` where it is one of them as it is."""

    value: int
    array: Array
    names: tuple[str, ...]
    moved: bool


@dataclass(frozen=True, slots=True)
class Place:
    """The constants of the nodes between right values that compute an operator's result.

    `right` tells whether the result comes out right; None where no tensor stands for it.
    """

    constants: Mapping[str, Array]
    operators: frozenset[str]
    right: bool | None
    sites: frozenset[int]


class Places:
    """Finds the place of each reference operator; neighbours that end in one tensor share one."""

    def __init__(self, alignment: Alignment, constants: Mapping[str, Array]) -> None:
        self._alignment = alignment
        self._constants = constants
        self._forced = alignment.forced()
        self._readers: dict[int, list[Site]] = {}
        for site in alignment.reference.sites:
            for value in site.inputs:
                self._readers.setdefault(value, []).append(site)
        self._known: dict[int, Place] = {}
        self._below: dict[int, Operand | None] = {}

    def operands(self, site: Site) -> Iterator[Operand]:
        """The constant operands of a site that parameters are behind."""
        for value in dict.fromkeys(site.inputs):
            if value not in self._below:
                self._below[value] = self._operand(value)
            found = self._below[value]
            if found is not None:
                yield found

    def _operand(self, value: int) -> Operand | None:
        reference = self._alignment.reference
        known = reference.values[value]
        if not known.constant:
            return None
        array = known.array if known.parameter is None else reference.parameters.get(known.parameter)
        names: dict[str, None] = {}
        moved, todo = True, [value]
        while todo:
            one = reference.values[todo.pop()]
            if one.parameter is not None:
                names[one.parameter] = None
            elif one.site is not None:
                maker = reference.sites[one.site]
                moved = moved and only_moves(maker.op)
                todo += [v for v in maker.inputs if reference.values[v].constant]
        return None if array is None or not names else Operand(value, array, tuple(names), moved)

    def of(self, site: Site) -> Place:
        """The place of a site."""
        ends = self._ends(site)
        constants: dict[str, None] = {}
        operators: set[str] = set()
        sites: set[int] = {site.index}
        rights = []
        for value in ends:
            if value not in self._known:
                self._known[value] = self._ending_in(value)
            part = self._known[value]
            constants |= dict.fromkeys(part.constants)
            operators |= part.operators
            sites |= part.sites
            rights.append(part.right)
        return Place(self._numbers(constants), frozenset(operators), all(rights) if rights else None, frozenset(sites))

    def _ends(self, site: Site) -> list[int]:
        """The nearest values downstream that a tensor stands for."""
        found, todo, seen = [], list(site.outputs), set(site.outputs)
        while todo:
            value = todo.pop(0)
            if self._alignment.reference.values[value].constant:
                continue
            if self._alignment.pair(value) is not None:
                found.append(value)
                continue
            fresh = [v for reader in self._readers.get(value, ()) for v in reader.outputs if v not in seen]
            seen.update(fresh)
            todo += fresh
        return found

    def _ending_in(self, value: int) -> Place:
        from layerdiff.localise import reference_region

        found, graph = self._alignment, self._alignment.candidate.graph
        pair = found.pair(value)
        assert pair is not None
        nodes, _ = graph.region(pair.tensor, self._forced)
        known = self._constants
        reading = [graph.nodes[index] for index in sorted(nodes)]
        # Of what is dequantised the real numbers count: with another scale the integers alone are right.
        reading = [n for n in reading if n.op != "DequantizeLinear" or n.outputs[0] not in known]
        names = dict.fromkeys(name for node in reading for name in node.reads if name in known)
        runs = (found.isolated or found.candidate.tapped, found.candidate.tapped)
        right = any(found.holds_in(run, value, pair.tensor) for run in runs)
        operators = frozenset(graph.nodes[index].op for index in nodes)
        sites, _ = reference_region(found, value)
        return Place(self._numbers(names), operators, right, frozenset(sites))

    def _numbers(self, names: Mapping[str, None]) -> Mapping[str, Array]:
        """The numbers of some constants, read when they are looked at: weights that are kept stay in memory."""
        known = self._alignment.candidate.constants
        return Made(names, lambda name: known[name])

    def needed(self) -> frozenset[int]:
        """The sites that some output depends on."""
        reference = self._alignment.reference
        found: set[int] = set()
        todo = list(reference.outputs.values())
        while todo:
            site = reference.producer(todo.pop())
            if site is not None and site.index not in found:
                found.add(site.index)
                todo += site.inputs
        return frozenset(found)
