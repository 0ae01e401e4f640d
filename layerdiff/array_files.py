"""Files of arrays, as numpy writes them."""

from __future__ import annotations

import zipfile
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from layerdiff.errors import InputError

if TYPE_CHECKING:
    from pathlib import Path

    Array = np.ndarray[Any, Any]


def read_arrays(path: Path) -> Array | dict[str, Array]:
    """The array of an ``.npy`` file, or those of an ``.npz`` file by name; pickled objects, which are code, are not.

    Raises
    ------
    InputError
        There is no such file, or it is another kind, or damaged.

    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with path.open("rb") as file:  # numpy leaves a damaged one open
            content: Any = np.load(file, allow_pickle=False)
            return content if isinstance(content, np.ndarray) else {name: content[name] for name in content.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{path}: not an .npy or .npz file, or one with pickled objects, which layerdiff does not load ({error})"
        ) from error
