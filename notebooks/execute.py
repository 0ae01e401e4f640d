"""Run the notebooks from the root of the repository and keep their results: `python notebooks/execute.py`."""

# ruff: noqa: INP001  a script, not a package

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"


class _OwnKernel(AsyncKernelManager):
    """The kernel of this interpreter: another installation's of the same name must not be taken."""

    def __init__(self, **options: Any) -> None:
        super().__init__(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]), **options)


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with fresh results, run by this interpreter with the repository root as its folder.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        A cell raised.

    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        kernel_manager_class=_OwnKernel,
        timeout=600,
        record_timing=False,
        resources={"metadata": {"path": str(ROOT)}},
    )
    client.execute()
    return notebook


def stripped(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without versions, timing and random ids, with small pictures and no path of this machine."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = f"cell-{number}"
        for output in cell.get("outputs", []):
            _check(output)
            picture = output.get("data", {}).get("image/png")
            if picture is not None:
                output.data["image/png"] = _small(picture)
    return notebook


def _small(picture: str) -> str:
    """A PNG with a palette of 128 colours."""
    kept = BytesIO()
    with Image.open(BytesIO(base64.b64decode(picture))) as image:
        image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(kept, "PNG", optimize=True)
    return base64.b64encode(kept.getvalue()).decode("ascii")


def _check(output: Any) -> None:
    text = str(output)
    if str(ROOT) in text or str(Path.home()) in text:
        raise ValueError(f"a path of this machine is in an output: {text[:300]}")


def main() -> None:
    """Rewrite every notebook with its results."""
    for path in sorted(FOLDER.glob("*.ipynb")):
        nbformat.write(stripped(executed(path)), path)


if __name__ == "__main__":
    main()
