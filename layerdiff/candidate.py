"""The candidate with one sample: run as shipped, with every tensor visible, or cut open and fed expected values."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.backends import Optimisation
from layerdiff.flatten import flattened
from layerdiff.graph import RANDOM, Graph

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    import onnx

    from layerdiff.backends import Backend
    from layerdiff.graph import Injection

    Array = np.ndarray[Any, Any]


class Candidate:
    """An ONNX graph, the runtime it runs on and the inputs it is fed. The model that ships is never replaced."""

    def __init__(
        self, source: str | Path | onnx.ModelProto, graph: Graph, backend: Backend, feeds: Mapping[str, Array]
    ) -> None:
        self.graph = graph
        self.feeds = dict(feeds)
        self._source = source
        self._backend = backend

    @cached_property
    def shipped(self) -> dict[str, Array | None]:
        """The outputs of the untouched model with all of the runtime's optimisations."""
        return self._backend.open(self._source, Optimisation.AS_SHIPPED).run(self.feeds)

    def shipped_without(self, passes: Sequence[str]) -> dict[str, Array | None]:
        """The outputs of the untouched model when some optimisation passes of the runtime are off."""
        return self._backend.open(self._source, Optimisation.AS_SHIPPED, passes).run(self.feeds)

    def as_optimised(self, level: Optimisation) -> Candidate:
        """The candidate with the graph that the runtime really runs at an optimisation level."""
        graph = Graph(self._backend.optimised(self._source, level), take_apart=False)
        return Candidate(self._source, graph, self._backend, self.feeds)

    @property
    def passes(self) -> Sequence[str]:
        """The optimisation passes that the runtime can turn off one by one."""
        return self._backend.passes

    def flat(self) -> Candidate:
        """The candidate with its control flow laid flat, as this sample takes it; itself when there is none."""
        model = flattened(self.graph.model, self._named)
        return self if model is self.graph.model else Candidate(self._source, Graph(model), self._backend, self.feeds)

    def _named(self, model: onnx.ModelProto, names: list[str]) -> dict[str, Array | None]:
        return self._backend.open(Graph(model).rewritten(names), Optimisation.NONE).run(self.feeds)

    @cached_property
    def tapped(self) -> dict[str, Array]:
        """Every tensor that the graph computes, and its inputs, from one run without optimisations."""
        return self.feeds | self._run(list(self.graph.computed), (), None, None)

    @cached_property
    def unstable(self) -> frozenset[str]:
        """The tensors that differ between two runs on the same inputs; only looked for where a node draws at random."""
        if not any(self.graph.nodes[index].op in RANDOM for index in self.graph.live_nodes):
            return frozenset()
        again = self._run(list(self.graph.computed), (), None, None)
        return frozenset(
            n for n, a in again.items() if not np.array_equal(a, self.tapped[n], equal_nan=a.dtype.kind == "f")
        )

    @cached_property
    def constants(self) -> dict[str, Array]:
        """The numbers of every constant operand: initializers, and tensors computed from initializers alone."""
        graph = self.graph
        read = {name for node in graph.nodes for name in node.inputs if name in graph.constant}
        stored = {name: a for name in read & graph.initializers if (a := graph.initializer(name)) is not None}
        derived = sorted(read - graph.initializers)
        if derived:
            nodes = set().union(*(graph.region(name, ())[0] for name in derived))
            stored |= self._run(derived, (), nodes, {})
        return stored

    def isolated(self, injections: Sequence[Injection]) -> dict[str, Array]:
        """Every tensor of the graph when the injected tensors are read with the given values instead of their own."""
        return self._run(list(self.graph.computed), injections, None, None)

    def outputs_with(self, injections: Sequence[Injection]) -> dict[str, Array]:
        """The graph's outputs when the injected tensors are replaced; an output that is itself injected is replaced."""
        names = [port.name for port in self.graph.outputs]
        found = self._run(names, injections, None, None)
        return found | {i.tensor: i.value for i in injections if i.tensor in found and i.edges is None}

    def region(
        self, target: str, nodes: Iterable[int], sources: Mapping[str, Array], injections: Sequence[Injection]
    ) -> Array | None:
        """One tensor, computed by a few nodes from the given sources."""
        return self._run([target], injections, nodes, sources).get(target)

    def named(self, names: Sequence[str]) -> dict[str, Array]:
        """Some tensors of a normal run; inputs as they are fed."""
        computed = [name for name in dict.fromkeys(names) if name not in self.feeds]
        return {n: a for n, a in self.feeds.items() if n in names} | self._run(computed, (), None, None)

    def part(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Candidate:
        """Another model, such as a changed part of this one, on the same runtime."""
        return Candidate(model, Graph(model, take_apart=False), self._backend, feeds)

    def cut(self, target: str, nodes: Iterable[int], sources: Mapping[str, Array]) -> onnx.ModelProto:
        """The model of a few nodes alone: from the sources to one tensor."""
        return self.graph.rewritten([target], nodes=nodes, sources=sources)

    def _run(
        self,
        outputs: list[str],
        injections: Sequence[Injection],
        nodes: Iterable[int] | None,
        sources: Mapping[str, Array] | None,
    ) -> dict[str, Array]:
        if not outputs:
            return {}
        model = self.graph.rewritten(outputs, injections, nodes=nodes, sources=sources)
        feeds = {**(self.feeds if sources is None else sources), **{i.feed: i.value for i in injections}}
        arrays = self._backend.open(model, Optimisation.NONE).run(feeds)
        return {name: array for name, array in arrays.items() if array is not None}
