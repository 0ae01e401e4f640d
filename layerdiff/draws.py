"""Inputs drawn at random, for when a graph is at hand and a sample is not.

Sizes come from what the graph declares. Floats are normal; integers that index a table stay below its number of rows,
and other integers are ones (they are masks, lengths or counts). Whatever was chosen is said.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from layerdiff.errors import InputError
from layerdiff.graph import Graph, load

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    Array = np.ndarray[Any, Any]

# Sizes for dimensions that a graph leaves open.
BATCH, LENGTH, SPATIAL = 2, 8, 64
_PASSING = frozenset(
    {"Cast", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose", "Identity", "Expand", "Concat", "Slice"}
)


@dataclass(frozen=True, slots=True)
class Drawn:
    """Random inputs by name, and in words what they are."""

    inputs: dict[str, Array]
    note: str


def draw(source: str | Path | onnx.ModelProto, sizes: Mapping[str, int] | None = None, seed: int = 0) -> Drawn:
    """Inputs for a graph; `sizes` fixes open dimensions by their names, or ``input.axis`` where they have none.

    Raises
    ------
    InputError
        An input whose type or number of dimensions cannot be drawn, or a size for a dimension that is not open.

    """
    graph = Graph(load(source))
    rng = np.random.default_rng(seed)
    given = dict(sizes or {})
    chosen: dict[str, int] = {}
    arrays, words = {}, []
    stored = graph.initializers
    for info in (info for info in graph.model.graph.input if info.name not in stored):
        shape = _shape(info, given, chosen)
        arrays[info.name], range_ = _array(graph, info, shape, rng)
        words.append(f"{info.name} {arrays[info.name].dtype} {shape} {range_}")
    unknown = sorted(set(given) - set(chosen))
    if unknown:
        open_ = ", ".join(chosen) or "none"
        raise InputError(f"size of {', '.join(unknown)}: no such open dimension; the graph leaves open: {open_}")
    opened = f"; open dimensions set: {', '.join(f'{n}={s}' for n, s in chosen.items())}" if chosen else ""
    return Drawn(arrays, f"the inputs were drawn at random (seed {seed}): {'; '.join(words)}{opened}")


def _shape(info: onnx.ValueInfoProto, given: Mapping[str, int], chosen: dict[str, int]) -> tuple[int, ...]:
    declared = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type" or not declared.HasField("shape"):
        raise InputError(
            f"input {info.name!r}: its number of dimensions is not declared, so nothing can be drawn; pass real inputs"
        )
    dims = declared.shape.dim
    found = []
    for axis, dim in enumerate(dims):
        if dim.HasField("dim_value"):
            found.append(int(dim.dim_value))
            continue
        name = dim.dim_param or f"{info.name}.{axis}"
        usual = BATCH if axis == 0 else (SPATIAL if len(dims) > 3 else LENGTH)
        found.append(chosen.setdefault(name, given.get(name, usual)))
    return tuple(found)


def _array(
    graph: Graph, info: onnx.ValueInfoProto, shape: tuple[int, ...], rng: np.random.Generator
) -> tuple[Array, str]:
    """Numbers of the declared type, and their range in words."""
    kind = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if kind.kind == "f":
        return rng.standard_normal(shape).astype(kind), "normal"
    if kind.kind == "b":
        return rng.random(shape) < 0.5, "true or false"
    if kind.kind not in "iu":
        raise InputError(f"input {info.name!r}: {kind} cannot be drawn at random; pass real inputs")
    rows = _rows_indexed(graph, info.name)
    if rows is not None:
        return rng.integers(0, rows, shape).astype(kind), f"below {rows}"
    if kind.itemsize == 1:
        limits = np.iinfo(kind)
        return rng.integers(limits.min, limits.max + 1, shape).astype(kind), "of its whole range"
    return np.ones(shape, kind), "all 1"


def _rows_indexed(graph: Graph, name: str) -> int | None:
    """The rows of the smallest table that an input indexes; None when it indexes none."""
    rows: list[int] = []
    seen: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        for index, slot in graph.consumers.get(current, ()):
            node = graph.nodes[index]
            if node.op in ("Gather", "GatherElements") and slot == 1:
                table = graph.initializer(node.inputs[0])
                axis = next((a.i for a in graph.model.graph.node[index].attribute if a.name == "axis"), 0)
                rows += [] if table is None else [table.shape[axis]]
            elif node.op in _PASSING:
                todo += node.outputs
    return min(rows, default=None)
