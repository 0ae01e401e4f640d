"""repair(): settle which changes are good, find their place, write, check, trace again."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from layerdiff.errors import BackendError, InputError, RepairError
from layerdiff.model import Repair, Unrepaired
from layerdiff.repair.place import NoPlaceError, base_for, corrected
from layerdiff.repair.verdicts import EXPORT_AGAIN, good_patch, remedy_for, settings
from layerdiff.repair.write import check, drafted, structure, with_shapes

if TYPE_CHECKING:
    import os

    from layerdiff.live import Case, Live
    from layerdiff.patch import Patch
    from layerdiff.repair.verdicts import Settings

    Kept = list[tuple[Case, Patch]]

_NONE = "nothing was written: no cause could be corrected in the file"
_WORSE = "nothing was written: with all that could be corrected the outputs are no nearer to the model's"
_BROKEN = "nothing was written: outputs that are right would no longer be"
NOTE = "layerdiff.repaired"  # the key under which a corrected file says what was corrected


def repair(report: Any, path: str | os.PathLike[str]) -> Any:
    """The report on the corrected file, which is written; `Report.repair` documents it."""
    target = Path(path)
    live: Live = _live(report, target)
    given = settings(live)
    kept, left = _settled(live, given)
    while kept:
        model, notes = _fixed(kept, live, given)
        with drafted(model, target, live.source) as draft:
            notes += check(draft.path, live.source) + _unchecked(model, given)
            doubtful, doubts = _doubtful(draft.path, kept, live, given)
            if doubtful:
                kept = [(case, patch) for case, patch in kept if case not in doubtful]
                left += [Unrepaired(c.divergence.layer, doubts[0], remedy_for(c)) for c in doubtful]
                continue
            again = live.retrace(draft.path)
            before, after = _error(report), _error(again)
            if not again.network_agrees and after >= before:
                raise RepairError(_lines(f"{_WORSE} (max-abs {before:.2g} → {after:.2g})", left))
            if broken := _broken(report, again):
                raise RepairError(_lines(f"{_BROKEN}: {', '.join(broken)}", left))
            draft.publish()
        diagnoses = tuple(case.diagnosis for case, _ in kept)
        checked = tuple(setting.name for setting in (given.own, *given.others))
        return dataclasses.replace(again, repaired=Repair(str(target), diagnoses, tuple(left), notes + doubts, checked))
    raise RepairError(_refusal(report, left))


def _live(report: Any, target: Path) -> Live:
    """What the report kept, after all that can be refused at once."""
    live: Live | None = report.live
    if live is None:
        raise RepairError(
            "this report was loaded or copied, and has neither the model nor the file any more; "
            'trace again: layerdiff.trace(model, "model.onnx", inputs).repair("fixed.onnx")'
        )
    if report.network_agrees:
        raise RepairError("nothing to repair: the file agrees with the model")
    if target.is_dir():
        raise InputError(f"{target}: is a folder; give the path of the file to write")
    if target.exists() and not target.is_file():
        raise InputError(f"{target}: a model cannot be written there; give the path of a file")
    if not target.parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")
    if not isinstance(live.source, onnx.ModelProto) and target.exists() and target.samefile(live.source):
        raise RepairError(f"{target}: this is the traced file, which stays as it is; give another path")
    if live.level is not None or not live.cases:
        raise RepairError(_refusal(report, []))
    return live


def _settled(live: Live, given: Settings) -> tuple[Kept, list[Unrepaired]]:
    """The cases with a change that is right on every sample and has its place in the file, and the others."""
    kept: Kept = []
    left: list[Unrepaired] = []
    file, examined = structure(live.source), given.own.candidate.graph.model
    for case in live.cases:
        found = good_patch(case, given)
        if isinstance(found, Unrepaired):
            left.append(found)
            continue
        try:
            base_for(file, examined, found)
        except NoPlaceError as error:
            left.append(
                Unrepaired(case.divergence.layer, f"its change has no place in the file: {error}", remedy_for(case))
            )
        else:
            kept.append((case, found))
    return kept, left


def _fixed(kept: Kept, live: Live, given: Settings) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """The corrected model, and what was done to the file besides."""
    examined, patches = given.own.candidate.graph.model, [patch for _, patch in kept]
    base = base_for(structure(live.source), examined, tuple(change for patch in patches for change in patch))
    model = with_shapes(corrected(base, examined, patches), base.model)
    entry = model.metadata_props.add()
    entry.key, entry.value = NOTE, " ".join(f"{c.diagnosis.layer}: {c.diagnosis.summary}" for c, _ in kept)
    return model, base.notes


def _doubtful(draft: Path, kept: Kept, live: Live, given: Settings) -> tuple[list[Case], tuple[str, ...]]:
    """The corrected cases that another sample still accuses, and a sentence on every such sample."""
    doubts: list[str] = []
    try:
        others = [other for other in given.others if not other.agrees(draft)] if given.own.agrees(draft) else []
    except BackendError as error:
        raise RepairError(f"nothing was written: the runtime refuses the corrected file ({error})") from error
    for other in others:
        accused = {found.layer for found in live.retrace(draft, other.sample).divergences}
        cases = [case for case, _ in kept if case.divergence.layer in accused]
        if cases:
            return cases, (f"corrected for the traced input, the whole file is still wrong there with {other.name}",)
        places = ", ".join(sorted(layer or "(root)" for layer in accused)) or "a place that could not be found"
        doubts.append(f"with {other.name} the corrected file differs in {places}, which the traced input does not show")
    return [], tuple(doubts)


def _error(report: Any) -> float:
    """The largest error of an output, as the file ships; infinite where one side is not finite, or shapes differ."""
    found = [output.shipped for output in report.outputs]
    return max((np.inf if m is None or m.nonfinite_mismatches else m.max_abs for m in found), default=0.0)


def _broken(before: Any, after: Any) -> list[str]:
    """The outputs that agreed, and do not any more."""
    pairs = zip(before.outputs, after.outputs, strict=False)
    return [old.name for old, new in pairs if old.agrees and not new.agrees]


def _unchecked(model: onnx.ModelProto, given: Settings) -> tuple[str, ...]:
    """What no run has shown."""
    found = []
    if given.fresh is None:
        found.append("not checked on other numbers: no redrawn input went the same way through both sides")
    if any(node.op_type == "If" for node in model.graph.node):
        found.append("branches that the traced input does not take were not examined")
    return tuple(found)


def _refusal(report: Any, left: list[Unrepaired]) -> str:
    """Why nothing was written, and what to do instead."""
    if left:
        return _lines(_NONE, left)
    lines = [f"{d.summary} Instead: {d.remedy}" for d in report.diagnoses if d.remedy]
    if not lines and report.diffuse is not None:
        whole = EXPORT_AGAIN.replace("model.eval()", "model.float().eval()")
        found, formats = report.diffuse, " and ".join(report.diffuse.formats)
        lines = [f"{len(found.layers)} layers only round to {formats}; no one change cures that. Instead: {whole}"]
    return "\n".join([f"{_NONE}.", *lines])


def _lines(opening: str, left: list[Unrepaired]) -> str:
    return "\n".join([f"{opening}.", *(f"{u.layer or '(root)'}: {u.reason}. Instead: {u.remedy}" for u in left)])
