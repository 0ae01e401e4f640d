"""Ctrl-C: what is known by then is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from torch import Tensor, nn

import layerdiff
from layerdiff import job
from layerdiff.progress import Progress
from layerdiff.samples import how_many
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Iterator

IMAGE = noise("interrupt", 1, 3, 8, 8)


def network(activation: nn.Module) -> nn.Module:
    return fill(nn.Sequential(nn.Conv2d(3, 4, 3), activation, nn.Conv2d(4, 2, 3))).eval()


def pressed_after(count: int) -> Iterator[Tensor]:
    """Samples without an end, until somebody has enough."""
    for index in range(count):
        yield IMAGE + index
    raise KeyboardInterrupt


def test_a_stopped_stream_gives_a_report_on_the_samples_so_far() -> None:
    model = network(nn.ReLU())
    proto = export(model, (IMAGE,), Exporter.TORCHSCRIPT)
    report = layerdiff.trace(model, proto, pressed_after(3), progress=False)
    assert report.agrees
    assert len(report.samples) == 3
    assert report.warnings[0] == "stopped after 3 samples: nothing is known of the others"


def test_a_trace_that_is_stopped_before_anything_is_known_ends() -> None:
    model = network(nn.ReLU())
    proto = export(model, (IMAGE,), Exporter.TORCHSCRIPT)
    with pytest.raises(KeyboardInterrupt):
        layerdiff.trace(model, proto, pressed_after(0), progress=False)


def test_who_does_not_wait_for_the_cause_gets_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(job, "explain_all", pressed)
    proto = export(network(nn.Tanh()), (IMAGE,), Exporter.TORCHSCRIPT)
    report = layerdiff.trace(network(nn.ReLU()), proto, IMAGE, progress=False)
    assert report.first_divergence is not None
    assert report.first_divergence.layer == "1"
    assert report.first_divergence.healed is not None
    assert report.diagnoses == ()
    assert report.warnings[0].startswith("stopped while the cause was looked for")


@pytest.mark.parametrize(
    ("inputs", "count"), [(IMAGE, 1), ((IMAGE, IMAGE), 1), ([IMAGE, IMAGE], 2), (iter([IMAGE]), None)]
)
def test_samples_are_counted_where_that_is_possible(inputs: Any, count: int | None) -> None:
    assert how_many(inputs) == count


def test_the_time_left_is_shown_for_several_samples(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(enabled=True) as bar:
        bar.samples(4)
        bar.stage("running the reference")
        bar.sample_done()
        bar.sample_done()
    shown = capsys.readouterr().err
    assert "samples" in shown
    assert "2/4" in shown
