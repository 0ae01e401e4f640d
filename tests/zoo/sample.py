"""A network together with the inputs it is exported and traced with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Sample:
    """A network in eval mode and its positional inputs."""

    model: nn.Module
    inputs: tuple[Tensor, ...]
