"""A runtime in a process of its own: what happens to it is told, with the layer that it had reached."""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

import layerdiff
from layerdiff import BackendError, InputError, Isolation, ReferenceFailedError, RuntimeDiedError
from layerdiff.backends import Isolated, OnnxRuntime, Optimisation
from layerdiff.errors import Death
from layerdiff.reached import guilty_passes
from tests import runtimes
from tests.conftest import graph_of
from tests.runtimes import Fragile
from tests.zoo.weights import noise

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerdiff.report import Report

    Trace = Callable[..., Report]

node = helper.make_node
X = noise("isolation.x", 2, 3).numpy()


@pytest.fixture(scope="module")
def apart() -> Iterator[Isolated]:
    """One worker for the tests that do not kill it."""
    backend = Isolated(OnnxRuntime(threads=1))
    yield backend
    backend.rest()


def exponential() -> onnx.ModelProto:
    return graph_of([node("Exp", ["x"], ["y"])], {"x": ("a", "b")}, ["y"])


# What crosses.


@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3), (700, 800)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint64", "bool"])
def test_arrays_cross_as_they_are(apart: Isolated, dtype: str, shape: tuple[int, ...]) -> None:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    ports = [helper.make_tensor_value_info(name, kind, None) for name in "xy"]
    model = helper.make_model(
        helper.make_graph([node("Identity", ["x"], ["y"])], "g", ports[:1], ports[1:]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    given = (np.random.default_rng(0).random(shape) * 100).astype(dtype)
    found = apart.open(model, Optimisation.NONE).run({"x": given})["y"]
    assert found is not None
    assert (found.dtype, found.shape) == (given.dtype, given.shape)
    assert np.array_equal(found, given)


def test_many_large_outputs_cross_at_once(apart: Isolated) -> None:
    names = [f"y{i}" for i in range(150)]
    model = graph_of([node("Identity", ["x"], [name]) for name in names], {"x": ("a",)}, names)
    given = np.arange(300_000, dtype=np.float32)
    found = apart.open(model, Optimisation.NONE).run({"x": given})
    assert all(np.array_equal(found[name], given) for name in names)


def test_text_and_sequences_cross_too(apart: Isolated) -> None:
    words = np.array(["one", "zwei", "三"], dtype=object)
    text = helper.make_tensor_value_info("t", TensorProto.STRING, [3])
    same = helper.make_tensor_value_info("u", TensorProto.STRING, [3])
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.STRING, None)
    graph = helper.make_graph(
        [node("Identity", ["t"], ["u"]), node("SequenceConstruct", ["t"], ["s"])], "g", [text], [same, sequence]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = apart.open(model, Optimisation.NONE).run({"t": words})
    assert found["u"] is not None
    assert found["u"].tolist() == words.tolist()
    assert found["s"] is None


def test_the_worker_reads_a_file_itself(apart: Isolated, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(exponential(), tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    found = apart.open("model.onnx", Optimisation.NONE).run({"x": X})["y"]
    assert np.allclose(found, np.exp(X))


def test_an_error_of_the_runtime_is_the_same_here_and_there(apart: Isolated) -> None:
    model = graph_of([node("Nonsense", ["x"], ["y"])], {"x": ("a", "b")}, ["y"])
    texts = []
    for backend in (OnnxRuntime(), apart):
        with pytest.raises(BackendError) as caught:
            backend.open(model, Optimisation.NONE)
        texts.append(str(caught.value))
    assert "Nonsense" in texts[1]
    assert texts[0] == texts[1]
    assert type(caught.value) is BackendError


def test_the_optimised_graph_comes_back(apart: Isolated) -> None:
    model = graph_of([node("Identity", ["x"], ["i"]), node("Exp", ["i"], ["y"])], {"x": ("a", "b")}, ["y"])
    assert [n.op_type for n in apart.optimised(model, Optimisation.BASIC).graph.node] == ["Exp"]


def test_a_report_is_the_same_here_and_there(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor
) -> None:
    here, there = (trace(classifier, broken, image, isolate=way) for way in ("none", "process"))
    assert here.first_divergence.layer == "block.0"
    saved = [{k: v for k, v in report.to_dict().items() if k != "environment"} for report in (here, there)]
    assert saved[0] == saved[1]
    assert there.environment["isolate"] == "process, 300 s for a run"
    assert "isolate" not in here.environment


def test_a_finding_made_apart_can_be_acted_on(
    trace: Trace, classifier: nn.Module, broken: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    report = trace(classifier, broken, image, isolate="process")
    assert report.repair(tmp_path / "fixed.onnx").agrees
    assert report.reproduce(tmp_path / "case").is_dir()


def test_two_onnx_files_are_compared_apart(trace: Trace) -> None:
    assert trace(exponential(), exponential(), {"x": X}, isolate="process").agrees


# What goes wrong.

DEATHS = {
    "segfault": (runtimes.segfault, Death.CRASHED, "onnxruntime died of SIGSEGV"),
    "exit": (runtimes.ended, Death.CRASHED, "onnxruntime ended with code 3"),
    "kill": (runtimes.killed, Death.MEMORY, "onnxruntime was killed (SIGKILL), as Linux does when memory runs out"),
    "memory": (runtimes.devour, Death.MEMORY, "onnxruntime ran out of memory"),
    "hang": (runtimes.hang, Death.HUNG, "onnxruntime gave no answer within 1 s and was ended"),
}


@pytest.mark.parametrize("how", DEATHS)
def test_a_runtime_that_dies_is_a_finding_with_the_layer_it_had_reached(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, how: str
) -> None:
    what, kind, text = DEATHS[how]
    report = trace(
        classifier, healthy, image, backend=Fragile("Sigmoid", what), isolate=Isolation(1.0 if how == "hang" else 60.0)
    )
    assert not report.agrees
    assert report.first_divergence.layer == "block.1"
    assert report.first_divergence.onnx_ops == ("Sigmoid",)
    assert report.first_divergence.metrics is None
    assert report.verdict.startswith(f"block.1 [SiLU] is where the runtime died. {text}")
    assert "does that alone, given what the nodes before it computed" in report.verdict
    (cause,) = report.diagnoses
    assert cause.cause == ("unknown" if kind is Death.MEMORY else "runtime-kernel")
    assert cause.verified
    assert cause.evidence["how"] == str(kind)
    status = {row.layer: str(row.status) for row in report.layers}
    assert (status["norm"], status["block.0"], status["block.1"], status["head"]) == (
        "agrees",
        "agrees",
        "diverges",
        "unmatched",
    )


def test_the_report_on_a_death_has_all_views(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor, tmp_path: Path
) -> None:
    report = trace(classifier, healthy, image, backend=Fragile("Sigmoid", runtimes.ended), isolate="process")
    again = layerdiff.load(report.save(tmp_path / "report.json"))
    assert again == report
    assert again.verdict == report.verdict
    assert "is where the runtime died" in report.to_html(tmp_path / "report.html").read_text("utf-8")
    assert len(report.to_frame()) == len(report.layers)
    report.plot(tmp_path / "plot.png")
    report.write_pairs(tmp_path / "pairs.yaml")
    with pytest.raises(layerdiff.RepairError):
        report.repair(tmp_path / "fixed.onnx")


def test_a_runtime_that_dies_of_a_first_node_has_no_layer_before(trace: Trace) -> None:
    class Exp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.exp(x)

    report = trace(Exp(), exponential(), torch.from_numpy(X), backend=Fragile("Exp", runtimes.ended), isolate="process")
    assert report.first_divergence.layer == ""
    assert report.diagnoses[0].evidence["tensors_computed_before"] == 0


def test_a_death_that_takes_several_nodes_is_told_as_that(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    backend = Fragile("Conv", runtimes.ended, count=2)
    report = trace(classifier, healthy, image, backend=backend, isolate="process")
    assert report.first_divergence.layer == "block.0"
    assert "No node does that alone; the graph up to the Conv node" in report.verdict
    assert not report.diagnoses[0].verified


def test_a_death_by_an_optimisation_names_the_pass(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    backend = Fragile("Conv", runtimes.ended, only=Optimisation.AS_SHIPPED)
    report = trace(classifier, healthy, image, backend=backend, isolate="process")
    (cause,) = report.diagnoses
    assert (cause.cause, cause.verified) == ("runtime-fusion", True)
    assert cause.evidence["passes"] == ["ConvActivationFusion"]
    assert "disabled_optimizers=['ConvActivationFusion']" in cause.remedy
    assert not report.agrees


def test_a_death_of_the_examined_run_only_is_a_warning(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    """The file that ships was run and agrees: that stands."""
    backend = Fragile("Sigmoid", runtimes.ended, only=Optimisation.NONE)
    report = trace(classifier, healthy, image, backend=backend, isolate="process")
    assert report.agrees
    assert report.divergences == ()
    assert report.warnings[0].startswith(
        "the model ran as it ships, but not while its layers were examined: onnxruntime"
    )


def test_a_reference_whose_runtime_dies_could_not_be_run(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerdiff.sides.open.OnnxRuntime", lambda **_: Fragile("Exp", runtimes.ended))
    with pytest.raises(ReferenceFailedError, match="the reference ModelProto cannot be run: onnxruntime ended with"):
        trace(exponential(), exponential(), {"x": X}, isolate="process")


def test_an_exception_that_is_not_ours_is_told_by_its_name() -> None:
    backend = Isolated(Fragile("Exp", runtimes.complain))
    session = backend.open(exponential(), Optimisation.NONE)
    with pytest.raises(BackendError, match="onnxruntime raised ZeroDivisionError: seven by nothing"):
        session.run({"x": X})
    backend.rest()


def test_what_a_runtime_prints_disturbs_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    backend = Isolated(Fragile("Exp", runtimes.scribble))
    assert np.allclose(backend.open(exponential(), Optimisation.NONE).run({"x": X})["y"], np.exp(X))
    backend.rest()
    assert capfd.readouterr() == ("", "")


def test_a_worker_that_is_killed_between_two_runs_is_replaced(apart: Isolated) -> None:
    session = apart.open(exponential(), Optimisation.NONE)
    first = apart.worker()._process
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    with pytest.raises(RuntimeDiedError, match="SIGKILL"):
        session.run({"x": X})
    assert np.allclose(session.run({"x": X})["y"], np.exp(X))
    assert apart.worker()._process.pid != first.pid


def test_an_interrupt_in_the_middle_of_a_run_leaves_no_answer_behind() -> None:
    backend = Isolated(Fragile("Exp", runtimes.hang))
    session = backend.open(exponential(), Optimisation.NONE)
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    with pytest.raises(KeyboardInterrupt):
        session.run({"x": X})
    healthy = graph_of([node("Neg", ["x"], ["y"])], {"x": ("a", "b")}, ["y"])
    assert np.array_equal(backend.open(healthy, Optimisation.NONE).run({"x": X})["y"], -X)
    backend.rest()


def test_a_worker_ends_with_the_process_that_started_it() -> None:
    code = """
    import os, signal
    from layerdiff.backends import Isolated
    from tests.runtimes import Fragile, hang
    from tests.test_isolation import X, exponential, Optimisation
    backend = Isolated(Fragile("Exp", hang))
    session = backend.open(exponential(), Optimisation.NONE)
    print(backend.worker()._process.pid, flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    session.run({"x": X})
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    worker = Path("/proc") / done.stdout.strip()
    until = time.monotonic() + 20
    while worker.exists() and "Z" not in worker.joinpath("stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.1)


def test_a_script_without_a_main_guard_can_trace_apart(tmp_path: Path) -> None:
    """Workers that import the main module again would run the whole script in each of them."""
    (tmp_path / "script.py").write_text(
        textwrap.dedent("""
        import layerdiff, torch
        from tests.test_isolation import exponential
        print("once")
        class Exp(torch.nn.Module):
            def forward(self, x):
                return x.exp()
        print(layerdiff.trace(Exp(), exponential(), torch.ones(2, 3), isolate="process", progress=False).agrees)
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(
        [sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.stdout == "once\nTrue\n", done.stderr


# Real deaths of ONNX Runtime.


def test_an_allocation_of_terabytes_is_told_with_its_layer(
    trace: Trace, classifier: nn.Module, healthy: onnx.ModelProto, image: Tensor
) -> None:
    report = trace(classifier, inflated(healthy), image, isolate="process")
    assert report.first_divergence.onnx_ops == ("Expand",)
    assert report.first_divergence.layer == "block.1"
    assert report.diagnoses[0].evidence["how"] == "out of memory"
    assert "onnxruntime" in report.verdict
    assert "allocate memory" in report.verdict


def inflated(healthy: onnx.ModelProto) -> onnx.ModelProto:
    """The classifier with its last activation repeated a hundred million times, and summed."""
    proto = onnx.ModelProto()
    proto.CopyFrom(healthy)
    graph = proto.graph
    at, mul = next((i, n) for i, n in enumerate(graph.node) if n.op_type == "Mul")
    huge = np.array([10_000, 10_000, 2, 8, 10, 10], np.int64)
    graph.initializer.append(numpy_helper.from_array(huge, "huge"))
    graph.initializer.append(numpy_helper.from_array(np.array([0, 1], np.int64), "outer"))
    small = mul.output[0]
    mul.output[0] = "before"
    graph.node.insert(at + 1, node("Expand", ["before", "huge"], ["expanded"], name="/block/block.1/Expand"))
    graph.node.insert(at + 2, node("ReduceSum", ["expanded", "outer"], [small], keepdims=0))
    return proto


def test_a_loop_without_an_end_is_told(trace: Trace) -> None:
    body = helper.make_graph(
        [node("Identity", ["going"], ["on"]), node("Sin", ["v"], ["w"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("v", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("w", TensorProto.FLOAT, None),
        ],
    )
    nodes = [node("Exp", ["x"], ["e"]), node("Loop", ["trips", "true", "e"], ["y"], body=body, name="/loop/Loop")]
    constants = {"trips": np.int64(2**62), "true": np.bool_(True)}
    model = graph_of(nodes, {"x": (2, 3)}, ["y"], constants)

    class Sines(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.sin(torch.exp(x))

    report = trace(Sines(), model, torch.from_numpy(X), isolate=Isolation(time_limit_seconds=1.0))
    assert report.first_divergence.onnx_ops == ("Loop",)
    assert report.diagnoses[0].evidence["how"] == "hung"
    assert report.diagnoses[0].evidence["tensors_computed_before"] == 1
    assert "--time-limit" in report.verdict


# Options.


@pytest.mark.parametrize("isolate", ["thread", None, True, 3])
def test_another_way_to_isolate_is_refused(trace: Trace, isolate: Any) -> None:
    with pytest.raises(InputError, match='isolate: wanted "none", "process" or an Isolation'):
        trace(nn.Identity(), exponential(), torch.from_numpy(X), isolate=isolate)


@pytest.mark.parametrize(
    "limits", [{"time_limit_seconds": 0}, {"time_limit_seconds": float("nan")}, {"memory_limit_bytes": -1}]
)
def test_limits_that_nothing_can_keep_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(limits))):
        Isolation(**limits)


def test_a_backend_that_cannot_be_sent_is_refused_with_the_reason() -> None:
    class Local(OnnxRuntime):
        pass

    with pytest.raises(InputError, match="the backend onnxruntime cannot be sent to a process"):
        Isolated(Local())


def test_a_backend_that_a_new_process_cannot_import_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_runtime.py").write_text(
        "from layerdiff.backends import OnnxRuntime\nclass Own(OnnxRuntime):\n    pass\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        own = importlib.import_module("own_runtime").Own()
    backend = Isolated(own)
    with pytest.raises(BackendError, match="No module named 'own_runtime' before it was ready"):
        backend.open(exponential(), Optimisation.NONE)


def test_the_error_can_be_pickled_with_what_it_says() -> None:
    again = pickle.loads(pickle.dumps(RuntimeDiedError("gone", Death.HUNG)))
    assert (str(again), again.how) == ("gone", Death.HUNG)


def test_no_pass_is_blamed_for_a_death_that_does_not_happen_again() -> None:
    """As when the system ends a process for want of memory that others took."""
    asked = []
    lived = SimpleNamespace(passes=("FuseAll",), shipped_without=lambda passes: asked.append(tuple(passes)))
    assert guilty_passes(lived) == ()
    assert asked == [()]
