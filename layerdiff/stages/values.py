"""What both sides hold at a layer of a report, computed again: reports keep numbers, no activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerdiff.errors import InputError
from layerdiff.graph import Injection
from layerdiff.keys import call_key

if TYPE_CHECKING:
    import numpy as np

    from layerdiff.candidate import Candidate
    from layerdiff.model import LayerResult, Reference
    from layerdiff.report import Report
    from layerdiff.runner import Runner
    from layerdiff.samples import Sample

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class BothSides:
    """One sample on both sides of a trace."""

    reference: Reference
    candidate: Candidate

    @classmethod
    def of(cls, runner: Runner, sample: Sample) -> BothSides:
        """Run the reference, and get the candidate ready."""
        return cls(runner.reference.capture(sample), runner.fed(sample))

    def expected(self, result: LayerResult) -> Array | None:
        """The reference's value of a layer; None where it has none."""
        for call in self.reference.calls:
            if (call.layer, call.call) != (result.layer, result.call):
                continue
            for position, value in enumerate(call.outputs):
                if result.key in ("", call_key(call, position)) or position == 0:
                    return self.reference.values[value].array
        return None

    def actual(self, result: LayerResult) -> Array | None:
        """The candidate's tensor of a layer in a normal run; None where it has none."""
        name = result.onnx_tensor
        return None if name is None else self.candidate.named([name]).get(name)

    def healed(self, result: LayerResult) -> dict[str, Array] | None:
        """The candidate's outputs when one layer's tensor is given the reference's value; None where none fits."""
        expected, actual, name = self.expected(result), self.actual(result), result.onnx_tensor
        if expected is None or actual is None or name is None or expected.size != actual.size:
            return None
        fitting = expected.astype(actual.dtype, copy=False).reshape(actual.shape)
        return self.candidate.outputs_with([Injection(name, fitting)])


def result_of(report: Report, layer: str) -> LayerResult:
    """The result of a layer by its name (or key, ``act#1``).

    Raises
    ------
    InputError
        No such layer, or it was not compared.

    """
    found = [result for result in report.layers if layer in (result.layer, result.key)]
    if not found:
        raise InputError(f"layer {layer!r}: the report has none of that name; report.to_frame() lists them")
    chosen = next((result for result in found if result.onnx_tensor is not None), found[0])
    if chosen.onnx_tensor is None or chosen.accumulated is None:
        raise InputError(f"layer {layer!r} was not compared: {chosen.status}, {chosen.reason}")
    return chosen
