"""Runtimes that go wrong at an operator, in a process that a test can lose."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from layerdiff.backends import OnnxRuntime, Optimisation

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


def segfault() -> None:
    """Read at address zero."""
    ctypes.string_at(0)


def killed() -> None:
    """What the system does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def ended() -> None:
    """Leave without a word to the caller."""
    os._exit(3)


def hang() -> None:
    """Never come back."""
    while True:
        time.sleep(1)


def complain() -> None:
    """An exception that is none of layerdiff's."""
    raise ZeroDivisionError("seven by nothing")


def devour() -> None:
    """Ask for more memory than there is."""
    np.ones(1 << 50)


def scribble() -> None:
    """Write to stdout and go on."""
    os.write(1, b"\x00\xffnoise on stdout\n" * 100)
    sys.stdout.flush()


class Fragile(OnnxRuntime):
    """ONNX Runtime that does something else first when a graph with some operator runs."""

    def __init__(self, op: str, what: Callable[[], None], only: Optimisation | None = None, count: int = 1) -> None:
        super().__init__(threads=1)
        self.op, self.what, self.only, self.count = op, what, only, count

    def open(self, model: Any, optimisation: Optimisation, disabled: Sequence[str] = ()) -> Any:
        """A session that goes wrong where it should."""
        session = super().open(model, optimisation, disabled)
        graph = onnx.load(model).graph if isinstance(model, (str, Path)) else model.graph
        count = sum(node.op_type == self.op for node in graph.node)
        right = count < self.count or self.only not in (None, optimisation) or "ConvActivationFusion" in disabled
        return session if right else Doomed(session, self.what)


class Doomed:
    """A session that does something else first."""

    def __init__(self, session: Any, what: Callable[[], None]) -> None:
        self.session, self.what = session, what

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> Any:
        """Go wrong, and run if that is survived."""
        self.what()
        return self.session.run(feeds, outputs)
