"""The memory limit: what goes to disk, in which portions a graph runs, and that the answer does not depend on it."""

from __future__ import annotations

import errno
import gc
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from onnx import helper

import layerdiff
from layerdiff import evident, memory, store, tracing
from layerdiff.backends import OnnxRuntime
from layerdiff.candidate import Candidate
from layerdiff.graph import Graph
from layerdiff.model import Kind
from layerdiff.portions import portions
from layerdiff.shelf import Shelf
from layerdiff.store import Store
from tests.conftest import graph_of
from tests.zoo import MODELS
from tests.zoo.exports import Exporter, export

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from layerdiff.report import Report

TIGHT = 20_000
"""Bytes of activations that may stay in memory: much less than what any network of the zoo makes."""


def findings(report: Report) -> dict[str, Any]:
    """All that a report says but where it was made."""
    return {key: value for key, value in report.to_dict().items() if key != "environment"}


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Store]]:
    """The stores of all traces, each with a tight budget."""
    made: list[Store] = []

    class Tight(Store):
        def __init__(self, budget: int | None = None) -> None:
            super().__init__(TIGHT)
            made.append(self)

    monkeypatch.setattr(tracing, "Store", Tight)
    yield made
    made.clear()


def damaged(name: str) -> tuple[torch.nn.Module, Any, tuple[torch.Tensor, ...]]:
    """A model of the zoo with an export that was made before its last weight of several dimensions changed."""
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    weights = [p for p in sample.model.parameters() if p.ndim > 1]
    with torch.no_grad():
        weights[len(weights) // 2].mul_(1.1)
    return sample.model, proto, sample.inputs


@pytest.mark.parametrize("name", ["yolo", "unet", "gpt", "speech"])
def test_a_fault_is_told_alike_to_the_last_digit_whatever_the_limit(
    name: str, trace: Callable[..., Report], request: pytest.FixtureRequest
) -> None:
    case = damaged(name)
    free = trace(*case)
    made = request.getfixturevalue("stores")
    tight = trace(*case)
    assert made[0].spilled_bytes > TIGHT
    assert not free.agrees
    assert findings(tight) == findings(free)


def test_a_wire_that_leads_to_the_wrong_place_is_told_alike_whatever_the_limit(
    trace: Callable[..., Report], request: pytest.FixtureRequest
) -> None:
    """What is put right is one edge: its readers elsewhere, in other portions of the graph, keep what they read."""
    sample = MODELS["resnet"]()
    proto = export(sample.model, sample.inputs, Exporter.TORCHSCRIPT)
    join = [node for node in proto.graph.node if node.op_type == "Add"][1]
    join.input[0] = join.input[1]
    free = trace(sample.model, proto, sample.inputs)
    request.getfixturevalue("stores")
    tight = trace(sample.model, proto, sample.inputs)
    assert free.first_divergence is not None
    assert free.first_divergence.kind is Kind.REWIRED
    assert findings(tight) == findings(free)


@pytest.mark.parametrize("name", ["resnet"])
def test_a_good_export_agrees_to_the_last_digit_whatever_the_limit(
    name: str, trace: Callable[..., Report], request: pytest.FixtureRequest
) -> None:
    sample = MODELS[name]()
    proto = export(sample.model, sample.inputs, Exporter.DYNAMO)
    free = trace(sample.model, proto, sample.inputs)
    request.getfixturevalue("stores")
    tight = trace(sample.model, proto, sample.inputs)
    assert free.agrees
    assert findings(tight) == findings(free)


def test_two_files_and_two_modules_are_compared_alike_whatever_the_limit(
    trace: Callable[..., Report], request: pytest.FixtureRequest
) -> None:
    model, before, inputs = damaged("resnet")
    after = export(model, inputs, Exporter.TORCHSCRIPT)
    other = MODELS["resnet"]().model
    feeds = {port.name: x.numpy() for port, x in zip(before.graph.input, inputs, strict=True)}
    free = [trace(before, after, feeds), trace(other, model, inputs)]
    request.getfixturevalue("stores")
    tight = [trace(before, after, feeds), trace(other, model, inputs)]
    assert [findings(report) for report in tight] == [findings(report) for report in free]


def test_what_exceeds_the_budget_goes_to_disk_and_comes_back_as_it_was() -> None:
    keeper = Store(100_000)
    arrays = [np.random.default_rng(i).normal(size=(20, 1000)).astype(np.float32) for i in range(4)]
    held = [keeper.keep_copy(array) for array in arrays]
    assert keeper.spilled_bytes == 3 * 80_000
    for one, array in zip(held, arrays, strict=True):
        np.testing.assert_array_equal(one.array, array)
        assert (one.shape, one.dtype) == (array.shape, array.dtype)


def test_an_array_on_disk_can_be_read_while_a_view_of_it_lives_and_not_be_written_to() -> None:
    keeper = Store(0)
    held = keeper.keep(np.arange(5000.0).reshape(50, 100))
    view = held.array.T[3:5]
    del held, keeper
    gc.collect()
    assert view[1, 2] == 204.0
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1


def test_empty_arrays_and_single_numbers_are_kept() -> None:
    keeper = Store(0)
    for array in (np.zeros((0, 3)), np.array(7), np.array(True)):
        np.testing.assert_array_equal(keeper.keep(array).array, array)


def test_what_is_let_go_makes_room_in_memory() -> None:
    keeper = Store(100_000)
    held = keeper.keep(np.zeros(12_000))
    assert keeper.spilled_bytes == 0
    del held
    keeper.keep(np.zeros(12_000))
    assert keeper.spilled_bytes == 0


def test_nothing_is_left_on_disk_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stores: Any) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    model, proto, inputs = damaged("resnet")
    monkeypatch.setattr(evident, "align", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        layerdiff.trace(model, proto, inputs, progress=False)
    assert stores[0].spilled_bytes > 0
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **_: Any) -> None:
            self.real = store_file()

        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

    store_file = store.tempfile.TemporaryFile
    monkeypatch.setattr(store.tempfile, "TemporaryFile", Full)
    with pytest.raises(layerdiff.LayerdiffError, match=r"cannot write 80,000 bytes .*No space left.*TMPDIR"):
        Store(0).keep(np.zeros(10_000))


def test_what_ships_keeps_no_memory_of_its_session() -> None:
    graph = graph_of([helper.make_node("Relu", ["x"], ["y"])], {"x": (4,)}, ["y"])
    candidate = Candidate(graph, Graph(graph), OnnxRuntime(), {"x": np.ones(4, np.float32)})
    output = candidate.shipped["y"]
    assert output is not None
    assert output.flags.owndata


def test_portions_keep_to_their_size_and_to_the_order_of_the_graph() -> None:
    nodes = [("Relu", ["x"], ["a"]), ("Relu", ["a"], ["b"]), ("Relu", ["b"], ["c"]), ("Add", ["a", "c"], ["d"])]
    graph = Graph(graph_of([helper.make_node(*node) for node in nodes], {"x": (4,)}, ["d"]))
    sizes = dict.fromkeys("abcd", 10)
    assert portions(graph, "abcd", sizes, 1000) == [["a", "b", "c", "d"]]
    assert portions(graph, "abcd", sizes, 20) == [["a", "b"], ["c"], ["d"]]
    assert portions(graph, "abcd", sizes, 1) == [["a"], ["b"], ["c"], ["d"]]


def test_a_graph_of_many_tensors_runs_in_portions_and_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [helper.make_node("Tanh", [f"t{i}"], [f"t{i + 1}"]) for i in range(9)]
    graph = graph_of([*nodes, helper.make_node("Add", ["t2", "t9"], ["y"])], {"t0": (4,)}, ["y"])
    feeds = {"t0": np.linspace(-1, 1, 4, dtype=np.float32)}
    values = {f"t{i}": np.full(4, i, np.float32) for i in (2, 3, 7)}

    def runs() -> tuple[dict[str, Any], dict[str, Any], int]:
        candidate = Candidate(graph, Graph(graph), OnnxRuntime(), feeds)
        return dict(candidate.tapped), dict(candidate.isolated(values)), len(candidate._portions)

    whole, isolated, one = runs()
    monkeypatch.setattr("layerdiff.portions.MANY", 9)
    monkeypatch.setattr("layerdiff.portions.FEW", 4)
    in_portions, isolated_in_portions, several = runs()
    assert (one, several > 2) == (1, True)
    np.testing.assert_equal(in_portions, whole)
    np.testing.assert_equal(isolated_in_portions, isolated)


def test_a_shelf_turns_axes_without_reading() -> None:
    keeper = Store(0)
    shelf = Shelf({"x": keeper.keep(np.arange(6000).reshape(2, 3, 1000)), "y": keeper.keep(np.array(1))})
    turned = shelf.turned({"x": (0, 2, 1), "y": (0, 1)})
    assert turned["x"].shape == (2, 1000, 3)
    held = turned.held("x")
    assert held is not None
    assert held.shape == (2, 1000, 3)
    np.testing.assert_array_equal(turned["x"], shelf["x"].transpose(0, 2, 1))
    assert turned["y"] == 1


@pytest.mark.parametrize(
    ("text", "size"), [("2GB", 2 * 10**9), ("1.5 GiB", 3 << 29), ("300m", 3 * 10**8), ("500000000", 5 * 10**8)]
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert memory.parsed(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1", "2 potatoes", "1e9", "2GBs"])
def test_other_sizes_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(layerdiff.InputError, match=r"wanted a size such as 2GB"):
        memory.parsed(text)


@pytest.mark.parametrize("limit", [0, -5, 1000, "2GB", 1.5, True])
def test_a_limit_that_is_none_is_refused(limit: Any, trace: Callable[..., Report]) -> None:
    with pytest.raises(layerdiff.InputError, match=r"memory_limit: wanted a number of bytes, at least"):
        trace(None, None, None, memory_limit=limit)


def test_the_default_limit_is_half_of_what_is_free() -> None:
    assert 0 < memory.limit_bytes(None) <= memory.free_bytes() * 0.75
    assert memory.limit_bytes(1 << 30) == 1 << 30
