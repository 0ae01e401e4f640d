"""A fault in one of the calls of a module that is called several times: the broken copy shares it no longer there."""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any

from torch import nn

from benchmarks.faults.first_difference import ONE_CALL
from benchmarks.faults.registry import IN_SEVERAL_LAYERS, KINDS, Plant, plant
from benchmarks.faults.workpiece import Workpiece

if TYPE_CHECKING:
    import random

    from benchmarks.faults.fault import Fault


def one_call(piece: Workpiece, rng: random.Random) -> Fault | None:
    """Any kind of fault, anywhere in a module that runs more than once, in one of its calls."""
    repeated = {path: n for path, n in piece.survey.repeated().items() if _computes(piece.module(path))}
    if not repeated:
        return None
    path = rng.choice(list(repeated))
    number = rng.randrange(repeated[path])
    twin = Workpiece(copy.deepcopy(piece.model), piece.survey.narrowed(path, number))
    kinds = [kind for kind in KINDS if kind not in IN_SEVERAL_LAYERS]
    for kind in rng.sample(kinds, len(kinds)):
        fault = plant(KINDS, kind, twin, rng)
        if fault is not None:
            _stand_in(piece, path, number, twin.module(path))
            detail = f"{fault.kind}, only in call {number} of {repeated[path]}: {fault.detail}"
            return dataclasses.replace(fault, kind="one-call", detail=detail, call=number)
    return None


ONE_CALL_KINDS: dict[str, tuple[Plant, ...]] = {"one-call": (one_call,)}
"""Apart from KINDS: the layer alone is half of the answer."""


def _stand_in(piece: Workpiece, path: str, number: int, twin: nn.Module) -> None:
    """The twin's forward instead of the module's own in that call of every run."""
    done = []
    module = piece.module(path)

    def body(original: Any, *args: Any, **kwargs: Any) -> Any:
        done.append(path)
        return twin.forward(*args, **kwargs) if len(done) == number + 1 else original(*args, **kwargs)

    piece.override(path, "forward", body)
    piece.model.register_forward_pre_hook(lambda *_: done.clear())
    module.add_module(ONE_CALL, twin)  # exporters want every parameter to belong to the model


def _computes(module: nn.Module) -> bool:
    return not isinstance(module, (nn.Identity, nn.Dropout))
