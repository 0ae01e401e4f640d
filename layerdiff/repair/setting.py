"""One sample on both sides, on which a change can be judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.align.values import same_numbers
from layerdiff.errors import BackendError, LayerdiffError, PatchError
from layerdiff.formats import rounds_to
from layerdiff.limits import limits_for
from layerdiff.patch import patched, within

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import onnx

    from layerdiff.candidate import Candidate
    from layerdiff.limits import Limit
    from layerdiff.live import Live, Region, Source
    from layerdiff.model import Noise, Reference
    from layerdiff.patch import Change
    from layerdiff.runner import Runner
    from layerdiff.samples import Sample

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Setting:
    """A sample, what the reference makes of it, and the graph that was examined, fed with it."""

    name: str
    sample: Sample
    runner: Runner
    reference: Reference
    floor: Mapping[int, Noise]
    candidate: Candidate

    @cached_property
    def limits(self) -> dict[int, Limit]:
        """What is allowed for every reference value."""
        return limits_for(self.reference, self.floor, self.runner.tolerance)

    def feeds(self, region: Region) -> dict[str, Array]:
        """What a region starts from: the reference's values, in the shapes, types and layouts of the tensors."""
        actual = self.candidate.named([name for name, _ in region.feeds])
        found = {name: self._expected(value, actual[name]) for name, value in region.feeds if name in actual}
        return {name: self.candidate.as_in_file(name, array) for name, array in found.items()}

    def _expected(self, value: int | None, actual: Array) -> Array:
        array = None if value is None else self.reference.values[value].array
        if array is None or array.size != actual.size:
            return actual
        return np.ascontiguousarray(array).reshape(actual.shape).astype(actual.dtype, copy=False)

    def cut(self, region: Region, feeds: Mapping[str, Array]) -> onnx.ModelProto:
        """The nodes of a region as a model of their own."""
        producer = self.candidate.graph.producer
        return self.candidate.cut(region.tensor, [producer[name] for name in region.nodes], feeds)

    def outcome(self, region: Region, patch: Iterable[Change]) -> Array | None:
        """The tensor at the end of a region, computed by the changed nodes; None when they cannot run."""
        try:
            feeds = self.feeds(region)
            model = self.cut(region, feeds)
            changed = patched(model, within(model, patch))
            return self.candidate.shown(self.candidate.part(changed, feeds).outputs_with(())).get(region.tensor)
        except (BackendError, PatchError, KeyError):
            return None

    def holds(self, region: Region, patch: Iterable[Change]) -> bool:
        """Whether the changed nodes compute what the reference does, to the noise floor."""
        actual, known = self.outcome(region, patch), self.reference.values[region.value].array
        if actual is None or known is None or actual.size != known.size:
            return False
        if actual.shape not in (known.shape, self.candidate.named([region.tensor])[region.tensor].shape):
            return False
        if region.format is not None and rounds_to(region.format, known, actual):
            return True
        return same_numbers(known, actual, self.limits[region.value])

    def agrees(self, source: Source) -> bool:
        """Whether a whole file, as it ships, gives the reference's outputs."""
        candidate = self.runner.another(source, self.sample)
        outputs = self.runner.paired(self.reference, self.floor, candidate.graph)
        return outputs.all_agree(candidate.shipped)

    def comparable(self, other: Setting) -> bool:
        """Whether both runs of the reference took the same way, so that their values are numbered alike."""
        return [s.op for s in self.reference.sites] == [s.op for s in other.reference.sites]


def setting(live: Live, sample: Sample, name: str) -> Setting:
    """A sample run on both sides.

    Raises
    ------
    LayerdiffError
        One of the sides cannot run it.

    """
    candidate = live.runner.another(live.source, sample)
    if live.level is not None:
        candidate = candidate.as_optimised(live.level)
    candidate = candidate.in_layout(live.layout)
    reference, floor = live.runner.recorded(sample)
    return Setting(name, sample, live.runner, reference, floor, candidate)


def try_setting(live: Live, sample: Sample | None, name: str, like: Setting) -> Setting | None:
    """The same, or None where a side refuses the sample, or takes another way with it."""
    if sample is None:
        return None
    try:
        found = setting(live, sample, name)
        if not found.candidate.shipped or not found.comparable(like):
            return None
    except LayerdiffError:
        return None
    return found
