"""What layerdiff asks of a runtime."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import numpy as np
    import onnx

    from layerdiff.backends.room import Room


class Optimisation(str, Enum):
    """How much the runtime may change the graph before it runs it."""

    AS_SHIPPED = "as-shipped"
    EXTENDED = "extended"
    BASIC = "basic"
    NONE = "none"


class Session(Protocol):
    """A model that is ready to run."""

    def run(
        self, feeds: Mapping[str, np.ndarray[Any, Any]], outputs: Sequence[str] | None = None
    ) -> dict[str, np.ndarray[Any, Any] | None]:
        """Named outputs for named inputs; None for an output that is not a tensor."""
        ...


@runtime_checkable
class Sparing(Protocol):
    """A model that can also put its outputs where it is told to."""

    def run_into(self, room: Room, feeds: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any] | None]:
        """All outputs, those in the room that it has a place for."""
        ...


class Backend(Protocol):
    """A runtime."""

    @property
    def name(self) -> str:
        """The runtime's own name."""
        ...

    def open(
        self, model: str | Path | onnx.ModelProto, optimisation: Optimisation, disabled: Sequence[str] = ()
    ) -> Session:
        """A session for a model, with single optimisation passes turned off.

        The weights of a ``ModelProto`` can be outside, as external data in the folder that its metadata names under
        ``layerdiff.folder``; `with_weights` gives it with all of them inside.

        Raises
        ------
        BackendError
            The runtime refuses the model.

        """
        ...

    @property
    def passes(self) -> Sequence[str]:
        """The optimisation passes that can be turned off one by one."""
        ...

    def optimised(self, model: str | Path | onnx.ModelProto, optimisation: Optimisation) -> onnx.ModelProto:
        """The graph that the runtime really runs at an optimisation level.

        Raises
        ------
        BackendError
            The runtime cannot save it.

        """
        ...

    def without(self, passes: Sequence[str]) -> str:
        """What to write to have some passes left out, for a remedy."""
        ...

    def describe(self) -> dict[str, str]:
        """Version and devices, for the report."""
        ...
