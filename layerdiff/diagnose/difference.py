"""What differs, node by node, between the accused ONNX nodes and what the stretch should have become.

Both are small graphs. Their nodes are put in one order and paired as sequences are (Needleman and Wunsch, 1970); a pair
of one operator is compared attribute by attribute and operand by operand, defaults of the operator's schema filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.graph import default_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from layerdiff.graph import Graph, Node

    Array = np.ndarray[Any, Any]

RESHAPING = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast"})
MOVING = RESHAPING | {"Transpose"} - {"Cast"}
# Folding and constant arithmetic round once or twice in the weights' own precision.
_SAME = 2e-6


class What(str, Enum):
    """In which way a node differs from what it should be."""

    ATTRIBUTE = "attribute"
    CONSTANT = "constant"
    WIRING = "wiring"
    EXCHANGED = "exchanged"  # two operands stand in each other's place
    OPERATOR = "operator"
    MISSING = "missing"
    EXTRA = "extra"


@dataclass(frozen=True, slots=True)
class Place:
    """An input slot of a node in the file, and whether the file keeps the numbers there transposed."""

    node: str
    slot: int
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference, and where in the file it is to be mended.

    `node` is the node in the file (None when missing), `wanted_node` what it should be.

    `name` is an attribute's name; `slot` an input slot; `wanted` and `got` are attribute values, numbers, tensors or
    operators.
    """

    what: What
    node: Node | None
    wanted_node: Node | None
    name: str = ""
    slot: int = -1
    wanted: Any = field(default=None, compare=False)
    got: Any = field(default=None, compare=False)
    place: Place | None = None

    @property
    def op(self) -> str:
        """The operator that it is about: the right one where there is one."""
        node = self.wanted_node or self.node
        assert node is not None
        return node.op


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


def differences(wanted: Part, got: Part, sources: Mapping[str, frozenset[str]]) -> list[Difference]:
    """Every difference, in the order of the nodes; `sources` are the file's tensors that hold each wanted input."""
    pairs = _paired(wanted, got)
    tensors = dict(sources) | {
        source: frozenset({target})
        for f, g in pairs
        if f is not None and g is not None
        for source, target in zip(f.outputs, g.outputs, strict=False)
    }
    found: list[Difference] = []
    for f, g in pairs:
        if g is None:
            found.append(Difference(What.MISSING, None, f))
        elif f is None:
            found.append(Difference(What.EXTRA, g, None))
        elif f.op != g.op:
            found.append(Difference(What.OPERATOR, g, f, wanted=f.op, got=g.op))
        else:
            found += _attributes(f, g, wanted.graph, got.graph)
            found += _operands(wanted, got, (f, g), tensors)
    return found


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
    for left, right in zip(f.inputs, g.inputs, strict=False):
        a, b = wanted.constants.get(left), got.constants.get(right)
        if (a is None) != (b is None):
            score -= 0.3
        elif a is not None and b is not None:
            score += 0.5 if same(a, b) else (0.1 if a.shape == b.shape else -0.2)
    return score


def _attributes(f: Node, g: Node, wanted: Graph, got: Graph) -> list[Difference]:
    left = default_attributes(f.op, f.domain, wanted.opset(f.domain)) | dict(f.attributes)
    right = default_attributes(g.op, g.domain, got.opset(g.domain)) | dict(g.attributes)
    return [
        Difference(What.ATTRIBUTE, g, f, name, -1, left.get(name), right.get(name))
        for name in sorted((set(left) | set(right)) - {"recorded_step"})  # how it runs
        if not _same_attribute(_normal(name, left, f), _normal(name, right, g))
    ]


# Where an attribute is absent its value follows from another one, or means "none of it".
_IMPLIED: dict[str, Callable[[int], list[int]]] = {
    "strides": lambda rank: [1] * rank,
    "dilations": lambda rank: [1] * rank,
    "pads": lambda rank: [0] * 2 * rank,
    "output_padding": lambda rank: [0] * rank,
}


def _normal(name: str, attributes: Mapping[str, Any], node: Node) -> Any:
    value = attributes.get(name)
    rank = next((len(v) for n in ("kernel_shape", "strides", "dilations") if (v := attributes.get(n))), 2)
    if value is None and name in _IMPLIED and node.op in _WINDOWED:
        return _IMPLIED[name](rank)
    if name == "auto_pad":
        return "NOTSET" if value in (None, "NOTSET", "VALID") else value
    return value


_WINDOWED = frozenset({"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"})


def _same_attribute(left: Any, right: Any) -> bool:
    if isinstance(left, (list, tuple)) and isinstance(right, (list, tuple)):
        return len(left) == len(right) and all(_same_attribute(a, b) for a, b in zip(left, right, strict=True))
    if isinstance(left, float) or isinstance(right, float):
        if left is None or right is None:
            return left is right
        return bool(abs(float(left) - float(right)) <= 1e-6 * max(abs(float(left)), abs(float(right))))
    if hasattr(left, "nodes") or hasattr(right, "nodes"):  # subgraphs are compared as what they compute
        return True
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return bool(np.array_equal(np.asarray(left), np.asarray(right)))
    return bool(left == right)


def _operands(
    wanted: Part, got: Part, pair: tuple[Node, Node], tensors: Mapping[str, frozenset[str]]
) -> list[Difference]:
    f, g = pair
    found = []
    count = max(len(f.inputs), len(g.inputs))
    lefts, rights = (list(node.inputs) + [""] * (count - len(node.inputs)) for node in pair)
    for slot, (left, right) in enumerate(zip(lefts, rights, strict=True)):
        a, b = wanted.constants.get(left), got.constants.get(right)
        if not left and not right:
            continue
        if a is not None and b is not None:
            if not same(a, b):
                found.append(Difference(What.CONSTANT, g, f, "", slot, a, b, got.place(g, slot)))
        elif a is not None or b is not None or not left or not right:
            pair_of = (left if a is None else a, right if b is None else b)
            found.append(Difference(What.CONSTANT, g, f, "", slot, *pair_of, got.place(g, slot)))
        elif (into := tensors.get(_plain(wanted.graph, left))) and {right, _plain(got.graph, right)}.isdisjoint(into):
            found.append(Difference(What.WIRING, g, f, "", slot, into, right, got.place(g, slot)))
    if not _exchanged(found):
        return found
    if f.op in ("Add", "Mul", "Max", "Min", "And", "Or", "Equal"):
        return []
    return [Difference(What.EXCHANGED, g, f, "", 0, rights[1], rights[0], got.place(g, 0))]


def _exchanged(found: Sequence[Difference]) -> bool:
    """Whether two operands only stand in the other order."""
    if len(found) != 2:
        return False
    one, two = found
    if all(d.what is What.WIRING for d in found):
        return bool(two.got in one.wanted and one.got in two.wanted)
    arrays = [[x for x in (d.wanted, d.got) if isinstance(x, np.ndarray)] for d in found]
    return all(len(a) == 1 for a in arrays) and same(arrays[0][0], arrays[1][0])


def _plain(graph: Graph, tensor: str) -> str:
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
    a, b = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(a)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    scale = float(np.abs(a[finite]).max(initial=0.0))
    return bool(np.all(np.abs(a[finite] - b[finite]) <= _SAME * scale))
