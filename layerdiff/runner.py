"""Both sides with a sample: run, and their final outputs paired. The trace, repairs and reproductions do it alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from layerdiff.backends import Isolated
from layerdiff.errors import ReferenceFailedError, SampleError
from layerdiff.outputs import OutputPairs, pair_outputs
from layerdiff.samples import read_only
from layerdiff.sides import OnnxCandidate
from layerdiff.valid import masks_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import onnx

    from layerdiff.candidate import Candidate
    from layerdiff.graph import Graph
    from layerdiff.model import Noise, Reference, Tolerance
    from layerdiff.samples import Sample
    from layerdiff.sides import CandidateSide, ReferenceSide


@dataclass(frozen=True, slots=True)
class Runner:
    """The two sides and how they are compared."""

    reference: ReferenceSide
    candidate: CandidateSide
    tolerance: Tolerance | None
    valid: Any

    def rest(self) -> None:
        """End the worker processes; they start again if a report acts on what was found."""
        for backend in (*getattr(self.reference, "backends", ()), self.candidate.backend):
            if isinstance(backend, Isolated):
                backend.rest()

    @property
    def source(self) -> str | Path | onnx.ModelProto | None:
        """The candidate's file; None where the candidate is no ONNX model."""
        return getattr(self.candidate, "source", None)

    def recorded(self, sample: Sample) -> tuple[Reference, Mapping[int, Noise]]:
        """The reference on a sample, with its noise floor."""
        reference = self.reference.capture(sample)
        return reference, self.reference.noise_floor(sample, reference)

    @property
    def may_do_without_twin(self) -> bool:
        """Whether a noise floor is only needed where the candidate is not found sound.

        The twin of an ONNX reference also tells whether that file is stable under the runtime's optimisations.
        """
        return self.tolerance is None and self.valid is None and self.reference.kind == "PyTorch"

    def fed(self, sample: Sample) -> Candidate:
        """The candidate with a sample."""
        return self._fed(self.candidate, sample)

    def another(self, source: str | Path | onnx.ModelProto, sample: Sample) -> Candidate:
        """Another file on the candidate's runtime, with a sample."""
        return self._fed(OnnxCandidate(source, self.candidate.backend), sample)

    def _fed(self, side: CandidateSide, sample: Sample) -> Candidate:
        """A candidate with a sample; a file may lack inputs that the reference never reads."""
        feeds = self.reference.feeds(sample)
        try:
            return side.fed(sample, feeds)
        except SampleError as error:
            try:
                used = read_only(feeds, self.reference.capture(sample))
            except ReferenceFailedError:
                raise error from None
            if len(used) == len(feeds):
                raise
            return side.fed(sample, used)

    def paired(self, reference: Reference, floor: Mapping[int, Noise], graph: Graph, index: int = 0) -> OutputPairs:
        """The final outputs of both sides, for the sample of that number."""
        pairs = pair_outputs(reference, graph.outputs, hint=" ".join(self.reference.warnings))
        masks = masks_for(reference, pairs[0], self.valid, index)
        listed = tuple(port.name for port in graph.outputs)
        return OutputPairs(reference, *pairs, floor, self.tolerance, masks, listed)

    def shapes(self, sample: Sample) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of a sample, by argument name."""
        return {name: tuple(array.shape) for name, array in self.reference.feeds(sample).items()}
