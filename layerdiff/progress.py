"""A progress bar on stderr that can be turned off: the stage that runs, and with several samples the time left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

if TYPE_CHECKING:
    from types import TracebackType

STAGES = 6


class Progress:
    """Names the stage that runs; silent when disabled."""

    def __init__(self, *, enabled: bool) -> None:
        columns = (
            *(SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()),
            *(TimeElapsedColumn(), TimeRemainingColumn()),
        )
        self._bar = RichProgress(*columns, console=Console(file=sys.stderr), disable=not enabled)
        self._task = self._bar.add_task("starting", total=STAGES)
        self._samples: TaskID | None = None

    def __enter__(self) -> Progress:  # noqa: PYI034  typing.Self is not in Python 3.10
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.update(self._task, completed=STAGES, description="done" if error is None else "stopped")
        self._bar.stop()

    def samples(self, total: int | None) -> None:
        """So many samples will come; None if nobody knows."""
        if total != 1:
            self._samples = self._bar.add_task("samples", total=total)

    def sample_done(self) -> None:
        """One more sample was compared."""
        if self._samples is not None:
            self._bar.advance(self._samples)

    def stage(self, description: str) -> None:
        """Begin the next stage; a new sample starts over."""
        self._bar.update(self._task, description=description)
        task = self._bar.tasks[0]
        if task.completed >= STAGES:
            self._bar.reset(self._task)
        self._bar.advance(self._task)
