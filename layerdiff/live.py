"""What a report keeps so that it can act on what it found: names, numbers, the model and the file, no activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    import onnx

    from layerdiff.backends import Optimisation
    from layerdiff.layout import Axes
    from layerdiff.model import Diagnosis, Divergence
    from layerdiff.patch import Patch
    from layerdiff.runner import Runner
    from layerdiff.samples import Sample

    Source = str | Path | onnx.ModelProto


@dataclass(frozen=True, slots=True)
class Region:
    """A stretch on both sides, by name and number.

    `nodes` are named by their first outputs. `feeds` are the tensors that they start from, each with the reference
    value that it should hold (None: whatever the graph computes there). `sites` compute `value` from `inputs`. What is
    off by no more than rounding to `format` is right there.
    """

    tensor: str
    value: int
    feeds: tuple[tuple[str, int | None], ...]
    nodes: tuple[str, ...]
    sites: tuple[int, ...]
    inputs: tuple[int, ...]
    format: str | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One origin: its diagnosis, the change that cured it, and the stretches on which that can be run again.

    `judged` ends at the tensor that came out wrong; `accused` holds only what is accused. `holders` are the tensors
    that hold the accused sites' inputs, `edges` the readers that a replacement is for (None: all).
    """

    diagnosis: Diagnosis
    divergence: Divergence
    patch: Patch | None
    judged: Region | None
    accused: Region
    holders: tuple[tuple[int, str], ...]
    edges: tuple[tuple[str, int], ...] | None


@dataclass(frozen=True, slots=True)
class Live:
    """What is needed to repair a file and to hand over a reproduction.

    `level` is the optimisation whose own graph was examined (None: the file's), `layout` the axes by which its tensors
    are shown as the model has them. `again` is the trace with all its
    arguments but the candidate and the inputs, `inputs` what was given (None: they cannot be read twice).
    """

    source: Source
    sample: Sample
    cases: tuple[Case, ...]
    level: Optimisation | None
    runner: Runner
    layout: Mapping[str, Axes]
    again: Callable[..., Any] | None = None
    inputs: Any = None

    def retrace(self, candidate: Path, sample: Sample | None = None) -> Any:
        """The report on another candidate, for one sample or for what was given."""
        assert self.again is not None
        given = sample or (self.sample if self.inputs is None else self.inputs)
        return self.again(candidate, given)
