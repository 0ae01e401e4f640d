"""What differs, node by node, between the accused ONNX nodes and what the stretch should have become.

A pair of nodes of one operator is compared attribute by attribute and operand by operand, defaults of the operator's
schema filled in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.diagnose.parts import COMMUTATIVE, order_of, plain, same
from layerdiff.graph import default_attributes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerdiff.diagnose.parts import Beside, Part, Place
    from layerdiff.graph import Graph, Node

    Array = np.ndarray[Any, Any]


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


def differences(beside: Beside) -> list[Difference]:
    """Every difference, in the order of the nodes."""
    wanted, got, pairs = beside.wanted, beside.got, beside.pairs
    tensors = beside.tensors(pairs)
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
    if hasattr(left, "DESCRIPTOR") or hasattr(right, "DESCRIPTOR"):  # subgraphs are compared as what they compute
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
    lefts = list(f.inputs) + [""] * (count - len(f.inputs))
    slots = [*order_of(wanted, got, pair, tensors), *range(len(g.inputs), count)]
    for left, slot in zip(lefts, slots, strict=True):
        right = g.inputs[slot] if slot < len(g.inputs) else ""
        a, b = wanted.constants.get(left), got.constants.get(right)
        if not left and not right:
            continue
        if a is not None and b is not None:
            if not same(a, b):
                found.append(Difference(What.CONSTANT, g, f, "", slot, a, b, got.place(g, slot)))
        elif a is not None or b is not None or not left or not right:
            pair_of = (left if a is None else a, right if b is None else b)
            found.append(Difference(What.CONSTANT, g, f, "", slot, *pair_of, got.place(g, slot)))
        elif (into := tensors.get(plain(wanted.graph, left))) and {right, plain(got.graph, right)}.isdisjoint(into):
            found.append(Difference(What.WIRING, g, f, "", slot, into, right, got.place(g, slot)))
    if f.op in COMMUTATIVE or not _exchanged(found):
        return found
    return [Difference(What.EXCHANGED, g, f, "", 0, g.inputs[1], g.inputs[0], got.place(g, 0))]


def _exchanged(found: Sequence[Difference]) -> bool:
    """Whether two operands only stand in the other order."""
    if len(found) != 2:
        return False
    one, two = found
    if all(d.what is What.WIRING for d in found):
        return bool(two.got in one.wanted and one.got in two.wanted)
    arrays = [[x for x in (d.wanted, d.got) if isinstance(x, np.ndarray)] for d in found]
    return all(len(a) == 1 for a in arrays) and same(arrays[0][0], arrays[1][0])
