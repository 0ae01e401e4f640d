"""The candidate with one sample: run as shipped, with every tensor visible, or cut open and fed expected values."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.backends import Optimisation
from layerdiff.errors import RuntimeDiedError
from layerdiff.external import with_weights
from layerdiff.flatten import flattened, left_whole
from layerdiff.graph import RANDOM, Graph, Injection
from layerdiff.layout import after, inverse, named
from layerdiff.pieces import Piece, Pieces
from layerdiff.portions import few_at_once, portions
from layerdiff.relay import Relay
from layerdiff.shelf import Made, Shelf
from layerdiff.sizes import counting, shapes_by_inference
from layerdiff.skim import skimmed
from layerdiff.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterable, Mapping, Sequence
    from pathlib import Path

    import onnx

    from layerdiff.backends import Backend
    from layerdiff.layout import Axes
    from layerdiff.shelf import Outline

    Array = np.ndarray[Any, Any]

# The share of sizes that shapes must tell, for the graph not to be run only to see how large everything is.
MOSTLY = 0.95


class Candidate:
    """An ONNX graph, the runtime it runs on and the inputs it is fed. The model that ships is never replaced."""

    def __init__(  # noqa: PLR0913  a model in three forms, its inputs, and two ways to look at its tensors
        self,
        source: str | Path | onnx.ModelProto,
        graph: Graph,
        backend: Backend,
        feeds: Mapping[str, Array],
        layout: Mapping[str, Axes] | None = None,
        formats: Mapping[str, str] | None = None,
        store: Store | None = None,
    ) -> None:
        self.graph = graph
        self.layout = dict(layout or {})
        self.formats = dict(formats or {})  # of tensors whose arrays are wider than what they hold
        self._fed = dict(feeds)
        self._source = source
        self._backend = backend
        self._store = store or Store()
        # What was last put in, and what then came out: a proof asks for what the search has seen.
        self._outputs_with: tuple[Sequence[Injection], dict[str, Array]] = ((), {})

    def in_layout(self, layout: Mapping[str, Axes]) -> Candidate:
        """The candidate that shows tensors, and takes values for them, with their axes permuted."""
        if not layout:
            return self
        found = Candidate(self._source, self.graph, self._backend, self._fed, layout, self.formats, self._store)
        found.__dict__["shipped"] = self.shipped
        found.__dict__["_portions"] = self._portions
        found.__dict__["tapped"] = self.tapped.turned(layout)
        return found

    def as_kept(self) -> Candidate:
        """The candidate that shows every tensor as the file keeps it."""
        return Candidate(self._source, self.graph, self._backend, self._fed, None, self.formats)

    @property
    def feeds(self) -> dict[str, Array]:
        """What the graph's inputs hold."""
        return self.shown(self._fed)

    def shown(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Tensors as the file keeps them, in the model's layout."""
        axes = {name: self.layout.get(name, ()) for name in arrays}
        return {n: a.transpose(axes[n]) if axes[n] and a.ndim == len(axes[n]) else a for n, a in arrays.items()}

    def as_in_file(self, tensor: str, array: Array) -> Array:
        """A tensor's numbers, given in the model's layout, as the file keeps them."""
        axes = self.layout.get(tensor)
        if axes is None or array.ndim != len(axes):
            return array
        return np.ascontiguousarray(array.transpose(inverse(axes)))

    @cached_property
    def moving(self) -> frozenset[int]:
        """The Transposes that only lead from one layout to another."""
        found = set()
        for node in self.graph.nodes:
            axes = self.graph.transposed_by(node) if node.op == "Transpose" else None
            if axes is not None and (node.inputs[0] in self.layout or node.outputs[0] in self.layout):
                before, behind = (
                    self.layout.get(n, tuple(range(len(axes)))) for n in (node.inputs[0], node.outputs[0])
                )
                if after(axes, behind) == before:
                    found.add(node.index)
        return frozenset(found)

    @cached_property
    def shipped(self) -> dict[str, Array | None]:
        """The outputs of the untouched model with all of the runtime's optimisations."""
        found = self._backend.open(self._source, Optimisation.AS_SHIPPED).run(self._fed)
        # Copies: a runtime frees all that a session took only when no array of it is left, however small.
        return {name: None if array is None else array.copy() for name, array in found.items()}

    def shipped_without(self, passes: Sequence[str]) -> dict[str, Array | None]:
        """The outputs of the untouched model when some optimisation passes of the runtime are off."""
        return self._backend.open(self._source, Optimisation.AS_SHIPPED, passes).run(self._fed)

    def without(self, passes: Sequence[str]) -> str:
        """What to write to have the runtime leave some passes out."""
        return self._backend.without(passes)

    def as_optimised(self, level: Optimisation) -> Candidate:
        """The candidate with the graph that the runtime really runs at an optimisation level."""
        graph = Graph(self._backend.optimised(self._source, level), take_apart=False)
        return Candidate(self._source, graph, self._backend, self._fed, store=self._store).flat()

    @property
    def passes(self) -> Sequence[str]:
        """The optimisation passes that the runtime can turn off one by one."""
        return self._backend.passes

    def flat(self) -> Candidate:
        """The candidate with its control flow laid flat, as this sample takes it; itself when there is none."""
        try:
            model = flattened(self.graph.model, self._named)
        except RuntimeDiedError:  # told when the model that ships is run
            return self
        if model is self.graph.model:
            return self
        return Candidate(self._source, Graph(model), self._backend, self._fed, store=self._store)

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each control flow node that could not be laid flat, and for each input in another layout."""
        ports = [port.name for port in self.graph.inputs if port.name in self.layout]
        fed = (
            f"input {n!r} is {named(self.layout[n])} in the file: fed after {inverse(self.layout[n])}" for n in ports
        )
        return (*left_whole(self.graph.model), *fed)

    def _named(self, model: onnx.ModelProto, names: list[str]) -> dict[str, Array | None]:
        return self._backend.open(Graph(model).rewritten(names), Optimisation.NONE).run(self._fed)

    @cached_property
    def tapped(self) -> Shelf[str]:
        """Every tensor that the graph computes or gives out, and its inputs, from one run without optimisations."""
        return self._with_what_is_given(self._every({}))

    def _with_what_is_given(self, computed: Shelf[str]) -> Shelf[str]:
        """What the graph computes beside its inputs, and the outputs that are constants."""
        fixed = [port.name for port in self.graph.outputs if port.name in self.graph.constant]
        return computed.beside(self.feeds).beside({name: self.constants[name] for name in fixed})

    def outline(self, tensor: str) -> Outline:
        """The shape and type of a tensor of the normal run."""
        found = self.tapped.held(tensor)
        if found is None:
            raise KeyError(tensor)
        return found

    def skim(self, look: Callable[[Shelf[str]], Container[str]]) -> None:
        """Have most tensors of the normal run gone when they were looked at, where that is worth it: see `skimmed`."""
        again = lru_cache(maxsize=1)(partial(self._every, {}))
        relay = Relay(self._pieces, self.as_in_file)
        found = None if self.layout else skimmed(relay, self._shapes, self._store, look, again)
        if found is not None:
            self.__dict__["tapped"] = self._with_what_is_given(found)

    @cached_property
    def unstable(self) -> frozenset[str]:
        """The tensors that differ between two runs on the same inputs; only looked for where a node draws at random."""
        if not any(self.graph.nodes[index].op in RANDOM for index in self.graph.live_nodes):
            return frozenset()
        again = self._every({})
        return frozenset(
            n for n, a in again.items() if not np.array_equal(a, self.tapped[n], equal_nan=a.dtype.kind == "f")
        )

    @cached_property
    def constants(self) -> Made[str]:
        """The numbers of every constant operand and output: initializers, and tensors computed from these alone."""
        graph = self.graph
        read = {name for node in graph.nodes for name in node.inputs if name in graph.constant}
        read.update(port.name for port in graph.outputs if port.name in graph.constant)
        stored = [name for name in read & graph.initializers if graph.is_dense(name)]
        names = sorted(read - graph.initializers)
        nodes = {node for name in names for node in graph.region(name, ())[0]}
        derived = self._run(names, (), nodes, {})

        def numbers(name: str) -> Array:
            found = derived[name] if name in derived else graph.initializer(name)
            assert found is not None
            return found

        return Made(dict.fromkeys((*stored, *derived)), numbers)

    def isolated(self, values: Mapping[str, Array], names: Sequence[str] | None = None) -> Shelf[str]:
        """Every tensor of the graph when some tensors are read with the given values instead of their own.

        Where `names` are given, only these are run again, and the others are those of the normal run.
        """
        found = self._every(values, names=names)
        return found if names is None else self.tapped.beside(found)

    def healed(self, injections: Sequence[Injection]) -> Shelf[str]:
        """Every tensor of the graph when some values are put in; what is itself replaced is as it was computed."""
        found = self.tapped.beside(self._changed(self.graph.computed, injections))
        self._outputs_with = (
            tuple(injections),
            {port.name: found[port.name] for port in self.graph.outputs if port.name in found},
        )
        return found

    def outputs_with(self, injections: Sequence[Injection]) -> dict[str, Array]:
        """The graph's outputs when the injected tensors are replaced; an output that is itself injected is replaced."""
        if not _are_same(injections, self._outputs_with[0]):
            names = [port.name for port in self.graph.outputs]
            ran = injections and "tapped" in self.__dict__ and all(name in self.tapped for name in names)
            known = {name: self.tapped[name] for name in names} if ran else {}
            fresh = self._changed(names, injections) if ran else self._run(names, injections, None, None)
            self._outputs_with = tuple(injections), known | dict(fresh)
        found = self._outputs_with[1]
        return found | {i.tensor: i.value for i in injections if i.tensor in found and i.edges is None}

    def _changed(self, names: Sequence[str], injections: Sequence[Injection]) -> Shelf[str]:
        """Those of some tensors that other values, put in, can change; what lies ahead is as in the normal run."""
        places = [self.graph.consumers.get(i.tensor, ()) if i.edges is None else i.edges for i in injections]
        readers = {node for edges in places for node, _ in edges if node >= 0}
        changed = self.graph.behind(made for node in readers for made in self.graph.nodes[node].outputs)
        whole = {i.tensor: i.value for i in injections if i.edges is None}
        return self._every(
            whole,
            [i for i in injections if i.edges is not None],
            names=[name for name in names if name in changed],
            known=self.tapped.only(name for name in self.tapped if name not in changed),
        )

    def region(
        self, target: str, nodes: Iterable[int], sources: Mapping[str, Array], injections: Sequence[Injection]
    ) -> Array | None:
        """One tensor, computed by a few nodes from the given sources."""
        return self._run([target], injections, nodes, sources).get(target)

    def computed(
        self,
        targets: Sequence[str],
        nodes: Iterable[int],
        sources: Mapping[str, Array] | None,
        optimisation: Optimisation = Optimisation.NONE,
    ) -> dict[str, Array]:
        """Some tensors, computed by some nodes from the given sources (None: the graph's inputs)."""
        return self._run(list(targets), (), nodes, sources, optimisation)

    def named(self, names: Sequence[str]) -> dict[str, Array]:
        """Some tensors of a normal run; inputs as they are fed."""
        computed = [name for name in dict.fromkeys(names) if name not in self.feeds]
        return {n: a for n, a in self.feeds.items() if n in names} | self._run(computed, (), None, None)

    def part(self, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Candidate:
        """Another model, such as a changed part of this one, on the same runtime."""
        return Candidate(model, Graph(model, take_apart=False), self._backend, feeds)

    def fed(self, feeds: Mapping[str, Array]) -> Candidate:
        """The same graph with other inputs."""
        return Candidate(self._source, self.graph, self._backend, feeds, self.layout, self.formats, self._store)

    def cut(self, target: str, nodes: Iterable[int], sources: Mapping[str, Array]) -> onnx.ModelProto:
        """The model of a few nodes alone: from the sources to one tensor, with the weights in it."""
        return with_weights(self.excerpt(target, nodes, sources))

    def excerpt(self, target: str, nodes: Iterable[int], sources: Mapping[str, Array]) -> onnx.ModelProto:
        """The same, with large weights left where they lie: it is copied for every change that is tried."""
        return self.graph.rewritten([target], nodes=nodes, sources=sources)

    def _every(
        self,
        values: Mapping[str, Array],
        edges: Sequence[Injection] = (),
        *,
        names: Sequence[str] | None = None,
        known: Mapping[str, Array] | None = None,
    ) -> Shelf[str]:
        """Every tensor that the graph computes, or some, where some are read with the given values instead of theirs.

        The values in `edges` are read by some nodes only. What is `known` is not computed.

        Where memory may not hold it all, or there are very many, one portion of the graph runs after the other. A node
        computes the same from the same operands, whatever else is in its graph.
        """
        wanted = self.graph.computed_set if names is None else set(names)
        keep = self._store.keep_copy if len(self._portions) > 1 else self._store.keep  # copies, as of what ships
        relay = Relay(self._pieces, self.as_in_file, values, edges, known or {})
        for portion in self._portions:
            found = relay.run([name for name in portion if name in wanted])
            relay.made |= {name: keep(found.pop(name)) for name in list(found)}
        return Shelf(relay.made).turned(self.layout)

    @cached_property
    def _portions(self) -> list[Sequence[str]]:
        """The computed tensors in groups that memory holds, and of which a runtime makes outputs without delay."""
        names = list(self.graph.computed)
        most_bytes = self._store.most_at_once(sum(array.nbytes for array in self._fed.values()) * len(names))
        if most_bytes is None or len(names) < 2:
            return few_at_once(self.graph, names)
        return portions(self.graph, names, self._sizes(names), most_bytes) or [names]

    @cached_property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each tensor of which that can be told without a run."""
        return shapes_by_inference(self.graph, {name: array.shape for name, array in self._fed.items()})

    def _sizes(self, names: Sequence[str]) -> dict[str, int]:
        """About how many bytes each tensor takes: by their shapes, else from a run that gives their sizes alone."""
        inferred = {name: math.prod(shape) for name, shape in self._shapes.items()}
        known = [inferred[name] for name in names if name in inferred]
        if len(known) >= MOSTLY * len(names):  # the few others are taken to be large
            return {name: 4 * inferred.get(name, max(known)) for name in names}
        counted = counting(self.graph.rewritten(names))
        found = self._backend.open(counted, Optimisation.NONE).run(self._fed)
        return {name: 4 * int(count) for name, count in zip(names, found.values(), strict=True) if count is not None}

    def _run(
        self,
        outputs: Sequence[str],
        injections: Sequence[Injection],
        nodes: Iterable[int] | None,
        sources: Mapping[str, Array] | None,
        optimisation: Optimisation = Optimisation.NONE,
    ) -> dict[str, Array]:
        if self.layout:
            injections = [replace(i, value=self.as_in_file(i.tensor, i.value)) for i in injections]
            sources = None if sources is None else {n: self.as_in_file(n, a) for n, a in sources.items()}
        return self.shown(self._pieces.run(Piece(outputs, injections, nodes, sources), optimisation))

    @property
    def _pieces(self) -> Pieces:
        return Pieces(self.graph, self._backend, self._fed)


def _are_same(some: Sequence[Injection], others: Sequence[Injection]) -> bool:
    """Whether the same values are put in at the same places, and at least one is."""
    if not some or len(some) != len(others):
        return False
    return all(
        (one.tensor, one.edges) == (other.tensor, other.edges) and np.array_equal(one.value, other.value)
        for one, other in zip(some, others, strict=True)
    )
