"""The one place that puts files where people look for them: a file that is there stays whole until the new one is."""

from __future__ import annotations

import os
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from layerdiff.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

_GIVEN = frozenset({".onnx", ".pt", ".pth", ".pt2", ".safetensors", ".npy", ".npz"})
"""What people give: no report takes the place of such a file, whose name may have been written by mistake."""
_NAME = 100
"""Characters of a name that a temporary file takes over."""
_READABLE = 0o644  # temporary files are made for their owner alone


def need_folder(target: Path) -> None:
    """Refuse a target whose folder is not there, before any work is lost.

    Raises
    ------
    InputError
        There is no such folder.

    """
    if not target.parent.is_dir():
        raise InputError(f"{target}: the folder {target.parent} does not exist; make it first")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of the target in one step when the block ends without an exception.

    It lies in the same folder and has the same suffix. A pipe or a device is written to as it is.

    Raises
    ------
    InputError
        The folder does not exist or cannot be written to, the target is a folder, or it is a model or an array.

    """
    with _told(target):
        need_folder(target)
        if target.is_dir():
            raise InputError(f"{target}: this is a folder; give the path of a file")
        real = target.resolve()  # a link stays a link
        if real.exists() and real.suffix.lower() in _GIVEN:
            raise InputError(f"{target}: this is a model or an array, and would be overwritten; give another path")
        if real.exists() and not real.is_file():
            yield real
            return
        handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.stem[:_NAME]}.", suffix=real.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(real.stat().st_mode & 0o777 if real.exists() else _READABLE)
            place(temporary, real)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def _told(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(f"{target}: cannot be written ({error.strerror or error}); give another path") from error


def place(finished: Path, target: Path) -> None:
    """Move a finished file over another in the same file system, so that a power cut leaves one of the two."""
    with finished.open("rb") as file:
        os.fsync(file.fileno())
    finished.replace(target)
    with suppress(OSError):  # folders cannot be opened on Windows, nor synced on some file systems
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write_text(target: Path, text: str) -> None:
    """Replace a text file."""
    with replacing(target) as path:
        path.write_text(text, encoding="utf-8")
