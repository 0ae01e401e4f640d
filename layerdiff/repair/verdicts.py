"""Which change of a case is good for every input: run on other numbers and other sizes, not only on those traced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from layerdiff.diagnose import REPAIR
from layerdiff.errors import LayerdiffError
from layerdiff.model import Unrepaired
from layerdiff.repair.draw import cut_short, dynamic_axes, other_sizes, redrawn, resized, size_of
from layerdiff.repair.replacement import replacements
from layerdiff.repair.setting import setting, try_setting
from layerdiff.repair.write import structure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerdiff.live import Case, Live, Region
    from layerdiff.patch import Patch
    from layerdiff.repair.setting import Setting
    from layerdiff.samples import Sample

SIZES_TRIED = 2


@dataclass(frozen=True)
class Settings:
    """The sample that was traced, one with other numbers, and those with other sizes or masks that take something out.

    The others only where both sides run them.
    """

    own: Setting
    fresh: Setting | None
    sizes: tuple[Setting, ...]
    masked: Setting | None = None

    @property
    def others(self) -> tuple[Setting, ...]:
        """All but the sample that was traced."""
        return tuple(at for at in (self.fresh, *self.sizes, self.masked) if at is not None)


def settings(live: Live) -> Settings:
    """Everything that a change is judged on."""
    own = setting(live, live.sample, "the traced input")
    fresh = None
    for sample in redrawn(live.sample):
        fresh = try_setting(live, sample, "another input of the same shape", own)
        if fresh is not None:
            break
    masked = try_setting(live, cut_short(live.sample), "a mask that takes something out", own)
    return Settings(own, fresh, tuple(_sizes(live, own)), masked)


def _sizes(live: Live, own: Setting) -> Iterator[Setting]:
    """Settings in which every dimension that the file leaves open has another size than before."""
    groups = dynamic_axes(structure(live.source), live.sample, own.candidate.feeds)
    tried = 0
    for step in range(SIZES_TRIED if groups else 0):
        sample, changed = live.sample, []
        for group in groups:
            size = size_of(live.sample, group)
            for other in other_sizes(size, next(iter(group.values()))[0])[step:]:
                grown = resized(sample, group, other)
                if other != size and _runs(live, grown):
                    sample = grown
                    changed.append(f"{size} → {other}")
                    break
        if changed:
            found = try_setting(live, sample, f"other sizes ({', '.join(changed)})", own)
            if found is not None:
                tried += 1
                yield found


def _runs(live: Live, sample: Sample) -> bool:
    """Whether both sides take a sample."""
    try:
        live.runner.recorded(sample)
        return bool(live.runner.another(live.source, sample).shipped)
    except LayerdiffError:
        return False


def good_patch(case: Case, given: Settings) -> Patch | Unrepaired:
    """The change that is right in every setting: the one that was proven, else the stretch put in its place whole."""
    region = case.judged
    if case.patch is None or region is None:
        return _without_change(case)
    wrong = _first_wrong(region, case.patch, given)
    if wrong is None:
        return case.patch
    for other in (*given.sizes[:1], None):
        for splice in replacements(case, given.own, other):
            if _first_wrong(region, (splice,), given) is None:
                return (splice,)
    layer = case.divergence.layer
    if wrong is given.own:
        text = "the change that cured it in the trace no longer does: the model or the file has changed since"
        return Unrepaired(layer, text, "trace again, then repair: layerdiff.trace(model, path, inputs)")
    text = f"what cures it for the traced input is wrong with {wrong.name}; a repair that fits one input is none"
    return Unrepaired(layer, text, remedy_for(case))


def _first_wrong(region: Region, patch: Patch, given: Settings) -> Setting | None:
    return next((at for at in (given.own, *given.others) if not at.holds(region, patch)), None)


def _without_change(case: Case) -> Unrepaired:
    cause = case.diagnosis.cause
    text = (
        "it is located, but no change of the graph was found that cures it"
        if cause == "unknown"
        else f"{cause} is likely, and no change of the graph was proven to cure it"
    )
    return Unrepaired(case.divergence.layer, text, remedy_for(case))


def remedy_for(case: Case) -> str:
    """What to do instead, as code where it can be."""
    own = case.diagnosis.remedy
    return own if own and own != REPAIR else EXPORT_AGAIN


EXPORT_AGAIN = (
    'torch.onnx.export(model.eval(), inputs, "again.onnx", dynamo=True)  # or dynamo=False: the other exporter'
)
