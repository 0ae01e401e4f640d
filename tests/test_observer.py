"""What a runtime's own optimisations do, told apart from what the file says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  the name everybody knows it by

from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.errors import BackendError
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill


class PaddedPool(nn.Module):
    """Zeros padded before a max pool; onnxruntime's Pad_Fusion makes minus infinities of them (onnx/optimizer#269)."""

    def __init__(self) -> None:
        super().__init__()
        self.inlet = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(3, 2)
        self.outlet = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.outlet(self.pool(F.pad(self.inlet(x) - 3.0, (0, 1, 0, 1))))


@pytest.fixture(scope="module")
def padded() -> tuple[nn.Module, Tensor]:
    return fill(PaddedPool()).eval(), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_pass_of_the_runtime_is_found_guilty_and_not_the_graph(trace, padded):
    model, x = padded
    proto = export(model, (x,), Exporter.DYNAMO)
    shipped = OnnxRuntime().open(proto, Optimisation.AS_SHIPPED).run({proto.graph.input[0].name: x.numpy()})
    expected = model(x).detach().numpy()
    if abs(next(iter(shipped.values())) - expected).max() < 1e-3:
        pytest.skip("this onnxruntime folds the padding rightly")
    report = trace(model, proto, x)
    assert report.first_divergence.layer == "pool"
    assert not report.agrees
    assert report.first_divergence.healed.agrees
    diagnosis = report.diagnoses[0]
    assert (diagnosis.cause, diagnosis.verified) == ("runtime-fusion", True)
    assert diagnosis.evidence["passes"] == ["Pad_Fusion"]
    assert "disabled_optimizers=['Pad_Fusion']" in report.verdict
    assert "an optimisation of the runtime is at fault" in report.warnings[0]


def test_the_graph_that_runs_without_the_guilty_pass_is_quiet(trace, padded):
    model, x = padded

    class WithoutPadFusion(OnnxRuntime):
        def open(self, model, optimisation, disabled=()):
            return super().open(model, optimisation, [*disabled, "Pad_Fusion"])

    report = trace(model, export(model, (x,), Exporter.DYNAMO), x, backend=WithoutPadFusion())
    assert report.agrees
    assert report.diagnoses == ()
    assert report.warnings == ()


def test_an_unknown_provider_is_refused_with_what_there_is():
    with pytest.raises(BackendError, match=r"has no NoSuchProvider; it has .*CPUExecutionProvider"):
        OnnxRuntime(["NoSuchProvider"])


def test_a_dropout_left_active_is_named_as_random(trace):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 4)).train()
    x = torch.randn(3, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    dropouts = [node for node in proto.graph.node if node.op_type == "Dropout"]
    if not dropouts:  # the exporter leaves it out in eval mode; put the active one where it was
        proto = _with_active_dropout(proto)
    report = trace(model.eval(), proto, x)
    assert report.agrees == (not report.divergences)  # the runtime's optimiser may take the Dropout out
    assert report.diagnoses[0].cause == "training-mode"


def _with_active_dropout(proto):
    import numpy as np
    from onnx import helper, numpy_helper

    first = proto.graph.node[0]
    hidden = first.output[0]
    first.output[0] = "before_dropout"
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "ratio"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(True), "training"))
    dropout = helper.make_node("Dropout", ["before_dropout", "ratio", "training"], [hidden], name="dropout")
    proto.graph.node.insert(1, dropout)
    return proto


def test_an_onnx_program_is_a_candidate(trace):
    class Program:
        """As torch.onnx.export(dynamo=True) returns it: the model under a name of its own."""

        def __init__(self, proto):
            self.model_proto = proto

    model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(3, 4)
    assert trace(model, Program(export(model, (x,), Exporter.DYNAMO)), x).agrees
