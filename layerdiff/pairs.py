"""Pairs of layers and tensors that the user has settled, from a dict or from the file that a report writes."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from layerdiff.align.sampled import comparable_kind
from layerdiff.errors import InputError
from layerdiff.keys import ROOT, values_by_key
from layerdiff.model import Evidence, Pair

if TYPE_CHECKING:
    from layerdiff.align import Alignment
    from layerdiff.candidate import Candidate
    from layerdiff.model import Reference
    from layerdiff.outputs import OutputPairs


def read_pairs(pairs: Mapping[Any, str] | str | Path | None) -> dict[str, str]:
    """Tensor names by layer name, from a dict or a YAML file; lines without a tensor are left out.

    Raises
    ------
    InputError
        No such file, not YAML, or something else than names.

    """
    if pairs is None:
        return {}
    if isinstance(pairs, (str, Path)):
        where, content = str(pairs), _parsed(Path(pairs))
    else:
        where, content = "pairs", pairs
    if not isinstance(content, Mapping):
        raise InputError(
            f"{where}: wanted a mapping of layers to tensors, got a {type(content).__name__}; write one line "
            "'layer: tensor' for each pair, or let Report.write_pairs write the file"
        )
    found: dict[str, str] = {}
    for key, tensor in content.items():
        if not isinstance(tensor, (str, type(None))):
            raise InputError(f"{where}: {key}: wanted the name of a tensor, got {tensor!r}")
        if tensor:
            found[_as_key(key, where)] = tensor
    return found


def _parsed(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file; Report.write_pairs (or --write-pairs) writes one to edit")
    try:
        # The base loader makes strings, lists and mappings, and nothing else: a layer "1.10" is no number.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)  # noqa: S506  makes no objects
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from error
    return {} if content is None else content  # nothing but comments


def _as_key(key: Any, where: str) -> str:
    if isinstance(key, str):
        return key or ROOT
    if isinstance(key, tuple) and len(key) == 2 and isinstance(key[0], str) and isinstance(key[1], int):
        return (key[0] or ROOT) + (f"#{key[1]}" if key[1] else "")
    raise InputError(f"{where}: {key!r} names no layer; wanted 'layer', 'layer#1' for its second call, or (layer, 1)")


def resolved(
    pairs: Mapping[str, str], reference: Reference, candidate: Candidate, outputs: OutputPairs
) -> dict[int, Pair]:
    """The given pairs, checked.

    Raises
    ------
    InputError
        A name that is on neither side, a tensor that cannot hold the value, or pairs that contradict each other.

    """
    values = values_by_key(reference)
    found: dict[int, Pair] = {}
    for key, tensor in pairs.items():
        if key not in values:
            raise InputError(f"pairs[{key!r}]: the model ran no layer of that name{_close(key, values)}")
        value = values[key]
        _check_tensor(key, tensor, candidate)
        _check_fit(key, tensor, value, reference, candidate)
        if outputs.tensors.get(value, tensor) != tensor:
            raise InputError(
                f"pairs[{key!r}]: is a final output, and the graph's output for it is {outputs.tensors[value]!r}, "
                f"not {tensor!r}; leave it out"
            )
        other = next((p for p in found.values() if (p.tensor == tensor) != (p.value == value)), None)
        if other is not None:
            taken = next(k for k in pairs if values[k] == other.value)
            raise InputError(
                f"pairs[{key!r}]: {tensor!r} contradicts pairs[{taken!r}], {other.tensor!r}; one tensor stands for one "
                "value, leave one of the two out"
            )
        found[value] = Pair(value, tensor, Evidence.GIVEN)
    return found


def still_there(given: Mapping[int, Pair], candidate: Candidate) -> tuple[dict[int, Pair], tuple[str, ...]]:
    """The given pairs whose tensor the examined graph has, and a sentence about the others.

    The graph that is examined is the runtime's own where an optimisation is at fault; fusions take tensors away.
    """
    kept = {value: pair for value, pair in given.items() if pair.tensor in candidate.tapped}
    lost = [pair.tensor for value, pair in given.items() if value not in kept]
    if not lost:
        return kept, ()
    return kept, (f"pairs: the runtime's optimised graph has no {', '.join(lost)}, so these pairs were not used",)


def doubts(alignment: Alignment) -> tuple[str, ...]:
    """A sentence about given pairs that no run confirms."""
    names = {value: key for key, value in values_by_key(alignment.reference).items()}
    return tuple(
        f"pairs: {names[value]} = {alignment.proposed[value].tensor} was given, but no run confirms it: its numbers "
        "are far from the layer's, and nothing computed from it comes out right"
        for value in sorted(alignment.unconfirmed)
    )


def _check_tensor(key: str, tensor: str, candidate: Candidate) -> None:
    graph = candidate.graph
    if tensor in candidate.tapped and tensor in graph.producer and graph.is_live(tensor):
        return
    usable = [name for name in graph.computed if graph.is_live(name)]
    if any(port.name == tensor for port in graph.inputs):
        why = "is an input of the graph, inputs are paired by themselves"
    elif tensor in graph.constant or tensor in graph.initializers:
        why = "is a constant of the graph, it does not depend on the inputs"
    elif tensor in graph.producer:
        why = "reaches no output of the graph"
    else:
        why = "is no tensor of the graph" + _close(tensor, usable)
    raise InputError(f"pairs[{key!r}]: {tensor!r} {why}")


def _check_fit(key: str, tensor: str, value: int, reference: Reference, candidate: Candidate) -> None:
    known, actual = reference.values[value], candidate.tapped[tensor]
    if known.array is None or known.constant:
        why = "has no dense numbers" if known.array is None else "does not depend on the inputs"
        raise InputError(
            f"pairs[{key!r}]: the layer's result {why}, so no tensor can be compared with it; leave it out"
        )
    if known.array.size != actual.size or comparable_kind(known.array) != comparable_kind(actual):
        fitting = [
            name
            for name in candidate.graph.computed
            if name in candidate.tapped and candidate.tapped[name].shape == known.shape
        ]
        raise InputError(
            f"pairs[{key!r}]: the layer returns {known.dtype}{known.shape}, {tensor!r} is "
            f"{actual.dtype}{actual.shape}; {_listed('tensors of its shape', fitting)}"
        )


def _close(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return f"no {what} in the graph, leave it out"
    return f"{what}: {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")
