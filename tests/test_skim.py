"""A run that keeps little of what was looked at: the same is told, and whatever is read later is made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from layerdiff import arena, candidate, shelf, skim
from layerdiff.arena import Arena
from layerdiff.backends import OnnxRuntime, Optimisation, Room
from layerdiff.candidate import Candidate
from layerdiff.graph import Graph
from layerdiff.store import Store
from tests.conftest import graph_of
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerdiff.report import Report

    Trace = Callable[..., Report]

SMALL_PORTIONS = 1 << 14
# Networks with too many tensors whose shapes are only known when they run.
UNKNOWN_SHAPES = {"gpt", "refiner"}


class Seen:
    """How many graphs were skimmed, and what was read of them though it had been let go."""

    def __init__(self) -> None:
        self.skimmed = 0
        self.read: list[str] = []


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Graphs are skimmed however small they are."""
    seen = Seen()
    skimmed, array = candidate.skimmed, shelf.Remade.array.fget

    def counted(*given: Any) -> Any:
        found = skimmed(*given)
        seen.skimmed += found is not None
        return found

    def noted(one: shelf.Remade) -> Any:
        seen.read.append(one.name)
        return array(one)

    monkeypatch.setattr(candidate, "skimmed", counted)
    monkeypatch.setattr(shelf.Remade, "array", property(noted))
    monkeypatch.setattr(skim, "WORTH_IT", 0)
    monkeypatch.setattr(skim, "AT_ONCE", SMALL_PORTIONS)
    return seen


def findings(report: Report) -> dict[str, Any]:
    """All that a report says but where it was made."""
    return {key: value for key, value in report.to_dict().items() if key != "environment"}


@pytest.mark.parametrize("name", MODELS)
def test_a_healthy_file_is_told_alike_to_the_last_digit_and_nothing_is_made_again(
    name: str, trace: Trace, request: pytest.FixtureRequest
) -> None:
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    whole = trace(sample.model, proto, sample.inputs)
    seen: Seen = request.getfixturevalue("always")
    assert findings(trace(sample.model, proto, sample.inputs)) == findings(whole)
    assert whole.agrees
    assert seen.skimmed == (name not in UNKNOWN_SHAPES)
    assert not seen.read


def test_what_is_small_is_told_alike_though_it_was_let_go(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    sample = MODELS["yolo"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    whole = trace(sample.model, proto, sample.inputs)
    seen: Seen = request.getfixturevalue("always")
    monkeypatch.setattr(skim, "SMALL", 0)
    assert findings(trace(sample.model, proto, sample.inputs)) == findings(whole)
    assert seen.read  # of arrays that are a sample whole, only their numbers tell


def test_a_file_that_is_far_off_is_not_skimmed(trace: Trace, always: Seen) -> None:
    sample = MODELS["resnet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    with torch.no_grad():
        next(p for p in sample.model.parameters() if p.ndim == 4).mul_(1.5)
    assert not trace(sample.model, proto, sample.inputs).agrees
    assert always.skimmed == 0


def test_a_small_fault_behind_right_outputs_is_told_alike(
    trace: Trace, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Scaled by 1e-5 before it is added, a wrong branch leaves the output within rounding."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = nn.Sequential(nn.Conv2d(4, 8, 3), nn.SiLU(), nn.ConvTranspose2d(8, 4, 3))
            self.trunk = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.trunk(x) + 1e-5 * self.branch(x)

    torch.manual_seed(0)
    model, x = Branch().eval(), torch.randn(1, 4, 32, 32)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    with torch.no_grad():
        model.branch[0].weight.mul_(1.01)
    whole = trace(model, proto, x)
    seen: Seen = request.getfixturevalue("always")
    monkeypatch.setattr(skim, "AT_ONCE", 1 << 17)
    assert findings(trace(model, proto, x)) == findings(whole)
    assert "branch.0 " in whole.verdict
    assert seen.skimmed == 1
    assert seen.read


def test_a_channels_last_file_is_told_alike(trace: Trace, request: pytest.FixtureRequest) -> None:
    from tests.zoo.channels_last import channels_last

    sample = MODELS["resnet"]()
    proto = channels_last(export(sample.model, sample.inputs, Exporter.TORCHSCRIPT))
    whole = trace(sample.model, proto, sample.inputs)
    request.getfixturevalue("always")
    assert findings(trace(sample.model, proto, sample.inputs)) == findings(whole)


def every_tensor(model: nn.Module, x: torch.Tensor, look: Callable[[Any], set[str]]) -> tuple[Candidate, Candidate]:
    """A candidate whose run was skimmed, and one whose run was kept."""
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    made = [Candidate(proto, Graph(proto), OnnxRuntime(threads=1), {"input": x.numpy()}) for _ in range(2)]
    feeds = {port.name: x.numpy() for port in made[0].graph.inputs}
    made = [Candidate(proto, Graph(proto), OnnxRuntime(threads=1), feeds) for _ in range(2)]
    made[0].skim(look)
    return made[0], made[1]


def test_every_tensor_is_shown_once_and_is_the_same_when_it_is_made_again(
    always: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skim, "AT_ONCE", 1 << 17)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.Flatten(2), nn.GELU()).eval()
    shown: dict[str, np.ndarray[Any, Any]] = {}

    def look(portion: shelf.Shelf[str]) -> set[str]:
        assert shown.keys().isdisjoint(portion)
        shown.update({name: array.copy() for name, array in portion.items()})
        return set()

    skimmed, kept = every_tensor(model, torch.randn(1, 3, 32, 32), look)
    assert shown.keys() == set(skimmed.graph.computed)
    for name, array in kept.tapped.items():
        assert np.array_equal(array, shown.get(name, array))
        assert np.array_equal(array, skimmed.tapped[name])
        assert skimmed.outline(name).shape == array.shape
    assert always.read


def test_what_is_to_stay_and_what_a_later_portion_reads_stays(always: Seen) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 8, 3), nn.SiLU()).eval()
    names: list[str] = []

    def look(portion: shelf.Shelf[str]) -> set[str]:
        names.append(next(iter(portion)))
        return {names[0]}

    skimmed, kept = every_tensor(model, torch.randn(1, 3, 32, 32), look)
    assert np.array_equal(skimmed.tapped[names[0]], kept.tapped[names[0]])
    assert len(names) > 1
    assert not always.read


def test_nothing_is_skimmed_where_shapes_are_not_known_before(always: Seen) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["places"]),
        helper.make_node("Cast", ["places"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("Neg", ["numbers"], ["y"]),
    ]
    proto = graph_of(nodes, {"x": (64, 64)}, ["y"])
    made = Candidate(proto, Graph(proto), OnnxRuntime(threads=1), {"x": np.eye(64, dtype=np.float32)}, store=Store())
    made.skim(lambda _: set())
    assert always.skimmed == 0


def room_and_session(shape: tuple[int, ...]) -> tuple[Room, Any]:
    nodes = [helper.make_node("Neg", ["x"], ["y"]), helper.make_node("Shape", ["y"], ["size"])]
    proto = graph_of(nodes, {"x": ("n", 3)}, ["y", "size"], types={"size": TensorProto.INT64})
    return Room({"y": shape}, 1 << 10), OnnxRuntime(threads=1).open(proto, Optimisation.NONE)


def test_outputs_go_to_a_room_and_the_next_run_writes_over_them() -> None:
    room, session = room_and_session((2, 3))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    first = session.run_into(room, {"x": x})
    assert np.array_equal(first["y"], -x)
    assert list(first["size"]) == [2, 3]
    room.clear()
    assert np.array_equal(session.run_into(room, {"x": 2 * x})["y"], -2 * x)
    assert np.array_equal(first["y"], -2 * x)


def test_a_shape_that_was_inferred_wrong_costs_only_the_room() -> None:
    room, session = room_and_session((3, 3))
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = session.run_into(room, {"x": x})
    assert np.array_equal(found["y"], -x)
    assert list(found["size"]) == [2, 3]


def test_what_does_not_fit_into_a_room_goes_elsewhere() -> None:
    room = Room({"a": (16,), "b": (1 << 20,), "none": (0, 4)}, 1 << 10)
    first = room.take("a")
    assert first is not None
    assert first.shape == (16,)
    assert room.take("b") is None
    assert room.take("none") is None
    assert room.take("unknown") is None


@pytest.mark.parametrize("prepared", [True, False])
def test_an_arena_copies_arrays_and_they_do_not_share_memory(
    monkeypatch: pytest.MonkeyPatch, *, prepared: bool
) -> None:
    monkeypatch.setattr(arena, "_CAN", arena._CAN and prepared)
    monkeypatch.setattr(arena, "SEGMENT", 1 << 20)
    made = Arena()
    arrays = [np.full((n, 1000), n, np.int32) for n in (100, 300, 1, 40)]
    arrays.append(np.asarray(np.arange(60_000, dtype=np.float64).reshape(200, 300).T))
    copies = [made.copy(array) for array in arrays]
    for array, copied in zip(arrays, copies, strict=True):
        assert copied.dtype == array.dtype
        assert np.array_equal(copied, array)
        copied.fill(7)
    assert all((array == n).all() for array, n in zip(arrays, (100, 300, 1, 40), strict=False))
    kept = copies[1]
    del copies
    assert (kept == 7).all()


def test_an_older_kernel_hands_out_memory_page_by_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arena, "_POPULATE_WRITE", 9999)
    array = np.arange(100_000, dtype=np.float32)
    assert np.array_equal(Arena().copy(array), array)


def test_a_trace_of_several_samples_is_told_alike(trace: Trace, request: pytest.FixtureRequest) -> None:
    sample = MODELS["resnet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    inputs = [tuple(k * x for x in sample.inputs) for k in (1.0, 0.5, 2.0)]
    whole = trace(sample.model, proto, inputs)
    seen: Seen = request.getfixturevalue("always")
    assert findings(trace(sample.model, proto, inputs)) == findings(whole)
    assert seen.skimmed == 3
