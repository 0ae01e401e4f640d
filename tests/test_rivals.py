"""The tools that layerdiff is compared with find what they can find, and are scored by one rule."""

from __future__ import annotations

import copy
import functools
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

from benchmarks.comparison import answer, compare, score, summary
from benchmarks.faults import Fault, FaultyCase
from benchmarks.faults.category import Category
from benchmarks.healthy import HealthyCase, Variant
from benchmarks.rivals import RIVALS, Fresh, NotApplicable, Verdict, fresh_export
from tests.zoo.exports import Exporter, Treatment, export, quiet, treat

if TYPE_CHECKING:
    import onnx

INPUTS = (torch.linspace(-1, 1, 3 * 8 * 8).reshape(1, 3, 8, 8),)
HOOKS, FOLDING, POLYGRAPHY, READ_BACK, VERIFY, SIDE_BY_SIDE, OWN_WEIGHTS = RIVALS
DYNAMO_ONLY = (VERIFY, SIDE_BY_SIDE, OWN_WEIGHTS)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU()
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.act(self.norm(self.conv(x))))


@functools.cache
def tiny() -> nn.Module:
    torch.manual_seed(0)
    model = Tiny().eval()
    model.norm.running_mean.copy_(torch.tensor([0.3, -0.2, 0.1, 0.4]))
    return model


@functools.cache
def fresh(exporter: Exporter) -> Fresh:
    return fresh_export(tiny(), INPUTS, exporter)


@functools.cache
def with_wrong_bias(exporter: Exporter) -> onnx.ModelProto:
    wrong = copy.deepcopy(tiny())
    wrong.head[1].bias.data[2] += 0.5
    return export(wrong, INPUTS, exporter)


def needed(tool: str) -> None:
    """Skips the test without the package that the tool is in."""
    if tool in (POLYGRAPHY, READ_BACK):
        pytest.importorskip("polygraphy", reason="pip install 'layerdiff[bench]'")
    if tool in (SIDE_BY_SIDE, OWN_WEIGHTS):
        pytest.importorskip("onnx_diagnostic", reason="pip install 'layerdiff[bench]'")
        pytest.importorskip("scipy", reason="pip install 'layerdiff[bench]'")


def asked(tool: str, proto: onnx.ModelProto, exporter: Exporter) -> Verdict:
    needed(tool)
    with quiet():
        return RIVALS[tool](tiny(), proto, INPUTS, fresh(exporter))


@pytest.mark.parametrize("exporter", Exporter)
@pytest.mark.parametrize("tool", [HOOKS, FOLDING, POLYGRAPHY, READ_BACK, VERIFY, OWN_WEIGHTS])
def test_a_wrong_bias_is_named(tool: str, exporter: Exporter) -> None:
    proto = with_wrong_bias(exporter)
    if tool in DYNAMO_ONLY and exporter is Exporter.TORCHSCRIPT:
        with pytest.raises(NotApplicable):
            asked(tool, proto, exporter)
        return
    # A folded BatchNorm stands under the name of the convolution: the plain script trips over that first.
    trips = tool == HOOKS and exporter is Exporter.TORCHSCRIPT
    assert asked(tool, proto, exporter) == Verdict(agrees=False, layer="conv" if trips else "head.1")


@pytest.mark.parametrize("tool", [FOLDING, POLYGRAPHY, READ_BACK, VERIFY, OWN_WEIGHTS])
def test_a_good_export_agrees(tool: str) -> None:
    assert asked(tool, fresh(Exporter.DYNAMO).proto, Exporter.DYNAMO) == Verdict(agrees=True)


@pytest.mark.parametrize("tool", [HOOKS, FOLDING, POLYGRAPHY, READ_BACK, VERIFY, SIDE_BY_SIDE, OWN_WEIGHTS])
def test_without_names_the_difference_is_seen_and_no_layer_named(tool: str) -> None:
    proto = treat(with_wrong_bias(Exporter.DYNAMO), Treatment.SCRAMBLED)
    assert asked(tool, proto, Exporter.DYNAMO) == Verdict(agrees=False, layer=None)


def test_polygraphy_passes_over_another_operator_unless_its_reader_wonders() -> None:
    wrong = copy.deepcopy(tiny())
    wrong.act = nn.LeakyReLU(0.5)
    proto = export(wrong, INPUTS, Exporter.TORCHSCRIPT)
    layers = [asked(tool, proto, Exporter.TORCHSCRIPT).layer for tool in (POLYGRAPHY, READ_BACK)]
    assert layers == ["head.0", "act"]


def test_side_by_side_does_not_see_a_wrong_bias_as_it_takes_that_of_the_model() -> None:
    unfolded = nn.Sequential(tiny().act, tiny().head).eval()
    wrong = copy.deepcopy(unfolded)
    wrong[1][1].bias.data[2] += 0.5
    inputs = (torch.linspace(-1, 1, 144).reshape(1, 4, 6, 6),)
    proto = export(wrong, inputs, Exporter.DYNAMO)
    verdicts = {}
    for tool in (SIDE_BY_SIDE, OWN_WEIGHTS):
        needed(tool)
        with quiet():
            verdicts[tool] = RIVALS[tool](unfolded, proto, inputs, fresh_export(unfolded, inputs, Exporter.DYNAMO))
    assert verdicts == {SIDE_BY_SIDE: Verdict(agrees=True), OWN_WEIGHTS: Verdict(agrees=False, layer="1.1")}


def test_one_rule_scores_everybody() -> None:
    fault = Fault("activation-other", "act", ("norm",), "LeakyReLU instead of ReLU")
    verdicts = [
        Verdict(agrees=False, layer="act"),
        Verdict(agrees=False, layer="norm"),
        Verdict(agrees=False, layer="head"),
        Verdict(agrees=False),
        Verdict(agrees=True),
    ]
    assert [score(verdict, fault) for verdict in verdicts] == ["exact", "neighbour", "wrong", "unnamed", "silent"]
    assert [score(verdict, None) for verdict in verdicts] == ["alarm"] * 4 + ["quiet"]


def test_a_crash_and_a_file_that_is_not_taken_are_outcomes() -> None:
    proto = fresh(Exporter.DYNAMO).proto
    good = HealthyCase("tiny-dynamo-raw", tiny(), INPUTS, proto, Exporter.DYNAMO, Treatment.RAW, Variant.PLAIN, "tiny")

    def crashing(*_: object) -> Verdict:
        raise ValueError("no such shape")

    def declining(*_: object) -> Verdict:
        raise NotApplicable("another format")

    told = [answer("tool", tool, good, fresh(Exporter.DYNAMO)) for tool in (crashing, declining)]
    assert [(a.outcome, a.reason) for a in told] == [
        ("crashed", "ValueError: no such shape"),
        ("not applicable", "another format"),
    ]


def test_layerdiff_and_the_rivals_answer_the_same_cases() -> None:
    way = (Exporter.DYNAMO, Treatment.RAW)
    healthy = HealthyCase("tiny-dynamo-raw", tiny(), INPUTS, fresh(way[0]).proto, *way, Variant.PLAIN, "tiny")
    fault = Fault("bias-wrong", "head.1", (), "one element is 0.5 too large")
    faulty = FaultyCase("0-tiny", tiny(), INPUTS, with_wrong_bias(way[0]), fault, *way, Category.SINGLE, "tiny")
    table = summary(compare([faulty], [healthy], {HOOKS: RIVALS[HOOKS], FOLDING: RIVALS[FOLDING]}))
    assert list(table.exact) == [100.0, 100.0]
    assert list(table["false alarms"]) == ["0 of 1", "0 of 1"]
