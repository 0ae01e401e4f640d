"""An ONNX model as the candidate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerdiff.candidate import Candidate
from layerdiff.checking import walking
from layerdiff.graph import Graph, load
from layerdiff.samples import feeds_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    import onnx

    from layerdiff.backends import Backend
    from layerdiff.samples import Sample
    from layerdiff.store import Store

    Array = np.ndarray[Any, Any]


class OnnxCandidate:
    """A graph and the runtime it runs on."""

    kind = "ONNX"

    def __init__(self, source: str | Path | onnx.ModelProto, backend: Backend, store: Store | None = None) -> None:
        self.source = source
        self.label = Path(source).name if isinstance(source, (str, Path)) else "ModelProto"
        with walking(self.label):
            self._graph = Graph(load(source))
        self.backend = backend
        self._store = store

    def fed(self, sample: Sample, feeds: Mapping[str, Array]) -> Candidate:
        """The candidate with one sample, its control flow laid flat."""
        del sample
        fed = feeds_for(self._graph, feeds)
        with walking(self.label):
            return Candidate(self.source, self._graph.taking(fed), self.backend, fed, store=self._store).flat()
