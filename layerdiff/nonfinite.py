"""Outputs of the model itself that are no numbers: both sides may well agree there, and that says nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.blocks import largest

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerdiff.model import Reference, Site

    Array = np.ndarray[Any, Any]


def not_finite(reference: Reference, outputs: Mapping[int, str]) -> list[str]:
    """A sentence for each output of the model that holds NaN, or nothing that is finite, with where that begins."""
    found = []
    for value, name in outputs.items():
        array = reference.values[value].array
        if array is None or not _is_no_number(array):
            continue
        count, site = int(np.count_nonzero(~np.isfinite(array))), _begins(reference)
        where = "" if site is None else f", beginning at {reference.layer_of(site) or 'the root module'} ({site.op})"
        found.append(
            f"output {name} is NaN or infinite at {count} of {array.size} elements in the model itself{where}: "
            "that both sides agree there says nothing"
        )
    return found


def _is_no_number(array: Array) -> bool:
    """Whether an array holds NaN, or nothing that is finite; infinities among numbers are meant: they are masks."""
    if not array.size or array.dtype.kind not in "fc" or np.isfinite(largest(array)):
        return False
    return bool(np.isnan(array).any() or not np.isfinite(array).any())


def _begins(reference: Reference) -> Site | None:
    """The first operator that makes from numbers what is none."""
    for site in reference.sites:
        made, read = (_any_is_no_number(reference, some) for some in (site.outputs, site.inputs))
        if made and not read:
            return site
    return None


def _any_is_no_number(reference: Reference, values: Iterable[int]) -> bool:
    arrays = (reference.values[index].array for index in values)
    return any(array is not None and _is_no_number(array) for array in arrays)
