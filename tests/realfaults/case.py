"""A fault from a public report: what happened, where it is in a network, and what it is called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import onnx
    from torch import nn


@dataclass(frozen=True)
class Case:
    """A model, the file that has the fault, and a file of the same network that has not.

    `twin_inputs` are other inputs for the healthy file, where the fault is in what the inputs meet (equal values).
    """

    model: nn.Module
    inputs: Any
    faulty: onnx.ModelProto
    twin: onnx.ModelProto
    twin_inputs: Any = None


@dataclass(frozen=True)
class RealFault:
    """One report. `layer` is the module that holds the fault, by its qualified name ("" is the root's own forward).

    `causes` are the acceptable slugs, one unless two name the same thing. `provable` says that other nodes in place of
    the accused ones agree with PyTorch, so that the cause can be verified. `lossy_twin` says that the healthy file is
    of a lower precision, and so agrees with PyTorch only roughly.
    """

    name: str
    sources: tuple[str, ...]
    happened: str
    network: str
    layer: str
    causes: frozenset[str]
    build: Callable[[], Case]
    alive: bool = False  # the installed exporter or runtime still does it; otherwise the file is edited to show it
    provable: bool = True
    lossy_twin: bool = False
