"""What a planting must stand before it is a case."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from benchmarks.faults.first_difference import Place, first_difference
from tests.zoo.exports import treat
from tests.zoo.healthy import relative_gap, run_onnx, run_torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx

    from benchmarks.faults.fault import Fault
    from benchmarks.faults.subject import Subject, Way
    from benchmarks.faults.workpiece import Workpiece

T = TypeVar("T")

MIN_EFFECT = 1e-4
"""Smallest change of the model's output, relative to its largest value, that counts as a fault."""
MAX_EXPORT_GAP = 1e-3
"""Largest distance between the broken copy and its export."""


class Rejected(Exception):  # noqa: N818  not an error: the next draw follows
    """A planting that makes no case; the text says why."""


def check_place(subject: Subject, piece: Workpiece, fault: Fault) -> Place:
    """The broken copy first computes something else, from the same inputs, where the fault says."""
    sample = subject.sample
    found = attempt("the broken copy does not run", lambda: first_difference(sample.model, piece.model, sample.inputs))
    if found is None:
        raise Rejected("no effect at any layer")
    if found.path != fault.layer or fault.call not in (None, found.call):
        raise Rejected("the first effect is at another layer")
    return found


def output_of(subject: Subject, piece: Workpiece) -> np.ndarray:
    """What the broken copy computes, once it is sure that it is not what the healthy model does."""
    healthy = subject.expected
    broken = attempt("the broken copy does not run", lambda: run_torch(piece.model, subject.sample.inputs))
    if broken.shape != healthy.shape or not np.all(np.isfinite(broken)):
        raise Rejected("other shape or not finite")
    check_effect(healthy, broken)
    return broken


def check_effect(without: np.ndarray, broken: np.ndarray) -> None:
    if not relative_gap(without, broken) >= MIN_EFFECT:
        raise Rejected("no effect on the output")


def exported(subject: Subject, piece: Workpiece, way: Way, broken: np.ndarray, *without: np.ndarray) -> onnx.ModelProto:
    """The treated export of the broken copy, once it is sure that it carries the fault and no other.

    `without` are outputs that it would have if a fault were missing.
    """
    exporter, treatment = way
    inputs = subject.sample.inputs
    raw = attempt(f"{exporter.value} fails", lambda: subject.export(piece.model, inputs, exporter))
    proto = attempt(f"{treatment.value} fails", lambda: treat(raw, treatment))
    actual = attempt("ONNX Runtime fails", lambda: run_onnx(proto, inputs))
    fidelity = relative_gap(broken, actual)
    if not fidelity <= MAX_EXPORT_GAP:
        raise Rejected(f"the {exporter.value} export disagrees with the broken copy")
    if not all(relative_gap(output, actual) >= max(MIN_EFFECT, 2 * fidelity) for output in without):
        raise Rejected("the export lost the fault")
    return proto


def attempt(failure: str, step: Callable[[], T]) -> T:
    """What the step gives; whatever it raises is a reason to draw again."""
    try:
        return step()
    except Exception as error:
        raise Rejected(f"{failure}: {type(error).__name__}") from error
