"""What is told of two inputs: frozen data that a report can hold."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003  (resolved at run time by the archive)
from dataclasses import dataclass
from typing import Any

KINDS = (
    "channel-order",
    "layout",
    "scale",
    "mean-std",
    "dtype",
    "resize",
    "letterbox",
    "crop",
    "image-size",
    "flip",
    "rotation",
    "augmentation",
    "decoder",
    "tokens",
    "audio",
    "unrelated",
)


@dataclass(frozen=True, slots=True)
class InputPair:
    """What each side of a trace is fed for one sample, the reference first.

    Parameters
    ----------
    expected
        The sample of the reference, as `layerdiff.trace` takes one.
    actual
        What the candidate's own preprocessing made of the same image, text or sound.
    image
        The image that both were made from, where there is one; see `layerdiff.compare_inputs`.

    """

    expected: Any
    actual: Any
    image: Any = None


@dataclass(frozen=True, slots=True)
class InputMismatch:
    """One thing in which the candidate's preprocessing differs.

    Attributes
    ----------
    kind
        One of `KINDS`.
    parameters
        The setting of both sides where it is known, as plain data: ``expected`` and ``actual``, and what belongs to
        the kind (``order``, ``factor``, ``mean``, ``std``, ``axes``, …).
    code
        Lines that correct the candidate: they change an array ``x``, or, where the image is at hand, make ``image``
        into what is wanted. Empty where nothing can bring back what was lost.
    summary
        The mismatch in words, without a full stop.
    verified
        Whether applying it, with the others, left rounding only: on `actual`, or, where information was lost, the
        other way round from `expected` to `actual`.
    name
        Which input it is about, where there are several.

    """

    kind: str
    parameters: Mapping[str, Any]
    code: str
    summary: str
    verified: bool
    name: str = ""


@dataclass(frozen=True, slots=True)
class InputComparison:
    """How the input of the candidate differs from that of the reference.

    Attributes
    ----------
    mismatches
        In the order in which they are applied to `actual`; none where the inputs agree.
    residual
        The largest absolute difference that is left when the chain has been applied to `actual`, in the units of
        `expected`; infinity where it cannot be applied at all. With ``source == "image"`` the corrected input was made
        again from the image.
    limit
        How much of that is rounding.
    reproduced
        The largest absolute difference between `actual` and what the same mistakes make of `expected`, where they lose
        information and only that way can be verified; None else.
    code
        A Python function ``corrected`` that holds the whole chain. Empty where the inputs agree or nothing corrects
        them.
    source
        "inputs" where both tensors were enough, "image" where both were made again from the image.
    notes
        What else is worth knowing: what could not be told apart, or was not there to be used.

    """

    mismatches: tuple[InputMismatch, ...]
    residual: float
    limit: float
    reproduced: float | None = None
    code: str = ""
    source: str = "inputs"
    notes: tuple[str, ...] = ()

    @property
    def agrees(self) -> bool:
        """Whether the inputs are equal within rounding."""
        return not self.mismatches

    @property
    def verified(self) -> bool:
        """Whether every mismatch was verified by applying it; False where nothing differs."""
        return bool(self.mismatches) and all(m.verified for m in self.mismatches)

    @property
    def verdict(self) -> str:
        """What differs, in sentences to paste in a chat."""
        if self.agrees:
            return f"The inputs agree (max-abs {self.residual:.2g})."
        if [m.kind for m in self.mismatches] == ["unrelated"]:
            return f"{_capital(self.mismatches[0].summary)}."
        told = "; ".join((f"{m.name}: " if m.name else "") + m.summary for m in self.mismatches)
        return f"The inputs differ: {told}. {self._proof()}"

    def _proof(self) -> str:
        left = f"max-abs {self.residual:.2g}"
        if self.residual <= self.limit:
            made = "The input made again from the image" if self.source == "image" else "With that corrected the input"
            return f"{made} is right to rounding ({left} is left)."
        if self.reproduced is not None and self.verified:
            undone = f"after what can be undone {left} is left"
            return f"Verified the other way round: the same done to the expected input gives the candidate's; {undone}."
        return f"Not verified: {left} is left when what is known of it has been corrected."

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; infinity and NaN, which JSON has not, as "Infinity" and "NaN"."""
        return {
            "agrees": self.agrees,
            "verdict": self.verdict,
            "residual": _number(self.residual),
            "limit": _number(self.limit),
            "reproduced": None if self.reproduced is None else _number(self.reproduced),
            "source": self.source,
            "code": self.code,
            "notes": list(self.notes),
            "mismatches": [
                {
                    "kind": m.kind,
                    "name": m.name,
                    "parameters": dict(m.parameters),
                    "summary": m.summary,
                    "verified": m.verified,
                    "code": m.code,
                }
                for m in self.mismatches
            ],
        }

    def __str__(self) -> str:
        lines = [self.verdict, *(f"note: {note}" for note in self.notes)]
        return "\n".join([*lines, "", self.code] if self.code else lines)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _number(value: float) -> float | str:
    """A number as JSON holds it."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity"
