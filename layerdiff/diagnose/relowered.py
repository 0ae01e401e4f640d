"""What no single change explains: the stretch lowered afresh in place of the accused nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.diagnose.difference import What
from layerdiff.diagnose.formats import too_narrow
from layerdiff.diagnose.hypothesis import Hypothesis
from layerdiff.diagnose.parts import MOVING, RESHAPING
from layerdiff.diagnose.semantics import REDUCTIONS, SELECTIONS, cause_at, cause_by_site, cause_of, mask_values
from layerdiff.diagnose.wires import under_a_root
from layerdiff.formats import format_of
from layerdiff.model import Kind
from layerdiff.operators import base_name, only_moves

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerdiff.diagnose.difference import Difference
    from layerdiff.diagnose.stretch import Stretch
    from layerdiff.model import Site

PERMUTING = frozenset({"permute", "transpose", "t", "movedim", "numpy_T", "mT", "swapaxes"})
WRITES = frozenset({"copy_", "index_put_", "fill_.Scalar", "fill_.Tensor", "masked_fill_.Scalar", "scatter_.src"})


def hypotheses(stretch: Stretch) -> Iterator[Hypothesis]:
    """One: the accused nodes compute something else as a whole, or are not there at all."""
    comparison = stretch.comparison
    change = None if comparison is None else stretch.splice(comparison.fresh)
    if comparison is None or change is None:
        if stretch.divergence.kind is Kind.DROPPED:
            yield Hypothesis(_dropped(stretch), "It is missing from the file.")
        return
    named = _named(stretch, [d for d in comparison.differences if d.op not in RESHAPING])
    way = comparison.fresh.exporter
    by = "the reference itself" if way is None else way.value
    evidence = {
        "differences": len(comparison.differences),
        "lowered_by": by,
    }
    yield Hypothesis(named.cause, named.text, evidence, (change,), decided=named.decided, whole=True)


@dataclass(frozen=True, slots=True)
class _Named:
    """A cause in words, and whether the nodes that differ leave no other."""

    cause: str
    text: str
    decided: bool = True


def _named(stretch: Stretch, differences: list[Difference]) -> _Named:
    if (moved := _moved_operand(stretch)) is not None:
        return moved
    ops = " → ".join(site.op.removeprefix("aten.") for site in stretch.sites[-4:])
    if stretch.divergence.kind is Kind.DROPPED or not stretch.origin.nodes or _gives_its_input(stretch):
        return _Named(_dropped(stretch), f"{ops} is missing from the file.")
    if any(node.op == "QuantizeLinear" for node in stretch.nodes):
        bits = _BITS.get(format_of(stretch.alignment.candidate, stretch.origin.nodes) or "", "Eight")
        text = f"{bits}-bit numbers round {ops}; no one of them is at fault alone."
        return _Named("quantization", text, decided=False)
    if (cause := too_narrow(stretch)) is not None:
        return _Named(cause, f"A value inside {ops} does not fit into half precision.")
    if _in_another_order(stretch):
        return _Named("order", f"{ops} reads what it should, in another order.")
    if (cause := _by_type_or_layout(stretch)) is not None:
        return _Named(cause, f"{ops} {_TYPE_OR_LAYOUT[cause]}")
    found = _by_differences(stretch, differences, ops)
    if found is not None:
        return found
    nodes = ", ".join(dict.fromkeys(node.op for node in stretch.nodes))
    text = f"{ops} became {nodes}, which computes something else."
    return _Named(cause_by_site(stretch), text, decided=_one_of_its_kind(stretch, differences))


def _by_differences(stretch: Stretch, differences: list[Difference], ops: str) -> _Named | None:
    """What is absent, too many, or the one thing that differs.

    Each was tried on its own before, and did not cure: so what was run is more than what is named, and it is a guess.
    """
    absent = ", ".join(dict.fromkeys(d.op for d in differences))
    kinds = {d.what for d in differences}
    single = [site for site in stretch.sites if not only_moves(site.op)]
    if kinds == {What.MISSING} and len(single) == 1:  # one operator of the model, of which the file has a part
        lacking, decided = _lacking(stretch, single[0], {d.op for d in differences})
        return _Named(lacking, f"{ops} lacks {absent} in the file.", decided)
    if kinds == {What.MISSING}:
        return _Named(_dropped(stretch), f"{absent} is missing from the file.", decided=False)
    if kinds == {What.EXTRA}:
        return _Named("extra-op", f"{absent} is in the file and not in the model.", decided=False)
    if len(differences) == 1 and (cause := cause_of(differences[0])) is not None:
        return _Named(cause, f"{ops} became something else in the file.", decided=False)
    return None


def _lacking(stretch: Stretch, site: Site, absent: set[str]) -> tuple[str, bool]:
    """The cause, where the file has an operator of the model in part, and whether it can be no other.

    Attention is a mask, a scale, a softmax and two products in a file, so what is absent says which.
    """
    reads = _reads_the_same(stretch)
    if "attention" in site.op:
        if absent <= {"Add", "Where", "Trilu", "Expand", "And", "ConstantOfShape"}:
            return "masking", reads
        if absent <= {"Mul", "Div", "Sqrt"}:
            return "constant", reads
        return "dropped-op", False
    cause = cause_at(site)
    return (cause, reads and cause in _SPECIFIC) if cause is not None else (cause_by_site(stretch), False)


# Operators that have one way only to be another: whatever differs in them is called so.
_BITS = {"int2": "Two", "int4": "Four", "int16": "Sixteen"}
_SPECIFIC = frozenset({"pooling", "resize", "activation", "rounding", "recurrent"})


def _one_of_its_kind(stretch: Stretch, differences: list[Difference]) -> bool:
    """Whether all that differs belongs to one operator, of a family that has one name."""
    single = [site for site in stretch.sites if not only_moves(site.op)]
    if len(single) != 1 or cause_at(single[0]) not in _SPECIFIC:
        return False
    if cause_at(single[0]) == "rounding" and any(d.what is What.CONSTANT for d in differences):
        return False  # a division by another number
    return _reads_the_same(stretch) and all(d.op not in MOVING for d in differences)


def _reads_the_same(stretch: Stretch) -> bool:
    """Whether the accused nodes read nothing but what the model's operators read: no wire is wrong."""
    graph = stretch.alignment.candidate.graph
    own = {name for node in stretch.nodes for name in node.outputs}
    known = {name for value in stretch.inputs for name in stretch.alignment.tensors_of(value)}
    known |= {name for value in stretch.inputs if (name := stretch.holder(value)) is not None}
    return all(n in known or n in own or n in graph.constant for node in stretch.nodes for n in node.reads)


def _gives_its_input(stretch: Stretch) -> bool:
    """Whether what goes in comes out as it is, whatever nodes lie between."""
    actual = stretch.actual
    return actual is not None and any(stretch.alignment.holds(value, actual) for value in stretch.inputs)


_TYPE_OR_LAYOUT = {
    "dtype": "computes in another type in the file: a conversion is elsewhere, or missing.",
    "layout": "comes out with its axes in another order.",
}


def _by_type_or_layout(stretch: Stretch) -> str | None:
    """The cause, where only conversions differ (but for those of a division that rounds), or only what moves."""
    every = () if stretch.comparison is None else stretch.comparison.differences
    casts = [d for d in every if d.op == "Cast"]
    rounded = any(site.arguments.get("rounding_mode") for site in stretch.sites)  # by way of integers
    if casts and not rounded and all(d.what in (What.CONSTANT, What.WIRING) or d in casts for d in every):
        return "dtype"
    moving = [d for d in every if d.op in MOVING | {"Cast"}]
    return "layout" if len(casts) < len(every) == len(moving) else None


def _in_another_order(stretch: Stretch) -> bool:
    """Whether one joining of tensors has its operands in another order."""
    joining = [site for site in stretch.sites if base_name(site.op) in ("cat", "stack", "Concat")]
    nodes = [node for node in stretch.nodes if node.op == "Concat"]
    if len(joining) != 1 or len(nodes) != 1:
        return False
    found = stretch.alignment
    holding = {v: {found.tensor_families.root(t) for t in found.tensors_of(v)} for v in joining[0].inputs}
    read = [found.tensor_families.root(name) for name in nodes[0].inputs]
    given = [next((v for v, tensors in holding.items() if name in tensors), None) for name in read]
    return given != list(joining[0].inputs) and sorted(map(str, given)) == sorted(map(str, joining[0].inputs))


def _moved_operand(stretch: Stretch) -> _Named | None:
    """The cause, where every node is right and one of them reads the right numbers in another rank or layout."""
    if stretch.comparison is None or stretch.comparison.differences or not stretch.nodes:
        return None
    candidate, values = stretch.alignment.candidate, stretch.alignment.reference.values
    reader, read = stretch.nodes[-1].op, {name for node in stretch.nodes for name in node.inputs}
    for name in sorted(read & set(candidate.layout)):
        return _Named("layout", f"{reader} reads {name}, whose axes are in another order: {candidate.layout[name]}.")
    for index in stretch.inputs:
        tensor, wanted = stretch.holder(index), values[index].shape
        if tensor is None or tensor not in read or candidate.tapped[tensor].ndim == len(wanted):
            continue
        maker = candidate.graph.producer.get(tensor)
        reduced = maker is not None and candidate.graph.nodes[maker].op in REDUCTIONS
        text = f"{reader} reads {tensor} in shape {candidate.tapped[tensor].shape}; the model's is {wanted}."
        return _Named("axis" if reduced else "layout", text)
    return None


def _dropped(stretch: Stretch) -> str:
    """What was lost: an update in place, a mask, a selection, or any other operator."""
    reference = stretch.alignment.reference
    computing = [site for site in stretch.sites if not only_moves(site.op)]
    if not computing and any(base_name(site.op) in PERMUTING for site in stretch.sites):
        return "layout"
    if any(site.replay is None or site.op.removeprefix("aten.") in WRITES for site in stretch.sites):
        return "inplace"
    if computing and all(base_name(site.op) in SELECTIONS for site in computing):
        return "indexing"
    if _is_epsilon(stretch, computing):
        return "epsilon"
    for site in computing if len(computing) <= 2 else ():
        operands = [reference.values[index].array for index in site.inputs]
        if base_name(site.op) in ("masked_fill", "tril", "triu") or any(
            a is not None and mask_values(a) for a in operands
        ):
            return "masking"
    return "dropped-op"


def _is_epsilon(stretch: Stretch, computing: Sequence[Site]) -> bool:
    """Whether all that is missing is the addition of a small number before a root or a division."""
    if len(computing) != 1 or base_name(computing[0].op) != "add" or stretch.comparison is None:
        return False
    graph, slot = stretch.alignment.candidate.graph, stretch.origin.slot
    edges = graph.consumers.get(slot.tensor, []) if slot.edges is None else slot.edges
    return under_a_root(stretch, stretch.comparison.constants.values(), edges)
