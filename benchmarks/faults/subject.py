"""The models that faults are planted in."""

from __future__ import annotations

import copy
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from benchmarks.faults.forwards import SEAMS
from benchmarks.faults.survey import Survey, survey
from benchmarks.faults.workpiece import Workpiece
from tests.zoo import MODELS, Sample, control_flow, exports
from tests.zoo.control_flow import CONTROL_FLOW_MODELS
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment
from tests.zoo.healthy import run_torch

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import onnx
    from torch import Tensor, nn

Way = tuple[Exporter, Treatment]


@dataclass(frozen=True)
class Subject:
    """A model of the zoo, what it computes, the calls it makes, and the ways it has into a file."""

    name: str
    sample: Sample
    expected: np.ndarray
    survey: Survey
    ways: tuple[Way, ...]
    export: Callable[[nn.Module, tuple[Tensor, ...], Exporter], onnx.ModelProto]

    def piece(self) -> Workpiece:
        """A fresh copy to plant in."""
        return Workpiece(copy.deepcopy(self.sample.model), self.survey)

    def __str__(self) -> str:
        return self.name


def subject(name: str) -> Subject:
    """The model of this name, from MODELS or from CONTROL_FLOW_MODELS: then faults stay in the body."""
    if name in MODELS:
        sample = MODELS[name]()
        ways = tuple(way for way in itertools.product(Exporter, Treatment) if (name, *way) not in UNSUPPORTED)
        return Subject(name, sample, _expected(sample), _surveyed(sample), ways, exports.export)
    flow = CONTROL_FLOW_MODELS[name]
    sample = flow.build()
    focused = _surveyed(sample, flow.body)
    ways = tuple(itertools.product(flow.exporters, Treatment))
    return Subject(name, sample, _expected(sample), focused, ways, control_flow.export)


def _expected(sample: Sample) -> np.ndarray:
    return run_torch(sample.model, sample.inputs)


def _surveyed(sample: Sample, focus: str = "") -> Survey:
    return survey(sample.model, sample.inputs, SEAMS).focused(focus)
