"""A small network with a fault seeded into its file: what a test of a diagnoser starts from."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor, nn

import layerdiff
from tests.realfaults.networks import chain
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise, settle

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx

    from layerdiff.model import Diagnosis
    from layerdiff.report import Report

TORCHSCRIPT, DYNAMO = Exporter


@dataclass(frozen=True)
class Network:
    """A model, its inputs and, by exporter, its healthy file; each is made once, when it is first asked for."""

    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    shapes: tuple[tuple[int, ...], ...]
    opset: int | None = None

    @functools.cached_property
    def inputs(self) -> tuple[Tensor, ...]:
        return tuple(noise(f"{self.name}.{number}", *shape) for number, shape in enumerate(self.shapes))

    @functools.cached_property
    def model(self) -> nn.Module:
        model = fill(self.build())
        norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        return (
            settle(model, *(noise(f"{self.name}.batch", 16, *shape[1:]) for shape in self.shapes)) if norms else model
        )

    @functools.cached_property
    def _files(self) -> dict[Exporter, onnx.ModelProto]:
        return {}

    def healthy(self, exporter: Exporter = TORCHSCRIPT) -> onnx.ModelProto:
        if exporter not in self._files:
            options = {} if self.opset is None else {"opset_version": self.opset}
            self._files[exporter] = export(self.model, self.inputs, exporter, **options)
        return self._files[exporter]

    def traced(self, proto: onnx.ModelProto) -> Report:
        return layerdiff.trace(self.model, proto, self.inputs, progress=False)


@dataclass(frozen=True)
class Seeded:
    """A fault: how the healthy file is edited, and what the first diagnosis should say about it.

    `says` is a part of the summary, `evidence` what must be in the evidence, `layer` the module that holds the fault.
    """

    name: str
    network: Network
    edit: Callable[[onnx.ModelProto], onnx.ModelProto]
    cause: str
    says: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    layer: str = "subject"
    exporter: Exporter = TORCHSCRIPT
    verified: bool = True

    def report(self) -> Report:
        return self.network.traced(self.edit(self.network.healthy(self.exporter)))


def seeded(faults: tuple[Seeded, ...], missed: Mapping[str, str] | None = None) -> pytest.MarkDecorator:
    """Every fault under its name; what is known to be missed is expected to fail, for the reason given."""
    marks = {name: (pytest.mark.xfail(strict=True, reason=reason),) for name, reason in (missed or {}).items()}
    assert marks.keys() <= {fault.name for fault in faults}
    return pytest.mark.parametrize("fault", [pytest.param(f, id=f.name, marks=marks.get(f.name, ())) for f in faults])


def healthy_files(faults: tuple[Seeded, ...]) -> pytest.MarkDecorator:
    """Every network of the faults with the exporters that they come from."""
    pairs = {(fault.network.name, fault.exporter): fault.network for fault in faults}
    return pytest.mark.parametrize(
        ("network", "exporter"),
        [pytest.param(network, way, id=f"{name}-{way.value}") for (name, way), network in pairs.items()],
    )


def check(fault: Seeded) -> Diagnosis:
    """The first diagnosis, after it was found to name the layer and the cause, and to be proven."""
    report = fault.report()
    assert not report.agrees
    assert report.first_divergence is not None
    assert report.first_divergence.layer == fault.layer
    found = report.diagnoses[0]
    assert (found.cause, found.verified) == (fault.cause, fault.verified), found.summary
    assert found.layer == fault.layer
    assert fault.says in found.summary
    assert {name: found.evidence.get(name) for name in fault.evidence} == dict(fault.evidence)
    return found


def check_quiet(network: Network, exporter: Exporter) -> None:
    """The healthy file of a network gives rise to no diagnosis."""
    report = network.traced(network.healthy(exporter))
    assert report.agrees, report.verdict
    assert not report.divergences
    assert not report.diagnoses


def images(name: str, subject: Callable[[], nn.Module], *, width: int = 8, size: int = 10, **options: Any) -> Network:
    """A classifier of images with one layer in the middle: 8 channels in, `width` out, of any size."""

    def build() -> nn.Module:
        return chain(
            stem=nn.Conv2d(3, 8, 3, padding=1),
            act=nn.Tanh(),
            subject=subject(),
            neck=nn.Conv2d(width, 6, 3),
            last=nn.Sigmoid(),
            mean=nn.AdaptiveAvgPool2d(1),
        )

    return Network(name, build, ((2, 3, size, size),), **options)


def vectors(
    name: str, subject: Callable[[], nn.Module], *, width: int = 12, lead: tuple[int, ...] = (2, 7), **options: Any
) -> Network:
    """A chain of linear layers over tokens with one layer in the middle: (2, 7, 12) in, `width` features out."""

    def build() -> nn.Module:
        return chain(
            stem=nn.Linear(6, 12),
            act=nn.Tanh(),
            subject=subject(),
            head=nn.Linear(width, 5),
        )

    return Network(name, build, ((*lead, 6),), **options)
