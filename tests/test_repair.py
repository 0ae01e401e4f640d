"""Corrected files: they agree for every input, the traced file stays, and what cannot be corrected is said."""

from __future__ import annotations

import gc
import pickle
import signal
import subprocess
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn

import layerdiff
from layerdiff.align import Alignment
from layerdiff.errors import InputError, RepairError
from layerdiff.model import Reference
from layerdiff.patch import SetAttribute, SetConstant, Splice
from layerdiff.repair.draw import cut_short, dynamic_axes, redrawn, resized
from layerdiff.repair.replacement import Size, generalised
from layerdiff.samples import Sample
from tests.conftest import graph_of, run, with_initializer
from tests.zoo.control_flow import CONTROL_FLOW_MODELS
from tests.zoo.control_flow import export as export_with_flow
from tests.zoo.exports import Exporter, Treatment, export, treat
from tests.zoo.weights import fill, noise

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report

    Trace = Callable[..., Report]


class Tokens(nn.Module):
    """Patches, attention with two heads, a residual join: sizes are everywhere in its reshapes."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 4, 4)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch(image).flatten(2).transpose(1, 2)
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        y = (torch.softmax(q @ k.transpose(-1, -2) * 0.3, -1) @ v).transpose(1, 2).reshape(b, n, c)
        return (x + torch.relu(self.out(y))).mean(1)


@pytest.fixture(scope="module")
def tokens() -> nn.Module:
    return fill(Tokens()).eval()


@pytest.fixture(scope="module")
def dynamic(tokens: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    """An export with an open batch and open sizes of the image."""
    path = tmp_path_factory.mktemp("dynamic") / "model.onnx"
    sizes = {"image": {0: "batch", 2: "height", 3: "width"}}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the TorchScript exporter announces its end, and traces sizes
        torch.onnx.export(
            tokens, (picture(),), str(path), dynamo=False, opset_version=17, input_names=["image"], dynamic_axes=sizes
        )
    return onnx.load(path)


def picture(*shape: int) -> Tensor:
    return noise("tokens.image", *(shape or (2, 3, 16, 16)))


def changed(proto: onnx.ModelProto, change: Callable[[onnx.GraphProto], None]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    change(copy.graph)
    return copy


def node(graph: onnx.GraphProto, op: str, number: int = 0) -> onnx.NodeProto:
    return [n for n in graph.node if n.op_type == op][number]


def drop(op: str, number: int = 0) -> Callable[[onnx.GraphProto], None]:
    """Takes a node out of a graph: its readers read what it read."""

    def change(graph: onnx.GraphProto) -> None:
        gone = node(graph, op, number)
        source, target = gone.input[0], gone.output[0]
        graph.node.remove(gone)
        for reader in graph.node:
            reader.input[:] = [source if name == target else name for name in reader.input]

    return change


def set_attribute(op: str, name: str, value: Any, number: int = 0) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        found = node(graph, op, number)
        kept = [a for a in found.attribute if a.name != name]
        del found.attribute[:]
        found.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def swap_operands(op: str) -> Callable[[onnx.GraphProto], None]:
    def change(graph: onnx.GraphProto) -> None:
        found = node(graph, op)
        found.input[:] = list(found.input)[::-1]

    return change


def quantise_behind(op: str) -> Callable[[onnx.GraphProto], None]:
    """Puts a quantiser with far too small a range behind a node."""

    def change(graph: onnx.GraphProto) -> None:
        tensor = node(graph, op).output[0]
        for reader in graph.node:
            reader.input[:] = ["dequantised" if name == tensor else name for name in reader.input]
        graph.initializer.append(numpy_helper.from_array(np.float32(0.001), "step"))
        graph.initializer.append(numpy_helper.from_array(np.uint8(0), "zero"))
        at = list(graph.node).index(node(graph, op)) + 1
        graph.node.insert(at, helper.make_node("QuantizeLinear", [tensor, "step", "zero"], ["quantised"]))
        graph.node.insert(at + 1, helper.make_node("DequantizeLinear", ["quantised", "step", "zero"], ["dequantised"]))

    return change


class Signed(nn.Module):
    """A difference and a padding: operands and attributes that can be wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(3, 6, 3, padding=1)
        self.act = nn.LeakyReLU(0.2)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.act(self.first(image) - self.second(image))
        return torch.softmax(self.head(x.mean((2, 3))), 1)


@pytest.fixture(scope="module")
def signed() -> tuple[nn.Module, onnx.ModelProto]:
    model = fill(Signed()).eval()
    return model, export(model, (small(),), Exporter.TORCHSCRIPT)


def small(*shape: int) -> Tensor:
    return noise("signed.image", *(shape or (2, 3, 8, 8)))


FAULTS = {
    "weights": lambda p: with_initializer(p, "first.weight", lambda w: w * 1.25),
    "stale bias": lambda p: with_initializer(p, "head.bias", lambda b: b * 2 + np.arange(4, dtype=np.float32)),
    "attribute": lambda p: changed(p, set_attribute("LeakyRelu", "alpha", 0.01)),
    "axis": lambda p: changed(p, set_attribute("Softmax", "axis", 0)),
    "dropped operator": lambda p: changed(p, drop("LeakyRelu")),
    "swapped operands": lambda p: changed(p, swap_operands("Sub")),
    "inserted quantiser": lambda p: changed(p, quantise_behind("LeakyRelu")),
    "two faults": lambda p: with_initializer(
        changed(p, set_attribute("Softmax", "axis", 0)), "second.weight", lambda w: w[::-1]
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_corrected_file_agrees_and_the_traced_one_stays(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto], name: str
) -> None:
    model, healthy = signed
    bad, fixed = tmp_path / "bad.onnx", tmp_path / "fixed.onnx"
    onnx.save(FAULTS[name](healthy), bad)
    before = bad.read_bytes()
    report = trace(model, bad, small())
    again = report.repair(fixed)
    assert not report.agrees
    assert again.agrees
    assert again.environment["candidate"] == "fixed.onnx"
    assert again.repaired.left == ()
    assert [d.layer for d in again.repaired.corrected] == [d.layer for d in report.divergences]
    assert again.repaired.checked == ("the traced input", "another input of the same shape")
    assert bad.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.onnx", "fixed.onnx"]
    onnx.checker.check_model(str(fixed), full_check=True)
    assert trace(model, fixed, small(2, 3, 8, 8) * 0.7 - 0.1).agrees
    assert len({n.name for n in onnx.load(fixed).graph.node}) == len(onnx.load(fixed).graph.node)


def test_there_is_nothing_to_repair_in_a_good_file(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    report = trace(model, healthy, small())
    with pytest.raises(RepairError, match="nothing to repair: the file agrees"):
        report.repair(tmp_path / "fixed.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("op", "number"),
    [("Relu", 0), ("Softmax", 0), ("Transpose", -1)],
    ids=["activation", "softmax", "transpose before a reshape"],
)
def test_a_repair_holds_for_every_size_that_the_file_allows(
    trace: Trace, tmp_path: Path, tokens: nn.Module, dynamic: onnx.ModelProto, op: str, number: int
) -> None:
    report = trace(tokens, changed(dynamic, drop(op, number)), picture())
    again = report.repair(tmp_path / "fixed.onnx")
    assert again.agrees
    assert [text.split(" (")[0] for text in again.repaired.checked[2:]] == ["other sizes", "other sizes"]
    for shape in ((1, 3, 16, 16), (5, 3, 24, 40)):
        assert trace(tokens, tmp_path / "fixed.onnx", picture(*shape)).agrees
        assert not trace(tokens, changed(dynamic, drop(op, number)), picture(*shape)).agrees


def test_what_fits_one_size_only_is_refused(
    trace: Trace, tmp_path: Path, tokens: nn.Module, dynamic: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stretch with its sizes baked in cures the traced input; nothing better is at hand here."""
    monkeypatch.setattr("layerdiff.repair.replacement.generalised", lambda *_: None)
    report = trace(tokens, changed(dynamic, drop("Transpose", -1)), picture())
    assert report.diagnoses[0].verified
    with pytest.raises(RepairError, match=r"wrong with other sizes \(2 → 3.*Instead: torch\.onnx\.export"):
        report.repair(tmp_path / "fixed.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_change_that_fits_one_input_only_is_not_used(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A constant with the very numbers that this input gives passes the trace's own proof, and no other."""
    from dataclasses import replace

    model, healthy = signed
    report = trace(model, FAULTS["attribute"](healthy), small())
    (case,) = report.live.cases
    with torch.no_grad():
        right = model.act(model.first(small()) - model.second(small())).numpy()
    add = case.patch[0].node
    learnt = graph_of(
        [helper.make_node("Identity", ["numbers"], ["y"])], {"x": (2, 6, 8, 8)}, ["y"], {"numbers": right}
    )
    patch = (Splice(add, learnt, (("x", next(n for n, _ in case.judged.feeds)),)),)
    fitted = replace(report, live=replace(report.live, cases=(replace(case, patch=patch),)))
    again = fitted.repair(tmp_path / "fixed.onnx")  # the stretch is lowered afresh instead
    assert again.agrees
    assert not any(t.dims == [2, 6, 8, 8] for t in onnx.load(tmp_path / "fixed.onnx").graph.initializer)
    monkeypatch.setattr("layerdiff.repair.verdicts.replacements", lambda *_: ())
    with pytest.raises(RepairError, match="wrong with another input of the same shape; a repair that fits one input"):
        fitted.repair(tmp_path / "other.onnx")


def test_weights_outside_the_file_stay_outside(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    bad = tmp_path / "bad.onnx"
    onnx.save(FAULTS["weights"](healthy), bad, save_as_external_data=True, location="bad.bin", size_threshold=0)
    before = bad.read_bytes(), (tmp_path / "bad.bin").read_bytes()
    out = tmp_path / "out"
    out.mkdir()
    assert trace(model, bad, small()).repair(out / "fixed.onnx").agrees
    assert (bad.read_bytes(), (tmp_path / "bad.bin").read_bytes()) == before
    assert sorted(p.name for p in out.iterdir()) == ["fixed.onnx", "fixed.onnx.data"]
    bare = onnx.load(out / "fixed.onnx", load_external_data=False)
    outside = {e.value for t in bare.graph.initializer for e in t.external_data if e.key == "location"}
    assert outside == {"fixed.onnx.data"}
    assert trace(model, bad, small()).repair(out / "fixed.onnx").agrees  # again: the first data file is not overwritten
    assert (out / "fixed.onnx.2.data").is_file()
    assert trace(model, out / "fixed.onnx", small()).agrees


def test_fused_operators_are_taken_apart_where_the_change_is_inside(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    plain = fill(nn.Sequential(nn.Conv2d(3, 6, 3), nn.LeakyReLU(0.2), nn.Conv2d(6, 4, 3))).eval()
    fused = treat(export(plain, (small(),), Exporter.TORCHSCRIPT), Treatment.ORT_EXTENDED)
    assert "FusedConv" in {n.op_type for n in fused.graph.node}

    def wrong_slope(graph: onnx.GraphProto) -> None:
        set_attribute("FusedConv", "activation_params", [0.5])(graph)

    again = trace(plain, changed(fused, wrong_slope), small()).repair(tmp_path / "fixed.onnx")
    assert again.agrees
    assert any("taken apart" in note for note in again.repaired.notes)
    outside = trace(model, treat(FAULTS["axis"](healthy), Treatment.ORT_EXTENDED), small())
    kept = outside.repair(tmp_path / "kept.onnx")
    assert kept.agrees
    assert kept.repaired.notes == ()


def test_a_change_inside_a_function_inlines_it(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    opsets = [helper.make_opsetid("", 17)]
    scaled = helper.make_function(
        "local", "Act", ["X"], ["Y"], [helper.make_node("LeakyRelu", ["X"], ["Y"], alpha=0.01)], opsets
    )

    def use(graph: onnx.GraphProto) -> None:
        act = node(graph, "LeakyRelu")
        act.op_type, act.domain = "Act", "local"
        del act.attribute[:]

    bad = changed(healthy, use)
    bad.functions.append(scaled)
    bad.opset_import.append(helper.make_opsetid("local", 1))
    again = trace(model, bad, small()).repair(tmp_path / "fixed.onnx")
    assert again.agrees
    assert again.repaired.notes == ("its local functions were inlined",)


def flows(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """Every branch and body in a graph, at any depth."""
    own = [a.g for n in graph.node for a in n.attribute if a.type == onnx.AttributeProto.GRAPH]
    return own + [inner for body in own for inner in flows(body)]


@pytest.mark.parametrize(
    ("name", "exporter"), [(n, e) for n, flow in CONTROL_FLOW_MODELS.items() for e in flow.exporters]
)
@pytest.mark.parametrize("fault", ["operator", "weight"])
def test_a_node_inside_control_flow_is_corrected_there(
    trace: Trace, tmp_path: Path, name: str, exporter: Exporter, fault: str
) -> None:
    flow = CONTROL_FLOW_MODELS[name]
    sample = flow.build()
    model, inputs = sample.model, sample.inputs
    proto = export_with_flow(model, inputs, exporter)
    for body in flows(proto.graph):
        for inner in body.node:
            if fault == "operator" and inner.op_type == "Relu":
                inner.op_type = "Elu"
    if fault == "weight":
        stored = [t for g in (proto.graph, *flows(proto.graph)) for t in g.initializer]
        stored += [
            a.t for g in (proto.graph, *flows(proto.graph)) for n in g.node for a in n.attribute if a.HasField("t")
        ]
        weight = next(t for t in stored if list(t.dims) == [8, 8, 3, 3])
        weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.25), weight.name))
    report = trace(model, proto, inputs)
    assert not report.agrees
    again = report.repair(tmp_path / "fixed.onnx")
    assert again.agrees
    fixed = onnx.load(tmp_path / "fixed.onnx")
    assert len(flows(fixed.graph)) == len(flows(proto.graph))
    assert any("branches" in note for note in again.repaired.notes) == (name == "switch")


def test_names_that_the_runtime_left_do_not_clash_with_those_it_makes(trace: Trace, tmp_path: Path) -> None:
    """HardSwish is expanded under fixed names; a file that was optimised before has them already."""
    model = fill(nn.Sequential(nn.Conv2d(3, 6, 3), nn.Hardswish(), nn.Conv2d(6, 4, 3), nn.Hardswish())).eval()
    proto = treat(export(model, (small(),), Exporter.TORCHSCRIPT), Treatment.ORT_BASIC)
    assert any(name.startswith("_inlfunc_HardSwish") for n in proto.graph.node for name in n.output)
    last = proto.graph.node[-1]
    convolution = [n for n in proto.graph.node if n.op_type == "Conv"][-1].output[0]
    last.op_type = "Relu"
    last.input[:] = [convolution]
    assert trace(model, proto, small()).repair(tmp_path / "fixed.onnx").agrees


def test_initializers_listed_as_inputs_leave_no_input_behind(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed

    def list_all(graph: onnx.GraphProto) -> None:
        for tensor in graph.initializer:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))

    again = trace(model, changed(FAULTS["weights"](healthy), list_all), small()).repair(tmp_path / "fixed.onnx")
    assert again.agrees
    graph = onnx.load(tmp_path / "fixed.onnx").graph
    assert len({p.name for p in graph.input} - {t.name for t in graph.initializer}) == 1


def test_what_is_left_is_told_and_the_rest_is_corrected(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    from dataclasses import replace

    model, healthy = signed
    report = trace(model, FAULTS["two faults"](healthy), small())
    first, second = report.live.cases
    unknown = replace(first, patch=None, diagnosis=replace(first.diagnosis, cause="unknown", remedy=""))
    partial = replace(report, live=replace(report.live, cases=(unknown, second)))
    again = partial.repair(tmp_path / "fixed.onnx")
    assert not again.agrees
    assert [d.layer for d in again.divergences] == [first.divergence.layer]
    (left,) = again.repaired.left
    assert left.layer == first.divergence.layer
    assert "no change of the graph was found" in left.reason
    assert left.remedy.startswith("torch.onnx.export(")
    assert "left as it was: second" in str(again)


def test_what_is_no_fault_of_the_graph_is_refused_with_its_remedy(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    from dataclasses import replace

    model, healthy = signed
    report = trace(model, FAULTS["axis"](healthy), small())
    without = replace(report, live=replace(report.live, cases=()))
    remedy = "onnxruntime.InferenceSession(path, disabled_optimizers=['PadFusion'])"
    fusion = replace(report.diagnoses[0], cause="runtime-fusion", summary="The graph is right.", remedy=remedy)
    with pytest.raises(RepairError, match=r"The graph is right\. Instead: .*disabled_optimizers=\['PadFusion'\]"):
        replace(without, diagnoses=(fusion,)).repair(tmp_path / "fixed.onnx")
    rounding = layerdiff.Diffuse("float16", (layerdiff.RoundedLayer("head", 0, "Linear", "float16", 1e-3, None),))
    with pytest.raises(RepairError, match=r"1 layers only round to float16.*model\.float\(\)\.eval\(\)"):
        replace(without, diagnoses=(), diffuse=rounding).repair(tmp_path / "fixed.onnx")


def test_a_loaded_or_copied_report_says_what_to_do(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    report = trace(model, FAULTS["axis"](healthy), small())
    report.save(tmp_path / "report.json")
    for copy in (layerdiff.load(tmp_path / "report.json"), pickle.loads(pickle.dumps(report)), deepcopy(report)):
        assert copy == report
        with pytest.raises(RepairError, match=r'trace again: layerdiff\.trace\(model, "model.onnx", inputs\)'):
            copy.repair(tmp_path / "fixed.onnx")
    again = report.repair(tmp_path / "fixed.onnx")
    again.save(tmp_path / "again.json")
    assert layerdiff.load(tmp_path / "again.json").repaired == again.repaired


def test_the_traced_file_and_missing_folders_are_refused(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto]
) -> None:
    model, healthy = signed
    bad = tmp_path / "bad.onnx"
    onnx.save(FAULTS["axis"](healthy), bad)
    report = trace(model, bad, small())
    with pytest.raises(RepairError, match="this is the traced file"):
        report.repair(bad)
    with pytest.raises(InputError, match="does not exist; make it first"):
        report.repair(tmp_path / "nowhere" / "fixed.onnx")
    with pytest.raises(InputError, match="is a folder"):
        report.repair(tmp_path)


def test_a_report_keeps_no_activations(trace: Trace, signed: tuple[nn.Module, onnx.ModelProto]) -> None:
    model, healthy = signed
    gc.collect()
    before = {id(o) for o in gc.get_objects() if type(o) in (Alignment, Reference)}  # of other tests
    report = trace(model, FAULTS["weights"](healthy), small())
    gc.collect()
    assert report.live is not None
    assert not [o for o in gc.get_objects() if type(o) in (Alignment, Reference) and id(o) not in before]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import onnx, torch
import layerdiff
from layerdiff.repair import write
from tests.test_repair import FAULTS, small, Signed
from tests.zoo.exports import Exporter, export
from tests.zoo.weights import fill

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

{at} = die
model = fill(Signed()).eval()
bad = FAULTS["weights"](export(model, (small(),), Exporter.TORCHSCRIPT))
onnx.save(bad, "bad.onnx", save_as_external_data=True, location="bad.bin", size_threshold=0)
layerdiff.trace(model, "bad.onnx", small(), progress=False).repair("fixed.onnx")
"""


@pytest.mark.parametrize("at", ["write.Draft.publish", "write._move_out", "write.Path.write_bytes"])
def test_a_kill_in_the_middle_leaves_the_file_that_was_there(
    pytestconfig: pytest.Config, tmp_path: Path, at: str
) -> None:
    (tmp_path / "fixed.onnx").write_bytes(b"what was there before")
    (tmp_path / "run.py").write_text(KILLED.format(root=str(pytestconfig.rootpath), at=at))
    done = subprocess.run([sys.executable, "-W", "ignore", "run.py"], cwd=tmp_path, timeout=120, check=False)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "fixed.onnx").read_bytes() == b"what was there before"
    assert not list(tmp_path.glob("fixed.onnx*.data"))


def test_an_exception_in_the_middle_leaves_nothing_behind(
    trace: Trace, tmp_path: Path, signed: tuple[nn.Module, onnx.ModelProto], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, healthy = signed
    report = trace(model, FAULTS["axis"](healthy), small())

    def fails(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("layerdiff.repair.write.Draft.publish", fails)
    with pytest.raises(OSError, match="disk full"):
        report.repair(tmp_path / "fixed.onnx")
    assert list(tmp_path.iterdir()) == []


def test_redrawn_samples_keep_shapes_types_and_ranges() -> None:
    sample = Sample(
        (torch.randn(2, 50),), {"ids": torch.arange(12).reshape(2, 6), "mask": torch.tensor([[True, False]])}
    )
    first, second = redrawn(sample)
    for other in (first, second):
        assert other.args[0].shape == (2, 50)
        assert other.args[0].dtype == torch.float32
        assert not torch.equal(other.args[0], sample.args[0])
        assert other.args[0].min() >= sample.args[0].min()
        assert other.args[0].max() <= sample.args[0].max()
    assert sorted(first.kwargs["ids"].reshape(-1).tolist()) == list(range(12))
    assert torch.equal(second.kwargs["ids"], sample.kwargs["ids"])
    mask = torch.where(torch.rand(4, 16) > 0.5, 0.0, -1e9)
    assert set(next(redrawn(Sample((mask,)))).args[0].unique().tolist()) == {0.0, -1e9}


def test_open_dimensions_of_one_name_change_together() -> None:
    add = helper.make_node("Add", ["a", "b"], ["y"])
    proto = graph_of([add], {"a": ("batch", 4), "b": ("batch", 4)}, ["y"])
    sample = Sample((torch.randn(2, 4), torch.randn(2, 4)))
    feeds = dict(zip("ab", (t.numpy() for t in sample.args), strict=True))
    (group,) = dynamic_axes(proto, sample, feeds)
    assert group == {0: [0], 1: [0]}
    assert [tuple(t.shape) for t in resized(sample, group, 5).args] == [(5, 4), (5, 4)]


def test_sizes_are_recovered_from_two_models() -> None:
    def model(shape: list[int], x: tuple[int, ...]) -> onnx.ModelProto:
        constants = {"shape": np.array(shape, np.int64)}
        return graph_of([helper.make_node("Reshape", ["x", "shape"], ["y"])], {"x": x}, ["y"], constants)

    sizes = [Size("x", 0, 2, 3), Size("x", 1, 6, 10), Size("x", 2, 4, 4)]
    found = generalised(model([2, 3, 8], (2, 6, 4)), model([3, 5, 8], (3, 10, 4)), sizes)
    assert found is not None
    free = graph_of([], {"x": ("a", "b", 4)}, [])
    found.graph.input[0].CopyFrom(free.graph.input[0])
    assert run(found, {"x": np.zeros((5, 14, 4), np.float32)})["y"].shape == (5, 7, 8)
    assert generalised(model([2, 3, 8], (2, 6, 4)), model([3, 77, 8], (3, 10, 4)), sizes) is None


def test_a_constant_keeps_its_rank() -> None:
    gather = helper.make_node("Gather", ["x", "index"], ["y"], axis=1)
    proto = graph_of([gather], {"x": (2, 3)}, ["y"], {"index": np.array(1, np.int64)})
    from layerdiff.patch import patched

    found = patched(proto, [SetConstant("y", 1, np.array(2, np.int64)), SetAttribute("y", "axis", 1)])
    assert run(found, {"x": np.arange(6, dtype=np.float32).reshape(2, 3)})["y"].tolist() == [2.0, 5.0]


class Repeated(nn.Module):
    """Two heads of keys, each for four heads of queries: by an Expand of five axes."""

    def __init__(self) -> None:
        super().__init__()
        self.keys, self.out = nn.Linear(12, 8), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads = self.keys(x).view(b, t, 2, 4).transpose(1, 2)
        heads = heads[:, :, None].expand(b, 2, 4, t, 4).reshape(b, 8, t, 4)
        return self.out(heads.transpose(1, 2).reshape(b, t, -1))


def test_a_tensor_that_is_read_in_another_layout_is_turned_back(trace: Trace, tmp_path: Path) -> None:
    """Also where the trace took its layout for one of the file's own."""
    model, x = fill(Repeated()), noise("repair.repeated", 2, 5, 12)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    node = next(n for n in proto.graph.node if n.op_type == "Expand")
    turn = helper.make_node("Transpose", ["heads"], [node.output[0]], perm=[0, 2, 1, 3, 4])
    node.output[0] = "heads"
    proto.graph.node.insert(list(proto.graph.node).index(node) + 1, turn)
    report = trace(model, proto, x)
    assert (report.diagnoses[0].cause, report.diagnoses[0].verified) == ("layout", True)
    assert report.repair(tmp_path / "fixed.onnx").agrees


class Rooted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return self.last(y / torch.sqrt(y.pow(2).mean(-1, keepdim=True) + 0.1))


def test_two_nodes_of_which_one_reads_a_constant_change_places(trace: Trace, tmp_path: Path) -> None:
    model, x = fill(Rooted()), noise("repair.rooted", 4, 8)
    proto = export(model, (x,), Exporter.TORCHSCRIPT)
    root = next(n for n in proto.graph.node if n.op_type == "Sqrt")
    add = next(n for n in proto.graph.node if root.input[0] in n.output)
    mean = next(name for name in add.input if "Mean" in name)
    epsilon = next(name for name in add.input if name != mean)
    add.CopyFrom(helper.make_node("Sqrt", [mean], list(add.output), name="root"))
    root.CopyFrom(helper.make_node("Add", [add.output[0], epsilon], list(root.output), name="add"))
    report = trace(model, proto, x)
    assert report.diagnoses[0].verified
    assert report.repair(tmp_path / "fixed.onnx").agrees


def test_a_file_that_would_be_no_nearer_to_the_model_is_not_written(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two faults that nearly undo each other only one can be corrected."""
    model, x = fill(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))), noise("repair.half", 4, 6)
    changed = deepcopy(model)
    with torch.no_grad():
        changed[0].weight.mul_(4.0)
        changed[0].bias.mul_(4.0)
        changed[2].weight.mul_(0.26)
    report = trace(model, export(changed, (x,), Exporter.TORCHSCRIPT), x)
    assert len(report.divergences) == 2
    first, second = report.live.cases
    object.__setattr__(report.live, "cases", (first, replace(second, patch=None)))
    with pytest.raises(RepairError, match=r"no nearer to the model's \(max-abs .* → .*\)"):
        report.repair(tmp_path / "fixed.onnx")
    assert not (tmp_path / "fixed.onnx").exists()


class Counted(nn.Module):
    """Positions are counted where a mask lets tokens in."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, mask: Tensor) -> Tensor:
        return self.out(torch.tanh(self.table((mask.cumsum(-1) - 1).clamp(min=0))))


def test_a_change_that_is_right_for_a_full_mask_only_is_no_repair(trace: Trace, tmp_path: Path) -> None:
    model, mask = fill(Counted()), torch.ones(2, 9, dtype=torch.int64)
    proto = export(model, (mask,), Exporter.TORCHSCRIPT)
    count = next(n for n in proto.graph.node if n.op_type == "CumSum")
    count.attribute.append(helper.make_attribute("exclusive", 1))
    report = trace(model, proto, mask)
    assert not report.agrees
    fixed = tmp_path / "fixed.onnx"
    try:
        report.repair(fixed)
    except RepairError as error:
        assert "a mask that takes something out" in str(error)  # noqa: PT017  either is right
        assert not fixed.exists()
    else:
        mask[:, 6:] = 0
        assert trace(model, fixed, mask).agrees


def test_masks_that_leave_all_in_are_cut_short() -> None:
    full, ids = torch.ones(2, 7, dtype=torch.bool), torch.tensor([[1, 2, 1, 1]])
    found = cut_short(Sample((full, ids, torch.ones(2, 4))))
    assert found is not None
    assert found.args[0].tolist() == [[True] * 5 + [False] * 2] * 2
    assert found.args[1].equal(ids)
    assert found.args[2].equal(torch.ones(2, 4))
    assert cut_short(Sample((ids, torch.ones(2, 4)))) is None


class Quantiser(nn.Module):
    """Gives the nearest entry of a codebook, and its number."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.codes, self.out = nn.Linear(8, 8), nn.Embedding(16, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z, codes = self.into(x), self.codes.weight
        nearest = (z.pow(2).sum(-1, keepdim=True) - 2 * z @ codes.T + codes.pow(2).sum(-1)).argmin(-1)
        return self.out(self.codes(nearest)), nearest


def test_a_file_is_not_written_whose_right_outputs_would_be_wrong(trace: Trace, tmp_path: Path) -> None:
    model, x = fill(Quantiser()).eval(), noise("repair.codes", 2, 5, 8)
    bad = deepcopy(model)
    bad.codes.weight.data = model.codes.weight.data.flip(0).clone()  # the same entries, under other numbers
    report = trace(model, export(bad, (x,), Exporter.TORCHSCRIPT), x)
    assert [output.agrees for output in report.outputs] == [True, False]
    target = tmp_path / "fixed.onnx"
    with pytest.raises(RepairError, match="outputs that are right would no longer be"):
        report.repair(target)
    assert not target.exists()


class GivesOutItsInside(nn.Module):
    """An output that the model itself goes on with, as hidden states are."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.head = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        inside = self.norm(self.up(x))
        return inside, self.head(torch.tanh(inside))


def test_a_layer_whose_output_is_also_read_inside_is_accused_once_and_corrected(trace: Trace, tmp_path: Path) -> None:
    model, x = fill(GivesOutItsInside()).eval(), noise("repair.inside", 4, 6)
    bad = deepcopy(model)
    bad.norm.eps = 0.1
    report = trace(model, export(bad, (x,), Exporter.TORCHSCRIPT), x)
    assert [d.layer for d in report.divergences] == ["norm"]
    assert report.repair(tmp_path / "fixed.onnx").agrees
