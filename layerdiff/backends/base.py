"""What layerdiff asks of a runtime."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx


class Optimisation(str, Enum):
    """How much the runtime may change the graph before it runs it."""

    AS_SHIPPED = "as-shipped"
    NONE = "none"


class Session(Protocol):
    """A model that is ready to run."""

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any] | None]:
        """Named outputs for named inputs; None for an output that is not a tensor."""
        ...


class Backend(Protocol):
    """A runtime."""

    @property
    def name(self) -> str:
        """The runtime's own name."""
        ...

    def open(self, model: str | Path | onnx.ModelProto, optimisation: Optimisation) -> Session:
        """A session for a model.

        Raises
        ------
        BackendError
            The runtime refuses the model.

        """
        ...

    def describe(self) -> dict[str, str]:
        """Version and devices, for the report."""
        ...
