"""The nouns of a comparison of pipelines."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

    from layerdiff.pipeline.detection_model import DetectionComparison
    from layerdiff.report import Report


class StageStatus(str, Enum):
    """What was found about one stage."""

    AGREES = "agrees"
    DIVERGES = "diverges"
    PROPAGATES = "propagates"
    HARMLESS = "harmless"
    CONVENTION = "convention"
    UNCOMPARED = "uncompared"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class StageGap:
    """How far the two values of a stage are apart, the worst of all images; `detail` is a phrase with numbers."""

    agrees: bool
    detail: str
    max_abs: float = float("nan")
    image: int = 0


@dataclass(frozen=True, slots=True)
class StageMismatch:
    """One setting in which a stage differs.

    `setting` is the name of a field of the stage, or a kind of mismatch of inputs or detections. `expected` and
    `actual` are its two values where they are known. `verified` says that the candidate's stage, run again with this
    corrected (together with the others of the stage), agrees.
    """

    setting: str
    expected: Any
    actual: Any
    detail: str
    verified: bool


@dataclass(frozen=True, slots=True)
class StageResult:
    """One stage: what the whole pipelines show there (`accumulated`), and what the stage alone adds (`introduced`).

    For `introduced` the candidate's stage is fed what the reference's stage is fed. `alone` says whether the final
    result agrees when this stage is the only one that is the candidate's; None where that was not or cannot be run.
    """

    stage: str
    status: StageStatus
    accumulated: StageGap | None
    introduced: StageGap | None
    mismatches: tuple[StageMismatch, ...] = ()
    alone: bool | None = None
    reason: str = ""


@dataclass(frozen=True)
class PipelineComparison:
    """What `compare_pipelines` found.

    Attributes
    ----------
    stages
        One result per stage that both sides have, in order.
    agrees
        Whether the final results agree on every image.
    images
        How many images were run.
    proven
        Whether the candidate, with its diverging stages replaced by the reference's, gives the reference's final
        results; None where no stage diverges, or that cannot be run.
    detections
        The final results of the two pipelines compared, where they are detections.
    network
        The report of `layerdiff.trace`, where the network itself diverges and both sides have a model.
    notes
        What else is to be known.

    """

    stages: tuple[StageResult, ...]
    agrees: bool
    images: int
    proven: bool | None
    detections: DetectionComparison | None = field(default=None, repr=False, compare=False)
    network: Report | None = field(default=None, repr=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def divergences(self) -> tuple[StageResult, ...]:
        """The stages that introduce a difference which reaches the final results, in order."""
        return tuple(stage for stage in self.stages if stage.status is StageStatus.DIVERGES)

    @property
    def first_divergence(self) -> StageResult | None:
        """The first of them."""
        return self.divergences[0] if self.divergences else None

    @property
    def verdict(self) -> str:
        """A few sentences to paste in a chat."""
        from layerdiff.stages.text import verdict

        return verdict(self)

    def to_frame(self) -> pd.DataFrame:
        """One row per stage."""
        from layerdiff.stages.text import to_frame

        return to_frame(self)

    def _repr_html_(self) -> str:
        from layerdiff.stages.text import fragment

        return fragment(self)

    def __str__(self) -> str:
        from layerdiff.stages.text import summary

        return summary(self)
