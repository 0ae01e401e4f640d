"""One fault in every block: those that the outputs agree without are told, too, and corrected."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from layerdiff import alike, exporting
from layerdiff.candidate import Candidate
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.conftest import Trace

BLOCKS = 10
EPSILON = 3e-5
"""Where torch has 1e-5: beyond rounding in most of the norms, and in two of them enough for the outputs to differ."""
X = noise("alike.x", 2, 8, 16)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)
        self.up = nn.Linear(16, 32)
        self.act = nn.GELU()
        self.down = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return fill(nn.Sequential(*(Block() for _ in range(BLOCKS)))).eval()


def with_wrong_epsilon(model: nn.Module) -> onnx.ModelProto:
    bad = copy.deepcopy(model)
    for block in bad:
        block.norm.eps = EPSILON
    return export(bad, (X,), Exporter.TORCHSCRIPT)


def epsilons(proto: onnx.ModelProto) -> list[float]:
    norms = [node for node in proto.graph.node if node.op_type == "LayerNormalization"]
    return [attribute.f for node in norms for attribute in node.attribute if attribute.name == "epsilon"]


def test_every_norm_with_the_wrong_epsilon_is_told_and_corrected(
    trace: Trace, model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proto = with_wrong_epsilon(model)
    report = trace(model, proto, X)
    told = len(report.divergences)
    assert [d.layer for d in report.divergences] == [f"{i}.norm" for i in range(told)]
    assert {(d.cause, d.verified) for d in report.diagnoses} == {("epsilon", True)}
    assert len(report.diagnoses) == told
    assert report.divergences[-1].healed.agrees
    assert len(report.repair(tmp_path / "fixed.onnx").repaired.corrected) == told
    assert epsilons(onnx.load(tmp_path / "fixed.onnx")) == pytest.approx([1e-5] * told + [EPSILON] * (BLOCKS - told))
    monkeypatch.setattr(alike, "_kind", lambda divergence: divergence.layer)
    needed = len(trace(model, proto, X).divergences)  # without the look at the others
    assert needed < told - 2


def test_what_has_another_fault_is_not_taken_for_the_same(trace: Trace, model: nn.Module) -> None:
    proto = with_wrong_epsilon(model)
    fifth = [node for node in proto.graph.node if node.op_type == "LayerNormalization"][5]
    next(attribute for attribute in fifth.attribute if attribute.name == "epsilon").f = 4e-5
    told = [d.layer for d in trace(model, proto, X).divergences]
    assert "4.norm" in told
    assert "6.norm" in told
    assert "5.norm" not in told


def test_the_same_operators_are_exported_once(trace: Trace, model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = copy.deepcopy(model)
    for block in bad:
        block.act = nn.SiLU()
    proto = export(bad, (X,), Exporter.TORCHSCRIPT)
    exporting._kept.clear()
    asked: list[str] = []
    real = exporting._export

    def counted(module: nn.Module, *rest: object) -> onnx.ModelProto:
        asked.append(str(module))
        return real(module, *rest)

    monkeypatch.setattr(exporting, "_export", counted)
    report = trace(model, proto, X)
    assert [d.layer for d in report.divergences] == [f"{i}.act" for i in range(BLOCKS)]
    once = len(asked)
    assert once <= 4  # two exporters, and the parts that were looked into
    assert trace(model, proto, X).to_dict()["diagnoses"] == report.to_dict()["diagnoses"]
    assert len(asked) == once


def test_another_shape_number_or_opset_is_another_export(monkeypatch: pytest.MonkeyPatch) -> None:
    exporting._kept.clear()

    def stretch(alpha: float, size: int) -> torch.fx.GraphModule:
        graph = torch.fx.Graph()
        x = graph.placeholder(f"value_{size}")
        graph.output(graph.call_function(torch.nn.functional.leaky_relu, (x, alpha)))
        return torch.fx.GraphModule(nn.Module(), graph)

    def key(alpha: float, size: int, opset: int = 17) -> object:
        return exporting._content(stretch(alpha, size), (torch.zeros(size),), exporting.Exporter.TORCHSCRIPT, opset)

    assert key(0.1, 3) == key(0.1, 3)
    assert len({key(0.1, 3), key(0.2, 3), key(0.1, 4), key(0.1, 3, 18)}) == 4


class Repeated(nn.Module):
    """One layer, called many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.layer, self.times = nn.Linear(8, 8), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = x + 0.5 * torch.tanh(self.layer(x))
        return x


@pytest.mark.parametrize("wrong", ["all", "first half"])
def test_of_many_origins_several_are_healed_at_once(trace: Trace, monkeypatch: pytest.MonkeyPatch, wrong: str) -> None:
    model, x = fill(Repeated(40)).eval(), noise("alike.repeated", 3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    products = [node for node in proto.graph.node if node.op_type == "Gemm"]
    assert len(products) == 40
    (weight,) = (tensor for tensor in proto.graph.initializer if tensor.name == products[0].input[1])
    other = numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.05), "wrong")
    proto.graph.initializer.append(other)
    for node in products[: 40 if wrong == "all" else 20]:
        node.input[1] = "wrong"
    runs: list[int] = []
    real = Candidate.outputs_with

    def counted(self: Candidate, injections: Sequence[object]) -> dict[str, np.ndarray]:
        runs.append(len(injections))
        return real(self, injections)

    monkeypatch.setattr(Candidate, "outputs_with", counted)
    report = trace(model, proto, x)
    count = 40 if wrong == "all" else 20
    assert [d.call for d in report.divergences] == list(range(count))
    assert {d.cause for d in report.diagnoses} == {"weights"}
    proofs = [d.healed for d in report.divergences]
    assert [proof.agrees for proof in proofs] == [False] * (count - 1) + [True]
    assert proofs[0].before > proofs[-1].after
    assert len({(proof.before, proof.after) for proof in proofs}) <= 16
    assert max(runs) >= count
    assert len([n for n in runs if n > 1]) < count  # each its own run would be as many
