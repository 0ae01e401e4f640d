"""What people use today, each tool driven as its documentation says and asked the same question.

A rival takes the healthy model, the file in question, the inputs and a new export of the model. It says whether the two
agree, and if not, which module it points at first. Whatever it raises is an outcome of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from benchmarks.rivals.by_name import hook_and_name, hook_and_name_folding
from benchmarks.rivals.by_polygraphy import polygraphy_mark_all, polygraphy_read_back
from benchmarks.rivals.by_side_by_side import side_by_side, side_by_side_own_weights
from benchmarks.rivals.by_verification import verify_onnx_program
from benchmarks.rivals.verdict import Fresh, NotApplicable, Verdict, fresh_export

if TYPE_CHECKING:
    import onnx
    from torch import Tensor, nn

__all__ = ["RIVALS", "Fresh", "NotApplicable", "Rival", "Verdict", "fresh_export"]

Rival = Callable[["nn.Module", "onnx.ModelProto", "tuple[Tensor, ...]", Fresh], Verdict]

RIVALS: dict[str, Rival] = {
    "hooks and names": hook_and_name,
    "hooks and names, folding known": hook_and_name_folding,
    "Polygraphy mark all": polygraphy_mark_all,
    "Polygraphy mark all, read back": polygraphy_read_back,
    "verify_onnx_program": verify_onnx_program,
    "onnx-diagnostic sbs": side_by_side,
    "onnx-diagnostic sbs, own weights": side_by_side_own_weights,
}
