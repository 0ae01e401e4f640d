"""reproduce(): cut the accused stretch out on both sides, write it down, and run what was written."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from layerdiff.errors import BackendError, InputError, PatchError, ReproduceError
from layerdiff.files import place
from layerdiff.limits import allowances
from layerdiff.model import Kind
from layerdiff.repair.setting import setting
from layerdiff.reproduce.code import code_of, torch_dtype
from layerdiff.reproduce.readme import readme
from layerdiff.reproduce.script import script

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from layerdiff.live import Case, Live, Region
    from layerdiff.repair.setting import Setting

    Array = np.ndarray[Any, Any]

FILES = ("README.md", "reproduce.py", "reference.py", "model.onnx", "inputs.npz", "expected.npz", "weights.npz")
_TIMEOUT_S = 600


def reproduce(report: Any, folder: str | Path, which: int = 0) -> Path:
    """The folder of one divergence's case; `Report.reproduce` documents it."""
    target = Path(folder)
    case = _case(report, target, which)
    live: Live = report.live
    at = setting(live, live.sample, "the traced input")
    problems = []
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as name:
        draft = Path(name)
        for region in _regions(case):
            try:
                said = _written(draft, case, (region, at))
            except (ReproduceError, BackendError, PatchError, KeyError) as error:
                problems.append(str(error))
                continue
            model = onnx.load_model(draft / "model.onnx")
            text = readme(report, case, (at.reference, region, model), said)
            (draft / "README.md").write_text(text, encoding="utf-8")
            target.mkdir(exist_ok=True)
            for file in FILES:
                place(draft / file, target / file)
            return target
    reasons = "; ".join(dict.fromkeys(problems)) or "the origin has neither nodes nor operators"
    raise ReproduceError(f"{case.divergence.layer or '(root)'} cannot be cut out of the model: {reasons}")


def _case(report: Any, target: Path, which: int) -> Case:
    live: Live | None = report.live
    if live is None:
        raise ReproduceError(
            "this report was loaded or copied, and has neither the model nor the file any more; "
            'trace again: layerdiff.trace(model, "model.onnx", inputs).reproduce("folder")'
        )
    if not live.cases:
        why = "the file agrees with the model" if report.network_agrees else "no single layer is accused"
        raise ReproduceError(f"nothing to reproduce: {why}")
    if not 0 <= which < len(live.cases):
        raise ReproduceError(f"which={which}: the report has {len(live.cases)} divergences, numbered from 0")
    if not target.parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / FILES[1]).is_file())):
        raise InputError(f"{target}: exists, and holds something else than a reproduction; give another folder")
    return live.cases[which]


def _regions(case: Case) -> Iterator[Region]:
    """What to cut out, smallest first: the accused nodes, else all from right values to the wrong tensor."""
    accused = case.accused
    alone = case.divergence.kind is not Kind.DROPPED and accused.nodes and case.edges is None
    if alone and all(value is not None for _, value in accused.feeds):
        yield accused
    if case.judged is not None:
        yield case.judged


def _written(draft: Path, case: Case, cut: tuple[Region, Setting]) -> str:
    """What reproduce.py says of the case in a folder, after everything was written there.

    Raises
    ------
    ReproduceError
        It does not run, or does not show the difference.

    """
    region, at = cut
    reference = at.reference
    inputs = region.inputs if region.sites else (region.value,)
    code = code_of(reference, region.sites, inputs, region.value)
    feeds = at.feeds(region)
    model = _typed(at.cut(region, feeds), at.outcome(region, ()))
    expected = reference.values[region.value].array
    if expected is None:
        raise ReproduceError("the value at its end has no numbers")
    arrays: dict[str, Array] = {}
    names = [
        (_stored(arrays, _numbers(reference.values[v].array)), torch_dtype(reference.values[v].dtype)) for v in inputs
    ]
    fed = {tensor: _stored(arrays, array) for tensor, array in feeds.items() if _reads(model, tensor)}
    onnx.save_model(model, draft / "model.onnx")
    _save(draft / "inputs.npz", arrays)
    _save(draft / "weights.npz", code.weights)
    _save(draft / "expected.npz", {"expected": expected, "limit": allowances(expected, at.limits[region.value])})
    title = f"{case.divergence.layer or 'the root module'}: PyTorch and ONNX disagree"
    (draft / "reference.py").write_text(code.text, encoding="utf-8")
    (draft / "reproduce.py").write_text(script(title, names, fed), encoding="utf-8")
    return _ran(draft)


def _save(path: Path, arrays: Mapping[str, Array]) -> None:
    np.savez(path, **arrays)  # type: ignore[arg-type]  # numpy's stubs take every keyword for allow_pickle


def _numbers(array: Array | None) -> Array:
    if array is None:
        raise ReproduceError("an input of the stretch has no numbers")
    return array


def _stored(arrays: dict[str, Array], array: Array) -> str:
    """The key of an array; what both sides read is stored once."""
    for key, other in arrays.items():
        if other.dtype == array.dtype and np.array_equal(other, array, equal_nan=array.dtype.kind in "fc"):
            return key
    key = f"input_{len(arrays)}"
    arrays[key] = array
    return key


def _reads(model: onnx.ModelProto, tensor: str) -> bool:
    return any(port.name == tensor for port in model.graph.input)


def _typed(model: onnx.ModelProto, outcome: Array | None) -> onnx.ModelProto:
    """The model with only the inputs that are read, and with the type of its output."""
    graph = model.graph
    read = {name for node in graph.node for name in node.input} | {port.name for port in graph.output}
    inner = {n for node in graph.node for a in node.attribute for i in a.g.node for n in i.input}
    for port in [port for port in graph.input if port.name not in read | inner]:
        graph.input.remove(port)
    if outcome is not None:
        kind = helper.np_dtype_to_tensor_dtype(outcome.dtype)
        graph.output[0].CopyFrom(helper.make_tensor_value_info(graph.output[0].name, kind, outcome.shape))
    graph.name = "reproduction"
    return model


def _ran(draft: Path) -> str:
    """What reproduce.py prints; it must exit with 1."""
    command = [sys.executable, "-W", "ignore", "reproduce.py"]
    try:
        done = subprocess.run(  # noqa: S603  our own interpreter and the file that was just written
            command, cwd=draft, capture_output=True, text=True, encoding="utf-8", timeout=_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReproduceError(f"reproduce.py cannot be run here ({error})") from error
    if done.returncode == 0:
        raise ReproduceError("on its own it agrees: the difference needs what is around it")
    if done.returncode != 1 or "DIFFERS" not in done.stdout:
        raise ReproduceError(f"reproduce.py fails: {(done.stderr or done.stdout).strip().splitlines()[-1]}")
    return done.stdout.strip()
