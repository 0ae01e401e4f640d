"""Where in the file a change belongs: the trace examined a graph that was inlined, taken apart and laid flat."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx
import onnx.inliner

from layerdiff.errors import RepairError
from layerdiff.outlets import with_outlets
from layerdiff.patch import SetConstant, Splice, change_node, patched
from layerdiff.unfuse import unfused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from layerdiff.patch import Change, Patch

# ONNX Runtime expands operators that are defined by others (HardSwish) under such names without looking whether the
# file has them from an earlier time, and then refuses its own graph.
_INLINED = "_inlfunc_"
_FLOWS = ("If", "Loop", "Scan")


@dataclass(frozen=True, slots=True)
class Base:
    """The model that changes are made to, and what had to be done to the file to make them possible."""

    model: onnx.ModelProto
    notes: tuple[str, ...]


class NoPlaceError(RepairError):
    """A change is about nodes that no form of the file has."""


def bases(file: onnx.ModelProto) -> Iterator[Base]:
    """The file, and the same with its inside visible, least changed first."""
    for base in _forms(file):
        yield base
        apart = with_outlets(base.model)
        if apart is not base.model:
            yield Base(apart, (*base.notes, "an output that the graph reads itself got a node of its own"))


def _forms(file: onnx.ModelProto) -> Iterator[Base]:
    yield Base(file, ())
    inlined = Base(file, ())
    if file.functions:
        inlined = Base(onnx.inliner.inline_local_functions(file), ("its local functions were inlined",))
        yield inlined
    apart = unfused(inlined.model)
    if apart is not inlined.model:
        yield Base(apart, (*inlined.notes, "the runtime's fused operators were taken apart into standard ones"))


def base_for(file: onnx.ModelProto, examined: onnx.ModelProto, patch: Patch) -> Base:
    """The least changed form of the file that has every node of a patch.

    Raises
    ------
    NoPlaceError
        None has.

    """
    error: NoPlaceError | None = None
    for base in bases(file):
        error = _misfit(base, examined, patch)
        if error is None:
            return base
    assert error is not None
    raise error


def _misfit(base: Base, examined: onnx.ModelProto, patch: Patch) -> NoPlaceError | None:
    places = _Places(base.model, examined)
    try:
        for change in patch:
            places.find(change)
    except NoPlaceError as error:
        return error
    return None


def corrected(base: Base, examined: onnx.ModelProto, patches: Iterable[Patch]) -> onnx.ModelProto:
    """A copy of a base with all changes made; the same change of a body, found in each iteration, is made once."""
    result = onnx.ModelProto()
    result.CopyFrom(base.model)
    places = _Places(result, examined)
    top: list[Change] = []
    inside: list[tuple[onnx.GraphProto, Change]] = []
    for change in (change for patch in patches for change in patch):
        graph, placed = places.find(change)
        if graph is result.graph:
            top += [] if _listed(placed, top) else [placed]
        elif not _listed(placed, [other for where, other in inside if where is graph]):
            inside.append((graph, placed))
    for graph, change in inside:
        assert not isinstance(change, Splice)
        change_node(graph, change)
    finished = patched(result, top)
    _name_apart(finished.graph)
    ports = {port.name for port in finished.graph.output}
    made = [name for node in finished.graph.node for name in node.output if name.startswith(_INLINED)]
    _rename(finished.graph, {name: f"from{name}" for name in made if name not in ports})
    return finished


def _rename(graph: onnx.GraphProto, names: Mapping[str, str]) -> None:
    """Give tensors other names, also where branches and bodies read them."""
    for node in graph.node if names else ():
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _rename(attribute.g, names)
    for port in (*graph.output, *graph.value_info) if names else ():
        port.name = names.get(port.name, port.name)


def _name_apart(graph: onnx.GraphProto) -> None:
    """Give nodes names of their own, which runtimes insist on; a name that two had goes to the first."""
    taken: set[str] = set()
    for node in graph.node:
        name, number = node.name, 1
        while name and name in taken:
            number += 1
            name = f"{node.name}_{number}"
        node.name = name
        taken.add(name)


def _listed(change: Change, others: Sequence[Change]) -> bool:
    """Whether an equal change is among others; two that would put different numbers in one place cannot both be."""
    for other in others:
        if other != change:
            continue
        if isinstance(change, Splice):
            return True
        if isinstance(change, SetConstant) and isinstance(other, SetConstant):
            same = change.value.shape == other.value.shape and (change.value == other.value).all()
            if not same:
                raise NoPlaceError(f"{change.node}: two iterations of a loop need different numbers in the same node")
        return True
    return False


class _Places:
    """Finds the node that a change is about, in the main graph of a model or inside its control flow."""

    def __init__(self, model: onnx.ModelProto, examined: onnx.ModelProto) -> None:
        self._model = model
        self._examined = {name: node for node in examined.graph.node for name in node.output if name}
        self._top = {name: node for node in model.graph.node for name in node.output if name}
        self._known = {port.name for port in model.graph.input} | {t.name for t in model.graph.initializer}
        self._known |= set(self._top)
        self._inner = list(_inner_nodes(model.graph))

    def find(self, change: Change) -> tuple[onnx.GraphProto, Change]:
        """The graph that a change is made in, and the change under the names that are used there."""
        if isinstance(change, Splice):
            return self._model.graph, self._spliced(change)
        if self._is_same(change.node):
            tensor = getattr(change, "tensor", "")  # without a name: no operand
            if tensor and tensor not in self._known:
                raise NoPlaceError(f"the file has no tensor {tensor!r} outside its control flow")
            return self._model.graph, change
        graph, name = self._inside(change.node)
        if hasattr(change, "tensor"):
            raise NoPlaceError(f"{change.node!r} is inside control flow and would have to read another tensor there")
        return graph, replace(change, node=name)

    def _is_same(self, name: str) -> bool:
        """Whether a node is in the file as it was examined."""
        mine, seen = self._top.get(name), self._examined.get(name)
        return (
            mine is not None
            and seen is not None
            and (mine.op_type, mine.domain, list(mine.input)) == (seen.op_type, seen.domain, list(seen.input))
        )

    def _spliced(self, change: Splice) -> Splice:
        missing = [name for _, name in change.inputs if name not in self._known]
        if change.tensor not in self._known:
            missing.append(change.tensor)
        missing += [name for name, _ in change.edges or () if not self._is_same(name)]
        if missing:
            raise NoPlaceError(f"the file has no {', '.join(map(repr, missing))} in its main graph")
        maker = self._top.get(change.tensor)
        if maker is not None and maker.op_type in _FLOWS and not self._is_same(change.tensor):
            raise NoPlaceError(
                f"{change.tensor!r} comes out of {maker.op_type}: what replaces it would be right for one branch, "
                "or one number of iterations, only"
            )
        return change

    def _inside(self, flat: str) -> tuple[onnx.GraphProto, str]:
        """The body or branch with the node that was laid flat under this name."""
        seen = self._examined.get(flat)
        found = [
            (graph, name)
            for graph, node in self._inner
            for name in node.output
            if name and flat.startswith(f"{name}__") and seen is not None and node.op_type == seen.op_type
        ]
        longest = max((len(name) for _, name in found), default=0)
        branch = [(g, n) for g, n in found if len(n) == longest]
        if len(branch) != 1:
            raise NoPlaceError(f"the file has no node that computes {flat!r}, in its graph or in a branch or body")
        return branch[0]


def _inner_nodes(graph: onnx.GraphProto) -> Iterator[tuple[onnx.GraphProto, onnx.NodeProto]]:
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                for inner in attribute.g.node:
                    yield attribute.g, inner
                yield from _inner_nodes(attribute.g)
