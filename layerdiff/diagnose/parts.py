"""Two small graphs side by side: what an exporter makes of a stretch, and the file's own nodes.

Their nodes are put in one order and paired as sequences are (Needleman and Wunsch, 1970).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerdiff.graph import Graph, Node

    Array = np.ndarray[Any, Any]

RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"})
MOVING = RESHAPING | {"Transpose"} - {"Cast"}
COMMUTATIVE = frozenset({"Add", "Mul", "Max", "Min", "And", "Or", "Xor", "Equal"})
# Folding and constant arithmetic round once or twice in the weights' own precision.
_SAME = 2e-6
# Elements that are held in double precision at a time.
_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True)
class Place:
    """An input slot of a node in the file, and whether the file keeps the numbers there transposed."""

    node: str
    slot: int
    transposed: bool = False


@dataclass(frozen=True)
class Part:
    """A few nodes of a graph in order, with the numbers of their constant operands.

    A Gemm stands here as the MatMul and the Add that it is, so that it compares with exporters that write those; where
    the operands of such a node really are is in `places`.
    """

    graph: Graph
    nodes: tuple[Node, ...]
    constants: Mapping[str, Array]
    places: Mapping[tuple[str, int], Place] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, indices: Iterable[int], constants: Mapping[str, Array]) -> Part:
        """Those of the nodes that compute something from what is not constant, in the order in which they are read."""
        wanted = {i for i in indices if not graph.constant.issuperset(o for o in graph.nodes[i].outputs if o)}
        order: dict[int, None] = {}

        def visit(index: int) -> None:
            for name in graph.nodes[index].inputs:
                producer = graph.producer.get(name)
                if producer in wanted and producer not in order:
                    visit(producer)
            order[index] = None

        for index in sorted(wanted):
            if index not in order:
                visit(index)
        part = cls(graph, (), dict(constants), {})
        nodes = [piece for i in order if graph.nodes[i].op != "Identity" for piece in part.taken_apart(graph.nodes[i])]
        return replace(part, nodes=tuple(nodes))

    def taken_apart(self, node: Node) -> tuple[Node, ...]:
        """A Gemm with a constant matrix as a MatMul and an Add; any other node as it is."""
        attributes = node.attributes
        beta = attributes.get("beta", 1.0)
        plain = not attributes.get("transA") and attributes.get("alpha", 1.0) == 1.0 and beta in (0.0, 1.0)
        if node.op != "Gemm" or node.domain or not plain or node.inputs[1] not in self.constants:
            return (node,)
        assert isinstance(self.constants, dict)
        assert isinstance(self.places, dict)
        output, transposed = node.outputs[0], bool(attributes.get("transB"))
        matrix = f"{node.inputs[1]}/as_read_by/{output}"
        array = self.constants[node.inputs[1]]
        self.constants[matrix] = array.T if transposed else array
        biased = len(node.inputs) > 2 and bool(node.inputs[2]) and beta == 1.0
        made = f"{output}/product" if biased else output
        self.places[made, 1] = Place(output, 1, transposed)
        product = replace(node, op="MatMul", inputs=(node.inputs[0], matrix), outputs=(made,), attributes={})
        if not biased:
            return (product,)
        self.places[output, 1] = Place(output, 2)
        return (product, replace(node, op="Add", inputs=(made, node.inputs[2]), attributes={}))

    def place(self, node: Node, slot: int) -> Place:
        """Where an operand is in the file."""
        return self.places.get((node.outputs[0], slot), Place(node.outputs[0], slot))


Pairs = list[tuple["Node | None", "Node | None"]]


@dataclass(frozen=True, slots=True)
class Beside:
    """Two parts, the right one and the file's, node by node; `sources` are the file's tensors for each wanted input."""

    wanted: Part
    got: Part
    sources: Mapping[str, frozenset[str]]

    @property
    def pairs(self) -> Pairs:
        """The nodes of the two in pairs, with gaps."""
        return _paired(self.wanted, self.got)

    def tensors(self, pairs: Pairs) -> dict[str, frozenset[str]]:
        """The file's tensors that stand for those of the right part."""
        return dict(self.sources) | {
            source: frozenset({target})
            for f, g in pairs
            if f is not None and g is not None
            for source, target in zip(f.outputs, g.outputs, strict=False)
        }

    def slot(self, pair: tuple[Node, Node], at: int, tensors: Mapping[str, frozenset[str]]) -> int:
        """The input slot of the file's node that stands for one of the right node."""
        order = order_of(self.wanted, self.got, pair, tensors)
        return order[at] if at < len(order) else at


def _paired(wanted: Part, got: Part) -> list[tuple[Node | None, Node | None]]:
    """The two node lists with gaps, so that the pairs' likeness is greatest."""
    scores = [[_likeness(f, g, wanted, got) for g in got.nodes] for f in wanted.nodes]
    n, m = len(wanted.nodes), len(got.nodes)
    best = np.zeros((n + 1, m + 1))
    skip_f, skip_g = ([_gap(node) for node in part.nodes] for part in (wanted, got))
    best[1:, 0], best[0, 1:] = np.cumsum(skip_f), np.cumsum(skip_g)
    for i in range(1, n + 1):
        for j in range(1, m + 1):
            best[i, j] = max(
                best[i - 1, j - 1] + scores[i - 1][j - 1],
                best[i - 1, j] + skip_f[i - 1],
                best[i, j - 1] + skip_g[j - 1],
            )
    found: list[tuple[Node | None, Node | None]] = []
    i, j = n, m
    while i or j:
        if i and j and best[i, j] == best[i - 1, j - 1] + scores[i - 1][j - 1]:
            i, j = i - 1, j - 1
            found.append((wanted.nodes[i], got.nodes[j]))
        elif i and best[i, j] == best[i - 1, j] + skip_f[i - 1]:
            i -= 1
            found.append((wanted.nodes[i], None))
        else:
            j -= 1
            found.append((None, got.nodes[j]))
    return found[::-1]


def _gap(node: Node) -> float:
    return -0.1 if node.op in RESHAPING else -0.6


def _likeness(f: Node, g: Node, wanted: Part, got: Part) -> float:
    if f.op != g.op:
        return -0.9 if {f.op, g.op}.isdisjoint(RESHAPING) and len(f.inputs) == len(g.inputs) else -2.0
    score = 2.0
    order = order_of(wanted, got, (f, g), {})
    for left, right in zip(f.inputs, (g.inputs[at] for at in order), strict=False):
        a, b = wanted.constants.get(left), got.constants.get(right)
        if (a is None) != (b is None):
            score -= 0.3
        elif a is not None and b is not None:
            score += 0.5 if same(a, b) else (0.1 if a.shape == b.shape else -0.2)
    return score


def order_of(
    wanted: Part, got: Part, pair: tuple[Node, Node], tensors: Mapping[str, frozenset[str]]
) -> tuple[int, ...]:
    """The slots of the file's node in the order of the right one's, which matters not where operands commute."""
    f, g = pair
    own = tuple(range(len(g.inputs)))
    if f.op not in COMMUTATIVE or f.op != g.op or len(f.inputs) != 2 or len(g.inputs) != 2:
        return own

    def fits(left: str, right: str) -> float:
        a, b = wanted.constants.get(left), got.constants.get(right)
        if a is not None and b is not None:
            return 1.0 if same(a, b) else 0.1
        if a is not None or b is not None:
            return -1.0
        into = tensors.get(plain(wanted.graph, left))
        return 0.0 if into is None else float(not {right, plain(got.graph, right)}.isdisjoint(into))

    straight, crossed = (sum(fits(f.inputs[k], g.inputs[k ^ turn]) for k in (0, 1)) for turn in (0, 1))
    return own[::-1] if crossed > straight else own


def plain(graph: Graph, tensor: str) -> str:
    """The tensor behind any Identity."""
    while (index := graph.producer.get(tensor)) is not None and graph.nodes[index].op == "Identity":
        tensor = graph.nodes[index].inputs[0]
    return tensor


def same(wanted: Array, got: Array) -> bool:
    """Whether two constants hold the same numbers, up to the rounding of a fold and to leading dimensions of one."""
    if wanted.size != got.size or wanted.dtype.kind != got.dtype.kind:
        return False
    if np.squeeze(wanted).shape != np.squeeze(got).shape:
        return False
    a, b = wanted.reshape(-1), got.reshape(-1)
    if wanted.dtype.kind != "f":
        return bool(np.array_equal(a, b))
    pieces = [slice(begin, begin + _AT_ONCE) for begin in range(0, a.size, _AT_ONCE)]
    scale = max((float(np.abs(a[p][np.isfinite(a[p])]).max(initial=0.0)) for p in pieces), default=0.0)
    return all(_within(a[p].astype(np.float64), b[p].astype(np.float64), _SAME * scale) for p in pieces)


def _within(a: Array, b: Array, limit: float) -> bool:
    """Whether numbers are no farther apart, and whatever is not finite is the same."""
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    return bool(np.all(np.abs(a[finite] - b[finite]) <= limit))
