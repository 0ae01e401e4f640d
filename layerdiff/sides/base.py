"""What trace() asks of the two sides."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from layerdiff.backends import Backend
    from layerdiff.candidate import Candidate
    from layerdiff.fp32 import Setting
    from layerdiff.model import Noise, Reference
    from layerdiff.samples import Sample

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Unstable:
    """The values that another run from another random state gives otherwise, each with its largest distance.

    `kernels` are the operators at which two runs from one random state begin to differ, though they draw nothing;
    `outside` the values that come from outside of torch, and are others in such a run.
    """

    moved: Mapping[int, float] = field(default_factory=dict)
    kernels: frozenset[int] = frozenset()
    outside: frozenset[int] = frozenset()


class ReferenceSide(Protocol):
    """What is right by definition."""

    @property
    def kind(self) -> str:
        """What it is, in one word for the report: PyTorch or ONNX."""
        ...

    @property
    def label(self) -> str:
        """Its name for the report: a class or a file."""
        ...

    @property
    def device(self) -> str:
        """Where it runs, and where inputs that are given as arrays are put."""
        ...

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader of the report must know about it."""
        ...

    def feeds(self, sample: Sample) -> Mapping[str, Array]:
        """The arrays of a sample under the names of the arguments that they are."""
        ...

    def capture(self, sample: Sample) -> Reference:
        """The dataflow graph of one run."""
        ...

    def unstable(self, sample: Sample, reference: Reference) -> Unstable:
        """What another run on the same sample gives otherwise."""
        ...

    def as_set(self, sample: Sample, reference: Reference) -> Mapping[Setting, Mapping[int, float]]:
        """How far values are from the reference, which computes in float32, where a setting lets torch do it in less.

        One setting at a time; none that does not concern the reference's device.
        """
        ...

    def noise_floor(self, sample: Sample, reference: Reference) -> Mapping[int, Noise]:
        """The noise floor of every value of that graph, by value index."""
        ...


class CandidateSide(Protocol):
    """What is judged."""

    @property
    def kind(self) -> str:
        """What it is, in one word for the report: PyTorch or ONNX."""
        ...

    @property
    def label(self) -> str:
        """Its name for the report: a class or a file."""
        ...

    @property
    def backend(self) -> Backend:
        """What runs it."""
        ...

    def fed(self, sample: Sample, feeds: Mapping[str, Array]) -> Candidate:
        """The candidate with one sample; `feeds` are its arrays as the reference names them."""
        ...
