"""The report itself: frozen data, with one method per view."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003  (resolved at run time by the archive)
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from layerdiff.model import (  # noqa: TC001  (archive)
    Coverage,
    Diagnosis,
    Diffuse,
    Divergence,
    LayerResult,
    OutputResult,
    Repair,
    SampleResult,
)
from layerdiff.preprocessing.comparison import InputComparison  # noqa: TC001  (archive)
from layerdiff.weights import WeightResult  # noqa: TC001  (archive)

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Report:
    """What a trace found.

    Attributes
    ----------
    divergences
        Independent origins in execution order.
    diagnoses
        Causes, most certain first.
    outputs
        One result per final output.
    layers
        One result per module call (per operator at granularity "op"), in execution order.
    coverage
        How many module calls were compared, folded, or left out and why.
    environment
        Versions, providers, optimisation level, seed.
    warnings
        What the reader should know besides.
    diffuse
        Rounding all over the graph (half precision, quantisation), when there is.
    confined
        Origins that no output that counts depends on, in execution order: they differ only at positions that `valid`
        excludes, or where nothing reads them. They do not fail the verdict.
    samples
        How each sample was judged, in the order given.
    sample
        Which of them the rest of the report is about (0-based): the first that disagrees, else the one with the largest
        error.
    inputs
        How the candidate's own input differs from the reference's, where both were given (`InputPair`).
    repaired
        What was corrected, in the report that `repair` returns.
    weights
        What became of every parameter and buffer that the outputs depend on, also where the outputs agree.

    """

    divergences: tuple[Divergence, ...]
    diagnoses: tuple[Diagnosis, ...]
    outputs: tuple[OutputResult, ...]
    layers: tuple[LayerResult, ...]
    coverage: Coverage
    environment: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    diffuse: Diffuse | None = None
    confined: tuple[Divergence, ...] = ()
    sample: int = 0
    samples: tuple[SampleResult, ...] = ()
    weights: tuple[WeightResult, ...] = ()
    repaired: Repair | None = None
    inputs: InputComparison | None = None
    # The model, the file and the sample. Not saved, not copied, not compared: see `live.py`.
    live: Any = field(default=None, compare=False, repr=False, metadata={"saved": False})

    @property
    def agrees(self) -> bool:
        """Whether everything that was given agrees: the network on one input, and the inputs of both sides if given."""
        return self.network_agrees and (self.inputs is None or self.inputs.agrees)

    @property
    def network_agrees(self) -> bool:
        """Whether every compared output of the model that ships agrees with the reference, on every sample.

        Both sides are run with the same input, also where the input of the candidate was given besides.
        """
        return all(output.agrees for output in self.outputs) and all(sample.agrees for sample in self.samples)

    @property
    def first_divergence(self) -> Divergence | None:
        """The origin that comes first in execution order."""
        return self.divergences[0] if self.divergences else None

    @property
    def verdict(self) -> str:
        """One sentence (or a few) to paste in a chat."""
        from layerdiff.report.text import verdict

        return verdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per layer, with its status and metrics."""
        from layerdiff.report.frame import to_frame

        return to_frame(self)

    def weights_frame(self) -> pd.DataFrame:
        """One row per parameter: what became of it in the candidate, and how far it is from the model's."""
        from layerdiff.report.frame import weights_frame

        return weights_frame(self)

    def plot(self, path: str | Path | None = None) -> Figure:
        """The error of every layer in execution order on a log axis; written to `path` when one is given."""
        from layerdiff.report.plot import plot

        return plot(self, path)

    def to_html(self, path: str | Path) -> Path:
        """Write one self-contained HTML page and return its path."""
        from layerdiff.report.html import write_html

        return write_html(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, lists, strings and numbers; `load` reads them back from a file."""
        from layerdiff.report.archive import to_dict

        return to_dict(self)

    def save(self, path: str | Path) -> Path:
        """Write the report as JSON and return its path; an existing file is replaced in one step."""
        from layerdiff.report.archive import save

        return save(self, path)

    def write_pairs(self, path: str | Path) -> Path:
        """Write which tensor holds which layer's result as YAML, for editing, and return its path.

        Layers without a counterpart come first, with tensors that could be theirs; ``trace(pairs=path)`` reads it.
        """
        from layerdiff.report.mapping import write_pairs

        return write_pairs(self, path)

    def repair(self, path: str | Path) -> Report:
        """Write a corrected copy of the file, trace it like the first one, and return the report on it.

        Every change that was proven in the trace is run again on other numbers, and on other sizes where the file
        leaves dimensions open; one that fits the traced input only is not used. What is left in the file is told in
        ``.repaired.left`` of the report that comes back, with what to do instead. The traced file is not touched, and
        a file that is already at `path` stays whole until the new one is finished. Weights outside the file stay
        outside.

        Raises
        ------
        RepairError
            The file agrees already, nothing could be corrected, or the report was loaded from a file.

        """
        from layerdiff.repair import repair

        found: Report = repair(self, path)
        return found

    def reproduce(self, folder: str | Path, which: int = 0) -> Path:
        """Write the smallest runnable case of one divergence (the first, else number `which`) and return its folder.

        Its ``reproduce.py`` needs torch, onnx, onnxruntime and numpy only; it exits 1 while both sides differ and 0
        when they agree. Its ``README.md`` is written to be pasted into a bug report.

        Raises
        ------
        ReproduceError
            There is no such divergence, it cannot be cut out, or the report was loaded from a file.

        """
        from layerdiff.reproduce import reproduce

        return reproduce(self, folder, which)

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled and copied: the findings, without the model and the file."""
        return {**self.__dict__, "live": None}

    def _repr_html_(self) -> str:
        from layerdiff.report.html import fragment

        return fragment(self)

    def __str__(self) -> str:
        from layerdiff.report.text import summary

        return summary(self)
