"""Exports without a fault, of every model, from both exporters, in every way that people make them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tests.zoo import MODELS, Sample, control_flow, exports, functions
from tests.zoo.control_flow import CONTROL_FLOW_MODELS
from tests.zoo.exports import UNSUPPORTED, Exporter, Treatment, treat
from tests.zoo.functions import FUNCTION_MODELS
from tests.zoo.healthy import relative_gap, run_onnx, run_torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx

FAITHFUL = 1e-4
"""Largest distance between model and export, relative to the largest output, at which the export counts as healthy."""


class Variant(str, Enum):
    """What is unlike the zoo's ordinary export."""

    PLAIN = "plain"
    CONTROL_FLOW = "control-flow"
    FUNCTIONS = "functions"
    OLD_OPSET = "old-opset"
    NEW_OPSET = "new-opset"
    OTHER_INPUTS = "other-inputs"
    DYNAMIC_BATCH = "dynamic-batch"


OPSETS = {
    (Exporter.TORCHSCRIPT, Variant.OLD_OPSET): 14,
    (Exporter.TORCHSCRIPT, Variant.NEW_OPSET): 20,
    (Exporter.DYNAMO, Variant.OLD_OPSET): 20,
    (Exporter.DYNAMO, Variant.NEW_OPSET): 23,
}
"""In place of 17 and 18. scaled_dot_product_attention needs 14 from TorchScript."""

ROTATED = (Variant.OLD_OPSET, Variant.NEW_OPSET, Variant.OTHER_INPUTS, Variant.DYNAMIC_BATCH)
"""Variants that are made of every model, each time with two of the six treatments in turn."""


@dataclass(frozen=True)
class HealthyCase:
    """A model, inputs, and an export that computes the same."""

    name: str
    model: nn.Module
    inputs: tuple[Tensor, ...]
    proto: onnx.ModelProto
    exporter: Exporter
    treatment: Treatment
    category: Variant
    subject: str


@dataclass(frozen=True)
class Unmade:
    """A healthy export that could not be made, or is not faithful: no case for or against a tool."""

    name: str
    reason: str


@dataclass(frozen=True)
class Recipe:
    """One export, and the treatments that it gets."""

    subject: str
    exporter: Exporter
    variant: Variant
    treatments: tuple[Treatment, ...]

    def cases(self) -> Iterator[HealthyCase | Unmade]:
        """One case a treatment, or why there is none."""
        title = f"{self.subject}-{self.variant.value}-{self.exporter.value}"
        try:
            sample, proto = self._exported()
        except Exception as error:  # noqa: BLE001  what an exporter cannot do is no fault of the tool that is scored
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            yield from (Unmade(f"{title}-{t.value}", reason) for t in self.treatments)
            return
        for treatment in self.treatments:
            yield self._treated(f"{title}-{treatment.value}", sample, proto, treatment)

    def _treated(self, name: str, sample: Sample, proto: onnx.ModelProto, treatment: Treatment) -> HealthyCase | Unmade:
        try:
            file = treat(proto, treatment)
            gap = relative_gap(run_torch(sample.model, sample.inputs), run_onnx(file, sample.inputs))
        except Exception as error:  # noqa: BLE001  as above
            return Unmade(name, f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        if not gap <= FAITHFUL:
            return Unmade(name, f"not faithful: off by {gap:.1e} of the largest output")
        return HealthyCase(
            name, sample.model, sample.inputs, file, self.exporter, treatment, self.variant, self.subject
        )

    def _exported(self) -> tuple[Sample, onnx.ModelProto]:
        if self.variant is Variant.CONTROL_FLOW:
            sample = CONTROL_FLOW_MODELS[self.subject].build()
            return sample, control_flow.export(sample.model, sample.inputs, self.exporter)
        sample = MODELS[self.subject]()
        if self.variant is Variant.FUNCTIONS:
            return sample, functions.export(sample.model, sample.inputs, self.exporter)
        if self.variant is Variant.DYNAMIC_BATCH:
            return _other(sample, batch=3), exports.export(
                sample.model, sample.inputs, self.exporter, **_dynamic(sample, self.exporter)
            )
        opset = OPSETS.get((self.exporter, self.variant), exports.OPSETS[self.exporter])
        proto = exports.export(sample.model, sample.inputs, self.exporter, opset_version=opset)
        return (_other(sample) if self.variant is Variant.OTHER_INPUTS else sample), proto


def recipes(models: list[str] | None = None) -> list[Recipe]:
    """Every healthy export, in a fixed order."""
    names = list(MODELS) if models is None else models
    found = [
        Recipe(name, exporter, Variant.PLAIN, tuple(t for t in Treatment if (name, exporter, t) not in UNSUPPORTED))
        for name, exporter in itertools.product(names, Exporter)
    ]
    for name, flow in CONTROL_FLOW_MODELS.items():
        found += [Recipe(name, e, Variant.CONTROL_FLOW, tuple(Treatment)) for e in flow.exporters if models is None]
    found += [
        Recipe(n, e, Variant.FUNCTIONS, tuple(Treatment)) for n in names if n in FUNCTION_MODELS for e in Exporter
    ]
    turn = itertools.cycle(itertools.combinations(Treatment, 2))
    for name, exporter, variant in itertools.product(names, Exporter, ROTATED):
        pair = (t for t in next(turn) if (name, exporter, t) not in UNSUPPORTED)
        found.append(Recipe(name, exporter, variant, tuple(pair)))
    return found


def _other(sample: Sample, batch: int | None = None) -> Sample:
    """The same model with inputs drawn anew: floats of the same spread, the same tokens in another order."""
    draw = torch.Generator().manual_seed(5)

    def other(x: Tensor) -> Tensor:
        if batch is not None:
            x = x[torch.arange(batch) % len(x)]
        if x.is_floating_point():
            return torch.randn(x.shape, generator=draw)
        rows = torch.arange(len(x)).unsqueeze(1)
        return x if _is_mask(x) else x[rows, torch.randperm(x.shape[1], generator=draw)]

    return Sample(sample.model, tuple(other(x) for x in sample.inputs))


def _is_mask(x: Tensor) -> bool:
    return bool(((x == 0) | (x == 1)).all())


def _dynamic(sample: Sample, exporter: Exporter) -> dict[str, object]:
    """The options that leave the first dimension of every input open."""
    names = [f"input_{index}" for index in range(len(sample.inputs))]
    if exporter is Exporter.TORCHSCRIPT:
        return {"input_names": names, "dynamic_axes": {name: {0: "batch"} for name in names}}
    batch = torch.export.Dim("batch", min=1, max=64)
    return {"dynamic_shapes": tuple({0: batch} for _ in names)}
