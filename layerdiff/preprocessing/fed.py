"""Samples that come in pairs, one for each side: the expected side is traced, the pairs are compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from layerdiff.errors import InputError
from layerdiff.model import Diagnosis
from layerdiff.preprocessing.comparison import InputComparison, InputPair

_ONE_SAMPLE = (str, Path, Mapping)


def unpaired(inputs: Any) -> tuple[Any, tuple[InputPair, ...]]:
    """The inputs with every pair replaced by its expected side, and the pairs; other inputs as they are.

    Raises
    ------
    InputError
        Some samples are pairs and others are not.

    """
    if isinstance(inputs, InputPair):
        return inputs.expected, (inputs,)
    if isinstance(inputs, _ONE_SAMPLE) or not isinstance(inputs, (list, tuple, Iterator)):
        return inputs, ()
    if isinstance(inputs, Iterator):
        first = next(inputs, None)
        if not isinstance(first, InputPair):
            return (iter(()) if first is None else chain([first], inputs)), ()
        inputs = [first, *inputs]
    pairs = tuple(item for item in inputs if isinstance(item, InputPair))
    if not pairs:
        return inputs, ()
    if len(pairs) < len(inputs):
        raise InputError(
            f"inputs: {len(pairs)} of {len(inputs)} samples are an InputPair; "
            "give the candidate's input for all of them or none"
        )
    return [pair.expected for pair in pairs], pairs


def shown(compared: tuple[InputComparison, ...]) -> InputComparison | None:
    """The comparison that a report shows: the first that differs, else the first."""
    return next((c for c in compared if not c.agrees), compared[0] if compared else None)


def preprocessing(found: InputComparison, *, network_agrees: bool) -> Diagnosis | None:
    """The cause, where the inputs differ: verified where correcting them leaves rounding, in the outputs too."""
    if found.agrees:
        return None
    return Diagnosis(
        cause="preprocessing",
        layer="",
        summary=found.verdict,
        evidence={"kinds": [m.kind for m in found.mismatches], "residual": found.residual, "limit": found.limit},
        remedy=found.code or "\n".join(m.code for m in found.mismatches if m.code),
        verified=found.verified and network_agrees,
    )
