"""Every parameter that the reference reads, and what became of it in the candidate, also where the outputs agree."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.audit.judge import Judge, worst
from layerdiff.audit.places import Places

if TYPE_CHECKING:
    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.weights import WeightResult

    Array = np.ndarray[Any, Any]


_MOVING = frozenset({"Cast", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Slice", "Split"})


def audit(alignment: Alignment) -> tuple[WeightResult, ...]:
    """One result for every parameter and buffer that an output depends on, in the order in which they are read."""
    candidate = alignment.candidate
    constants = dict(candidate.constants)  # read once: each is looked at for many parameters
    places = Places(alignment, constants)
    judge = Judge(alignment.reference, constants, *_stored(candidate))
    needed = places.needed()
    found: dict[str, list[WeightResult]] = {}
    with np.errstate(all="ignore"):
        for site in alignment.reference.sites:
            if site.index not in needed or all(alignment.reference.values[v].constant for v in site.inputs):
                continue
            place = places.of(site)
            for operand in places.operands(site):
                result = judge.operand(operand, site, place)
                for name in operand.names:
                    shape = alignment.reference.parameters[name].shape
                    found.setdefault(name, []).append(replace(result, parameter=name, shape=shape))
    return tuple(worst(results) for results in found.values())


def _stored(candidate: Candidate) -> tuple[dict[str, str], dict[str, Array]]:
    """The number formats that arrays do not show, and the step of what is dequantised, by the names of constants."""
    graph, known = candidate.graph, candidate.constants
    formats, steps = dict(candidate.formats), {}
    for name in known:
        kind = graph.format_of(name)
        if kind:
            formats[name] = kind
        source, node = name, graph.producer.get(name)
        while node is not None and graph.nodes[node].op in _MOVING:
            source = graph.nodes[node].inputs[0]
            kind = graph.format_of(source) or (str(known[source].dtype) if source in known else "")
            if kind in ("float16", "bfloat16", "float8"):
                formats[name] = kind
            node = graph.producer.get(source)
        if node is not None and graph.nodes[node].op == "DequantizeLinear":
            stored, scale = graph.nodes[node].inputs[:2]
            step = graph.initializer(scale) if scale not in known else known[scale]
            if step is not None:
                steps[name] = step
                formats[name] = graph.format_of(stored) or (str(known[stored].dtype) if stored in known else "int8")
    return formats, steps


__all__ = ["audit"]
