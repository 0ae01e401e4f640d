"""What the user gives as an input, as arrays of numbers by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from layerdiff.array_files import read_arrays
from layerdiff.errors import InputError

Array = np.ndarray[Any, Any]


def arrays_of(given: Any, side: str) -> dict[str, Array]:
    """Every array of one side by name; a single one is called "", those of a tuple "0", "1", ….

    Raises
    ------
    InputError
        Not numbers: another type, another file, or an array of text or objects.

    """
    if isinstance(given, (str, Path)):
        return arrays_of(_read(Path(given), side), side)
    if isinstance(given, Mapping):
        if not given:
            raise InputError(f"{side}: an empty dict; give at least one input")
        return {str(name): _array(value, f"{side}[{name!r}]") for name, value in given.items()}
    if isinstance(given, tuple) and len(given) != 1:
        return {str(i): _array(value, f"{side}[{i}]") for i, value in enumerate(given)}
    return {"": _array(given[0] if isinstance(given, tuple) else given, side)}


def _array(value: Any, side: str) -> Array:
    if not isinstance(value, np.ndarray):
        value = _converted(value, side)
    if value.dtype.kind not in "biuf":
        raise InputError(
            f"{side}: an array of {value.dtype} is no model input; give numbers or booleans (real ones), "
            "as an array, a torch tensor, or an .npy or .npz file"
        )
    if value.size == 0:
        raise InputError(f"{side}: an array of shape {value.shape} holds no numbers; give what the model is fed")
    if value.dtype.kind == "f" and not np.isfinite(value).any():
        raise InputError(f"{side}: no number in it is finite; look at what made it first")
    array: Array = value
    return array


def _converted(value: Any, side: str) -> Array:
    """A torch tensor, or anything else that numpy can view as an array, as one."""
    if type(value).__module__.partition(".")[0] == "torch" and hasattr(value, "detach"):
        from layerdiff.tensors import to_array

        array = to_array(value)
        if array is None:
            raise InputError(f"{side}: a sparse, nested or meta tensor has no dense numbers; convert it first")
        return array
    if hasattr(value, "__array__") or isinstance(value, (list, int, float)):
        try:
            return np.asarray(value)
        except ValueError as error:
            raise InputError(f"{side}: not an array of one shape ({error})") from error
    raise InputError(
        f"{side}: a {type(value).__name__} is no model input; give an array, a torch tensor, an .npy or .npz path, "
        "or a dict of those"
    )


def _read(path: Path, side: str) -> Any:
    try:
        arrays = read_arrays(path)
    except InputError as error:
        raise InputError(f"{side}: {error}; save the tensor that the model is fed with numpy.save") from error
    return next(iter(arrays.values())) if isinstance(arrays, dict) and len(arrays) == 1 else arrays
