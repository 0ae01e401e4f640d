"""Hypotheses compete: what cures is verified, what changes least wins, and the others are told."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from torch import nn

from layerdiff import diagnose
from layerdiff.diagnose import Hypothesis
from layerdiff.patch import SetAttribute, SetConstant
from tests.diagnose.edits import attributes, constant
from tests.diagnose.seeded import images

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.diagnose import Diagnoser, Stretch
    from layerdiff.model import Diagnosis

CONV = images("prove", lambda: nn.Conv2d(8, 8, 3, padding=1))
NODE = "/subject/Conv_output_0"
CURE = SetAttribute(NODE, "pads", [1, 1, 1, 1])
HARMLESS = SetAttribute(NODE, "dilations", [1, 1])
NO_CURE = SetAttribute(NODE, "pads", [0, 1, 2, 1])
FAULTY = attributes("Conv", 1, pads=[0, 0, 2, 2])


def saying(*hypotheses: Hypothesis) -> Diagnoser:
    return lambda stretch: hypotheses


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch):
    def by(*diagnosers: Diagnoser) -> Diagnosis:
        monkeypatch.setattr(diagnose, "DIAGNOSERS", diagnosers)
        return CONV.traced(FAULTY(CONV.healthy())).diagnoses[0]

    return by


def test_what_cures_wins_over_what_does_not_whoever_is_heard_first(told) -> None:
    no, yes = Hypothesis("axis", "No.", patch=(NO_CURE,)), Hypothesis("padding", "Yes.", {"n": 1}, (CURE,), "do it")
    found = told(saying(no), saying(yes))
    assert (found.cause, found.summary, found.remedy, found.verified) == ("padding", "Yes.", "do it", True)
    assert found.evidence["n"] == 1
    assert found.evidence["error_after"] < 1e-5
    (other,) = found.evidence["ruled_out"]
    assert other.startswith("axis: No. (leaves an error of ")


def test_of_two_cures_the_one_that_changes_less_wins(told) -> None:
    more = Hypothesis("constant", "More.", patch=(HARMLESS, CURE))
    found = told(saying(more), saying(Hypothesis("padding", "Less.", patch=(CURE,))))
    assert found.summary == "Less."
    assert found.evidence["ruled_out"] == ["constant: More. (also cures it)"]


def test_of_two_cures_of_one_size_the_first_wins(told) -> None:
    first, second = (Hypothesis("padding", text, patch=(CURE,)) for text in ("First.", "Second."))
    assert told(saying(first), saying(second)).summary == "First."


def test_a_cause_without_a_patch_is_never_verified(told) -> None:
    found = told(saying(Hypothesis("random", "By chance.")))
    assert (found.cause, found.verified) == ("random", False)
    assert "error_after" not in found.evidence


def test_without_a_cure_the_one_that_leaves_least_is_told_unverified(told) -> None:
    worse = Hypothesis("axis", "Worse.", patch=(SetConstant(NODE, 2, np.full(8, 50, np.float32)),))
    found = told(saying(worse, Hypothesis("padding", "Better.", patch=(NO_CURE,))))
    assert (found.summary, found.verified) == ("Better.", False)


def test_a_patch_of_another_file_cures_nothing(told) -> None:
    found = told(saying(Hypothesis("padding", "Elsewhere.", patch=(SetAttribute("elsewhere", "pads", [1] * 4),))))
    assert not found.verified


def test_without_any_hypothesis_the_cause_is_unknown(told) -> None:
    found = told(saying())
    assert (found.cause, found.layer, found.verified) == ("unknown", "subject", False)


def test_a_diagnoser_that_raises_is_reported_by_its_name_and_the_others_go_on(
    told, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(stretch: Stretch) -> Iterator[Hypothesis]:
        raise KeyError("gone")

    found = told(broken, saying(Hypothesis("padding", "Yes.", patch=(CURE,))))
    assert found.verified
    assert found.evidence["failed"] == ["test_prove: KeyError: 'gone'"]
    assert "the diagnoser test_prove failed on subject" in caplog.text


def test_two_faults_of_one_layer_are_cured_together() -> None:
    both = constant("Conv", 2, lambda bias: bias * 2, 1)(FAULTY(CONV.healthy()))
    found = CONV.traced(both).diagnoses[0]
    assert found.verified
    assert "pads=[0, 0, 2, 2]" in found.summary
    assert "subject.bias is multiplied by 2 in the file." in found.summary
    assert len(found.evidence["together_with"]) == 1


def test_what_is_not_ill_is_not_cured() -> None:
    """Every diagnoser stays silent on the healthy layers around a fault: there is one diagnosis."""
    report = CONV.traced(FAULTY(CONV.healthy()))
    assert [found.layer for found in report.diagnoses] == ["subject"]
