"""What counts: the masks that the user gives with `valid=`, for each final output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError

if TYPE_CHECKING:
    from layerdiff.model import Reference

    Array = np.ndarray[Any, Any]


def masks_for(reference: Reference, tensors: Mapping[int, str], valid: Any, sample: int = 0) -> dict[int, Array]:
    """For each output the mask of what counts, in its own shape.

    A mask under the name of an output (the model's or the graph's) is broadcast to it from the left; one under the name
    of an input is used for every output that begins with the mask's dimensions.

    Raises
    ------
    InputError
        A name that is neither an input nor an output, a mask that does not fit the output it names, or nothing left.

    """
    names = dict(reference.outputs) | {tensor: value for value, tensor in tensors.items()}
    found: dict[int, Array] = {}
    for name, given in _of_sample(valid, sample).items():
        mask = _as_mask(reference, name, given)
        fitting = [v for v in tensors if reference.values[v].shape[: mask.ndim] == mask.shape]
        if name in names and names[name] in fitting:
            fitting = [names[name]]
        elif name in names or name not in reference.inputs:
            wanted = ", ".join(f"{tensors[v]} {reference.values[v].shape}" for v in tensors)
            raise InputError(
                f"valid[{name!r}]: a mask of shape {mask.shape} fits no output of that name; the outputs are "
                f"{wanted}, the inputs {', '.join(reference.inputs)}"
            )
        for value in fitting:
            shape = reference.values[value].shape
            spread = np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(shape) - mask.ndim)), shape)
            found[value] = spread & found.get(value, np.ones(shape, bool))
    if found and all(value in found and not found[value].any() for value in tensors):
        raise InputError("valid: excludes every position of every output, so nothing is left to compare")
    return found


def _of_sample(valid: Any, sample: int) -> Mapping[str, Any]:
    """The masks of one sample by name; None stands for the input of that name, which is its own mask."""
    if valid is None:
        return {}
    if isinstance(valid, str):
        return {valid: None}
    if isinstance(valid, Mapping):
        return valid
    if not isinstance(valid, (list, tuple)):
        raise InputError(
            f"valid: wanted the name of an input that is a mask, masks by name, or a list with one of these for each "
            f"sample; got a {type(valid).__name__}"
        )
    if sample >= len(valid):
        raise InputError(f"valid: a list of {len(valid)}, and a sample {sample + 1}; give one item for each sample")
    return _of_sample(valid[sample], 0)


def _as_mask(reference: Reference, name: str, given: Any) -> Array:
    if given is not None:
        return np.asarray(given.cpu() if hasattr(given, "cpu") else given, dtype=bool)
    known = reference.values[reference.inputs[name]].array if name in reference.inputs else None
    if known is None:
        raise InputError(f"valid={name!r}: no input of that name; the inputs are {', '.join(reference.inputs)}")
    return known.astype(bool)
