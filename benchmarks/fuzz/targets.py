"""What is done with a mutated file, and how it may end: with a report, or with a LayerdiffError that says where."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum
from functools import cache
from typing import TYPE_CHECKING, Any

import onnx

import layerdiff
from benchmarks.fuzz import mutate, seeds
from layerdiff import LayerdiffError
from layerdiff.backends import Isolated, Isolation, OnnxRuntime
from layerdiff.checking import walking
from layerdiff.graph import Graph, load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PICTURES = 20  # a page with its picture is drawn of every so many reports


class Kind(str, Enum):
    """What is mutated, and how far it is taken."""

    GRAPH = "graph"  # a model is read and rewritten with all its tensors as outputs
    TRACE = "trace"  # a model is compared with the one that it was made from
    REPORT = "report"  # a report is loaded, and shown if that is possible


@cache
def _content(path: Path) -> bytes:
    return path.read_bytes()


@dataclass(frozen=True)
class Case:
    """A mutated file, always the same one for a number."""

    kind: Kind
    number: int

    def write(self, folder: Path) -> tuple[Path, Path]:
        """The mutated file and the seed that it was made from."""
        rng = random.Random(f"{self.kind.value} {self.number}")
        if self.kind is Kind.REPORT:
            known = seeds.reports()
            seed = rng.choice(known)
            texts = [_content(path).decode() for path in known]
            path = folder / "report.json"
            text = mutate.report_text(_content(seed).decode(), texts, rng)
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            return path, seed
        known = seeds.models()
        seed = rng.choice(known)
        path = folder / "model.onnx"
        path.write_bytes(mutate.model_bytes(_content(seed), [_content(other) for other in known], rng))
        return path, seed


class _Kept(Isolated):
    """A worker that serves many traces."""

    def rest(self) -> None:
        """Stay."""


class Target:
    """Does what is to be done with a case."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._backend: Isolated | None = None

    def run(self, case: Case) -> str:
        """How it ended: the name of the error, or what came out.

        Raises
        ------
        Exception
            Anything that is no LayerdiffError: a finding.

        """
        path, seed = case.write(self._folder)
        if case.kind is Kind.GRAPH:
            return ended(lambda: read_graph(path))
        if case.kind is Kind.TRACE:
            return ended(lambda: self._trace(path, seed))
        return ended(lambda: read_report(path, drawn=case.number % PICTURES == 0))

    def _trace(self, path: Path, seed: Path) -> str:
        if self._backend is None:
            limits = Isolation(time_limit_seconds=2.0, memory_limit_bytes=2 << 30)
            self._backend = _Kept(OnnxRuntime(threads=1), limits)
        given = seeds.feeds(onnx.load(seed))
        report = layerdiff.trace(seed, path, given, backend=self._backend, progress=False)
        if report.divergences and str(report.divergences[0].kind) == "died":
            return f"died: {report.diagnoses[0].evidence['how']}"
        return "agrees" if report.agrees else "diverges"


def ended(run: Callable[[], str]) -> str:
    """What came out, or the name of the LayerdiffError; one without a text is a finding like any other error."""
    try:
        return run()
    except LayerdiffError as error:
        if not str(error).strip():
            raise AssertionError(f"{type(error).__name__} without a text") from error
        return type(error).__name__


def read_graph(path: Path) -> str:
    """A model is read, and rewritten with its tensors as outputs."""
    with walking(path.name):
        graph = Graph(load(path))
    _ = graph.live_nodes, graph.consumers, [graph.is_live(port.name) for port in graph.outputs]
    for name in graph.initializers:
        graph.initializer(name)
    graph.rewritten(list(graph.computed)[:64])
    return "read"


def read_report(path: Path, *, drawn: bool) -> str:
    """A report is loaded, shown, and written beside its file."""
    report: Any = layerdiff.load(path)
    str(report)
    report.to_frame()
    report.to_dict()
    report.write_pairs(path.with_name("pairs.yaml"))
    if drawn:
        report.to_html(path.with_name("report.html"))
    return "loaded"
