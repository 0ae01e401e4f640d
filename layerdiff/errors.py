"""Every deliberate failure of layerdiff, as one tree.

LayerdiffError
├── InputError          what the user handed in cannot be used: files, samples, arguments
│   ├── ModelFileError  the candidate file is missing, truncated, not ONNX, or refers to data that is not there
│   └── SampleError     a sample does not fit the model: number, name, shape or dtype
│       └── FixedShapeError  the file was exported for inputs of another size
├── ReferenceFailedError the reference model raised while it ran
├── BackendError        the runtime refused the graph or failed while it ran it
│   └── RuntimeDiedError  the runtime crashed, hung or ran out of memory
├── AlignmentError      reference and candidate cannot be paired at all
├── SpillError          what memory_limit= keeps out of memory cannot be written to disk
├── RepairError         the file cannot be corrected as asked
│   └── PatchError      a change does not fit the graph that it is applied to
├── ReproduceError      no case can be cut out of the model and the file
├── StageError          a stage of a pipeline raised
└── MissingExtraError   a package that is not among layerdiff's own requirements is needed
"""

from __future__ import annotations

from enum import Enum


class LayerdiffError(Exception):
    """Base of every error that layerdiff raises on purpose."""


class InputError(LayerdiffError):
    """What was handed in cannot be used."""


class ModelFileError(InputError):
    """The candidate file cannot be read."""


class SampleError(InputError):
    """A sample does not fit the model."""


class FixedShapeError(SampleError):
    """The file was exported with fixed sizes, and the sample has others."""


class ReferenceFailedError(LayerdiffError):
    """The reference model raised while it ran; its own exception is the cause of this one."""


class BackendError(LayerdiffError):
    """The runtime refused the graph, or failed while it ran it."""


class Death(str, Enum):
    """How a runtime ended."""

    CRASHED = "crashed"
    HUNG = "hung"
    MEMORY = "out of memory"

    def __str__(self) -> str:
        return self.value


class RuntimeDiedError(BackendError):
    """The runtime crashed, gave no answer in time, or ran out of memory; `how` says which."""

    def __init__(self, text: str, how: Death = Death.CRASHED) -> None:
        super().__init__(text)
        self.how = how


class AlignmentError(LayerdiffError):
    """Reference and candidate have nothing that can be paired."""


class SpillError(LayerdiffError):
    """What `memory_limit` keeps out of memory cannot be written to disk."""


class RepairError(LayerdiffError):
    """The file cannot be corrected as asked."""


class PatchError(RepairError):
    """A change does not fit the graph that it is applied to."""


class ReproduceError(LayerdiffError):
    """No runnable case of a divergence can be handed over."""


class StageError(LayerdiffError):
    """A stage of a pipeline raised; its own exception is the cause of this one."""


class MissingExtraError(LayerdiffError):
    """A package that only some parts of layerdiff need is not installed."""

    def __init__(self, purpose: str, package: str, extra: str = "pipeline") -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed: python -m pip install 'layerdiff[{extra}]'"
        )
