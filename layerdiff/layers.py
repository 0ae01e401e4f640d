"""What is said about every module call: compared, folded into another, or why not; and how well each agrees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from layerdiff.keys import call_key, site_keys
from layerdiff.layout import named
from layerdiff.measure import measured_in
from layerdiff.model import CONTAINER, Coverage, LayerResult, Metrics, Pair, Status
from layerdiff.operators import is_reshaping
from layerdiff.shelf import outline, size_of
from layerdiff.suggest import Places

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from layerdiff.align import Alignment
    from layerdiff.model import Call, Noise, Reference, Site
    from layerdiff.precision import Rounded

_SEVERITY = [
    Status.AGREES, Status.FOLDED, Status.UNMATCHED, Status.CONFINED, Status.DRIFTS, Status.PROPAGATES, Status.DIVERGES,
]  # fmt: skip
_REASONS = {
    Status.DIVERGES: "good values go in, a wrong one comes out",
    Status.CONFINED: "good values go in, a wrong one comes out that no output that counts depends on",
}


@dataclass(frozen=True, slots=True)
class Accused:
    """The sites behind each accused call: those that diverge, and those whose error no output that counts depends on.

    `harmless` says that all outputs that count agree, so that nothing inside which differs can matter to them.
    """

    diverging: Mapping[int, Sequence[int]]
    confined: Mapping[int, Sequence[int]] = field(default_factory=dict)
    harmless: bool = False


class LayerBook:
    """Writes one result per module call (or per operator) of an aligned reference."""

    def __init__(
        self,
        alignment: Alignment,
        floor: Mapping[int, Noise],
        accused: Accused,
        rounded: Iterable[Rounded] = (),
    ) -> None:
        self._alignment = alignment
        self._reference: Reference = alignment.reference
        self._floor = floor
        self._harmless = accused.harmless
        self._calls = dict.fromkeys(accused.confined, Status.CONFINED) | dict.fromkeys(
            accused.diverging, Status.DIVERGES
        )
        self._sites = _ends(accused.confined, Status.CONFINED) | _ends(accused.diverging, Status.DIVERGES)
        self._places = Places(alignment)
        self._measured: dict[tuple[int, str], tuple[Metrics | None, Metrics | None]] = {}
        self._site_keys = site_keys(self._reference)
        self._rounded = {alignment.root(r.value): r for r in rounded}
        self._used = _ancestors(self._reference)
        self._readers: dict[int, list[Site]] = {}
        for site in self._reference.sites:
            for value in site.inputs:
                self._readers.setdefault(value, []).append(site)

    def calls(self) -> tuple[LayerResult, ...]:
        """One result per module call, in the order in which they returned their values."""
        found = [(self._last(call.outputs), -call.index, self._of_call(call)) for call in self._reference.calls]
        return tuple(result for _, _, result in sorted(found, key=lambda item: item[:2]))

    def operators(self) -> tuple[LayerResult, ...]:
        """One result per operator, in execution order."""
        sites = [s for s in self._reference.sites if not is_reshaping(s.op)]
        sites = [s for s in sites if not all(self._reference.values[v].constant for v in s.outputs)]
        return tuple(self._of_site(site) for site in sites)

    def _last(self, outputs: Sequence[int]) -> int:
        return max(((s.index if (s := self._reference.producer(v)) else -1) for v in outputs), default=-1)

    def _of_call(self, call: Call) -> LayerResult:
        outputs = [v for v in call.outputs if not self._is_unseen_constant(v)]
        # A recurrent layer also returns states that nobody reads: they count only where there is nothing else.
        outputs = [v for v in outputs if v in self._used] or outputs
        keys = {value: call_key(call, position) for position, value in reversed(list(enumerate(call.outputs)))}
        results = [self._named(self._of_value(v, call, None), v, keys[v]) for v in dict.fromkeys(outputs)]
        if not results:
            reason = "its result does not depend on the inputs and was folded into another constant"
            reason = reason if call.outputs else "returns no tensor"
            results = [self._result(call, None, Status.UNMATCHED, reason)]
        return self._accuse(results, self._calls.get(call.index))

    def _is_unseen_constant(self, value: int) -> bool:
        return self._reference.values[value].constant and value not in self._alignment.constants

    def _of_site(self, site: Site) -> LayerResult:
        call = self._reference.calls[site.owner]
        results = [self._of_value(value, call, site.op) for value in site.outputs if self._readers.get(value)]
        results = results or [self._of_value(site.outputs[0], call, site.op)]
        results = [self._named(result, site.outputs[0], self._site_keys[site.index]) for result in results]
        return self._accuse(results, self._sites.get(site.index))

    def _named(self, result: LayerResult, value: int, key: str) -> LayerResult:
        """A result with what `pairs=` needs: its name, its shape, and where it could belong if that is not known."""
        lone = result.onnx_tensor is None and result.status is not Status.CONFINED
        suggestions = self._places.near(value) if lone else ()
        return replace(result, key=key, shape=self._reference.values[value].shape, suggestions=suggestions)

    @staticmethod
    def _accuse(results: Sequence[LayerResult], status: Status | None) -> LayerResult:
        worst = max(results, key=lambda r: _SEVERITY.index(r.status))
        if status is None or _SEVERITY.index(worst.status) > _SEVERITY.index(status):
            return worst
        return replace(worst, status=status, reason=_REASONS[status])

    def _of_value(self, value: int, call: Call, op: str | None) -> LayerResult:
        found = self._alignment
        pair = found.pair(value)
        if pair is None:
            return self._without_counterpart(value, call, op)
        if value in found.constants:
            metrics = self._metrics(value, found.candidate.constants, pair.tensor)
            return LayerResult(
                call.layer, call.call, call.type, op, pair.tensor, pair.evidence, Status.AGREES,
                "a constant of the graph", metrics, metrics, self._floor.get(value),
            )  # fmt: skip
        accumulated, introduced = self._errors(value, pair.tensor)
        return LayerResult(
            call.layer, call.call, call.type, op, pair.tensor, pair.evidence,
            *self._judged(value, pair, accumulated, introduced), accumulated, introduced, self._floor.get(value),
        )  # fmt: skip

    def _judged(
        self, value: int, pair: Pair, accumulated: Metrics | None, introduced: Metrics | None
    ) -> tuple[Status, str]:
        found = self._alignment
        if accumulated is not None and accumulated.agrees:
            axes = found.candidate.layout.get(pair.tensor)
            if axes is not None:
                return Status.AGREES, f"{named(axes)} in the file, compared after {axes}"
            shape = found.candidate.outline(pair.tensor).shape
            differs = shape != self._reference.values[value].shape
            return Status.AGREES, f"same numbers in shape {shape}" if differs else ""
        rounded = self._rounded.get(found.root(value))
        if rounded is not None:
            return Status.DRIFTS, f"{rounded.format} explains what it introduces ({rounded.rel_l2:.1e} of its size)"
        if self._harmless:
            share = "" if accumulated is None else f" at {1 - accumulated.within:.2g} of its elements"
            return Status.CONFINED, f"differs{share}, and no output that counts depends on that"
        if introduced is not None and introduced.agrees:
            return Status.PROPAGATES, "right from expected inputs: the error is inherited"
        return Status.PROPAGATES, "lies behind the first divergence"

    def _without_counterpart(self, value: int, call: Call, op: str | None) -> LayerResult:
        known = self._reference.values[value]
        if known.array is None:
            return self._result(call, op, Status.UNMATCHED, f"a {known.dtype} tensor without dense numbers")
        if value not in self._used:
            return self._result(call, op, Status.UNMATCHED, "its result does not reach an output of the model")
        into = self._consumer_with_counterpart(value)
        if into is None:
            reason = "no tensor of the graph holds its value, and nothing that was compared depends on it"
            return self._result(call, op, Status.UNMATCHED, reason)
        return LayerResult(
            call.layer, call.call, call.type, op, None, None, Status.FOLDED, f"into {into}", None, None,
            self._floor.get(value),
        )  # fmt: skip

    def _consumer_with_counterpart(self, value: int) -> str | None:
        """The nearest layer downstream whose value has a counterpart."""
        todo, seen = [value], {value}
        while todo:
            current = todo.pop(0)
            for site in self._readers.get(current, ()):
                for output in site.outputs:
                    if output in seen:
                        continue
                    if self._alignment.pair(output) is not None:
                        layer = self._reference.layer_of(site)
                        return f"{layer or 'the root module'} ({site.op})"
                    seen.add(output)
                    todo.append(output)
        return None

    def _errors(self, value: int, tensor: str) -> tuple[Metrics | None, Metrics | None]:
        """What a tensor is off by, in the normal run and from expected inputs; several calls may return it."""
        key, found = (value, tensor), self._alignment
        if key not in self._measured:
            normal, alone = (outline(run, tensor) for run in (found.candidate.tapped, found.isolated))
            accumulated = introduced = self._metrics(value, found.candidate.tapped, tensor)
            if found.isolated and alone is not normal:
                introduced = self._metrics(value, found.isolated, tensor)
            self._measured[key] = accumulated, introduced
        return self._measured[key]

    def _metrics(self, value: int, run: Mapping[str, NDArray[Any]], tensor: str) -> Metrics | None:
        known, there = self._reference.values[value], outline(run, tensor)
        if known.array is None or there is None or size_of(there) != known.array.size:
            return None
        return measured_in(run, tensor, known, self._alignment.limits[value])

    @staticmethod
    def _result(call: Call, op: str | None, status: Status, reason: str) -> LayerResult:
        return LayerResult(call.layer, call.call, call.type, op, None, None, status, reason, None, None, None)


def _ends(origins: Mapping[int, Sequence[int]], status: Status) -> dict[int, Status]:
    """The last site of each origin, where its error comes out."""
    return {site: status for sites in origins.values() for site in list(sites)[-1:]}


def _ancestors(reference: Reference) -> set[int]:
    """The values that some output of the model depends on, and the outputs."""
    found: set[int] = set()
    todo = list(reference.outputs.values())
    while todo:
        value = todo.pop()
        if value not in found:
            found.add(value)
            site = reference.producer(value)
            todo += site.inputs if site is not None else ()
    return found


def coverage(results: Sequence[LayerResult], uncalled: Mapping[str, str]) -> Coverage:
    """How many calls were compared, folded or left out, and the reason for each that was left out."""
    folded = sum(1 for r in results if r.status is Status.FOLDED)
    left_out = {f"{r.layer or '(root)'} call {r.call}": r.reason for r in results if r.status is Status.UNMATCHED}
    compared = len(results) - folded - len(left_out)
    containers = tuple(name for name, why in uncalled.items() if why == CONTAINER)
    skipped = {name: why for name, why in uncalled.items() if why != CONTAINER}
    return Coverage(compared, folded, left_out | skipped, containers)
