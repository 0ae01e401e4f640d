"""Where every layer is right from right inputs no float64 twin is run, and nothing else changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import layerdiff
from layerdiff import judging, noise, sound
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable

    Trace = Callable[..., layerdiff.Report]


def twins_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What grows by one with every float64 twin."""
    seen: list[Any] = []
    real = noise.record

    def counted(make: Any, *rest: Any) -> Any:
        seen.append(make)
        return real(make, *rest)

    monkeypatch.setattr(noise, "record", counted)
    return seen


@pytest.mark.parametrize("name", ["resnet", "yolo", "vit", "gpt", "densenet", "bert"])
def test_a_healthy_export_needs_no_twin_and_the_twin_would_say_the_same(
    name: str, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    twins = twins_run(monkeypatch)
    quick = trace(sample.model, proto, sample.inputs)
    assert twins == []
    assert all(row.noise.assumed for row in quick.layers if row.noise is not None and row.noise.max_abs)
    monkeypatch.setattr(judging, "sound", lambda *_: None)
    full = trace(sample.model, proto, sample.inputs)
    assert len(twins) == 1
    assert quick.agrees
    assert full.agrees
    assert [(r.layer, r.call, r.status, r.onnx_tensor) for r in quick.layers] == [
        (r.layer, r.call, r.status, r.onnx_tensor) for r in full.layers
    ]


def test_layers_of_a_sound_graph_have_what_they_introduce_beside_what_they_collect(trace: Trace) -> None:
    sample = MODELS["resnet"]()
    report = trace(sample.model, export(sample.model, sample.inputs, Exporter.TORCHSCRIPT), sample.inputs)
    pairs = [(r.introduced, r.accumulated) for r in report.layers if r.introduced and r.accumulated]
    assert any(introduced != accumulated for introduced, accumulated in pairs)
    assert all(introduced.agrees and accumulated.agrees for introduced, accumulated in pairs)


@pytest.mark.parametrize("relative", [1e-3, 5e-5])
def test_a_small_fault_in_one_weight_is_not_vouched_for(
    relative: float, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4)).eval()
    x = torch.randn(4, 16)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    weight = next(t for t in proto.graph.initializer if t.name == "2.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * (1 + relative), weight.name))
    twins = twins_run(monkeypatch)
    report = trace(model, proto, x)
    assert len(twins) == 1
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "2"


def test_a_lost_branch_is_not_vouched_for_however_little_it_adds(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled by a millionth it changes the sum by less than rounding: only that something is missing tells."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.outside = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.outside(x + 1e-9 * torch.tanh(self.inside(x)))

    torch.manual_seed(0)
    model, x = Branch().eval(), torch.randn(2, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    join = next(node for node in proto.graph.node if node.op_type == "Add" and "side" not in node.name)
    for node in proto.graph.node:
        node.input[:] = [proto.graph.input[0].name if name == join.output[0] else name for name in node.input]
    live: list[onnx.NodeProto] = [n for n in proto.graph.node if n.output[0] != join.output[0]]
    kept = [n for n in live if "inside" not in n.name and n.op_type not in ("Tanh", "Mul", "Constant")]
    del proto.graph.node[:]
    proto.graph.node.extend(kept)
    twins = twins_run(monkeypatch)
    report = trace(model, proto, x)
    assert report.agrees
    assert len(twins) == 1


def test_masks_pairs_and_tolerances_are_judged_the_other_way(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    sample = MODELS["vit"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    asked: list[Any] = []
    monkeypatch.setattr(judging, "sound", lambda *given: asked.append(given) or sound.sound(*given))
    trace(sample.model, proto, sample.inputs, tolerance=layerdiff.Tolerance(1e-3, 1e-4))
    trace(sample.model, proto, sample.inputs, pairs={"norm": "/norm/LayerNormalization_output_0"})
    assert asked == []
