"""Which pass of a simplifier changed what a model computes: it runs again with passes turned off."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx

from layerdiff.alone import ALONE
from layerdiff.errors import InputError, LayerdiffError
from layerdiff.external import with_weights
from layerdiff.graph import load
from layerdiff.halving import smallest
from layerdiff.model import Diagnosis, Tolerance
from layerdiff.tracing import outputs_agree

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from layerdiff.backends import Isolation

_FOLDING, _SHAPES = "constant_folding", "shape_inference"


class Tool(str, Enum):
    """The simplifiers whose passes can be turned off one by one."""

    ONNXSIM = "onnxsim"
    ONNXSLIM = "onnxslim"


def guilty_passes(  # noqa: PLR0913  what trace() takes, and the tool
    before: str | Path | onnx.ModelProto,
    after: str | Path | onnx.ModelProto,
    inputs: Any,
    *,
    tool: Tool | str,
    layer: str = "",
    tolerance: Literal["auto"] | Tolerance = "auto",
    isolate: Literal["none", "process"] | Isolation = "none",
) -> Diagnosis | None:
    """The diagnosis that names the passes of a simplifier which changed the outputs; None where the two files agree.

    `before` is simplified again, first as `after` was made, then with passes turned off by halves until it agrees. The
    cause is verified where the tool's default run disagrees as `after` does and leaving out the named passes cures it.

    Raises
    ------
    InputError
        The tool is unknown or not installed, or a side is no ONNX model.

    """
    used = _opened(tool)
    for side, source in (("before", before), ("after", after)):
        if not isinstance(source, (str, Path, onnx.ModelProto)):
            raise InputError(f"{side}: wanted an ONNX file or ModelProto, got a {type(source).__name__}")

    def agrees(candidate: str | Path | onnx.ModelProto) -> bool:
        return outputs_agree(before, candidate, inputs, tolerance=tolerance, isolate=isolate)

    if agrees(after):
        return None
    model = with_weights(load(before))

    def cured(passes: Sequence[str]) -> bool:
        made = used.simplified(model, passes)
        try:
            return made is not None and agrees(made)
        except LayerdiffError:  # the tool made what no runtime takes
            return False

    name = f"{used.tool.value} {used.version}"
    if cured(()):
        text = f"{name}, as installed, makes a file that agrees: another version or other options made this one."
        return _diagnosis(used, layer, text, (), f"simplify again with {name}")
    passes = smallest(used.passes, cured)
    if not passes:
        text = f"{name} changes the outputs even with every pass turned off that can be."
        return _diagnosis(used, layer, text, (), f"use the file before {used.tool.value}, and report it")
    text = f"{name} changes what the model computes by its pass {', '.join(passes)}; without it the outputs agree."
    return _diagnosis(used, layer, text, passes, used.call(passes))


def _diagnosis(used: _Used, layer: str, text: str, passes: Sequence[str], remedy: str) -> Diagnosis:
    evidence = {"tool": used.tool.value, "version": used.version, "passes": list(passes)}
    return Diagnosis("simplifier", layer, text, evidence, remedy, verified=bool(passes))


@dataclass(frozen=True, slots=True)
class _Used:
    """An installed simplifier: its passes, and how to leave some out."""

    tool: Tool
    version: str
    passes: tuple[str, ...]
    options: Callable[[Sequence[str]], Mapping[str, Any]]
    run: Callable[..., Any]

    def simplified(self, model: onnx.ModelProto, skipped: Sequence[str]) -> onnx.ModelProto | None:
        """The model as the tool makes it without some passes; None where the tool fails."""
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        try:
            with _silent():
                made = self.run(copy, **self.options(skipped))
        except Exception:
            logging.getLogger("layerdiff").debug("%s failed without %s", self.tool.value, skipped, exc_info=True)
            return None
        found = made[0] if isinstance(made, tuple) else made
        return found if isinstance(found, onnx.ModelProto) else None

    def call(self, skipped: Sequence[str]) -> str:
        """How to call the tool so."""
        options = ", ".join(f"{name}={value!r}" for name, value in self.options(skipped).items())
        entry = "onnxsim.simplify" if self.tool is Tool.ONNXSIM else "onnxslim.slim"
        return f"{entry}(model, {options})"


def _opened(tool: Tool | str) -> _Used:
    try:
        wanted = Tool(tool)
    except ValueError:
        known = ", ".join(item.value for item in Tool)
        raise InputError(f"tool: wanted one of {known}, got {tool!r}") from None
    try:
        module: Any = import_module(wanted.value)
        number = version(wanted.value)
    except (ImportError, PackageNotFoundError) as error:
        raise InputError(f"tool: {wanted.value} is not installed; pip install {wanted.value}") from error
    return (_onnxsim if wanted is Tool.ONNXSIM else _onnxslim)(module, number)


def _onnxsim(module: Any, number: str) -> _Used:
    native = import_module("onnxsim.onnxsim_cpp2py_export")
    passes = (*native._list_optimizers(), _FOLDING, _SHAPES)  # noqa: SLF001  the only place that lists them

    def options(skipped: Sequence[str]) -> dict[str, Any]:
        named = [name for name in skipped if name not in (_FOLDING, _SHAPES)]
        found: dict[str, Any] = {"skipped_optimizers": named} if named else {}
        found |= {f"skip_{name}": True for name in (_FOLDING, _SHAPES) if name in skipped}
        return found

    return _Used(Tool.ONNXSIM, number, passes, options, module.simplify)


def _onnxslim(module: Any, number: str) -> _Used:
    patterns = tuple(import_module("onnxslim.core.pattern.registry").DEFAULT_FUSION_PATTERNS)
    stages = tuple(import_module("onnxslim.core.optimization").OptimizationSettings.keys())

    def options(skipped: Sequence[str]) -> dict[str, Any]:
        found = {
            "skip_fusion_patterns": [name for name in skipped if name in patterns],
            "skip_optimizations": [name for name in skipped if name in stages],
        }
        return {name: names for name, names in found.items() if names}

    # A stage is many passes: it is left out only where leaving out patterns does not cure.
    return _Used(Tool.ONNXSLIM, number, (*patterns, *(s for s in stages if s != "graph_fusion")), options, module.slim)


@contextlib.contextmanager
def _silent() -> Any:
    """Simplifiers print and warn."""
    with (
        ALONE,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
