"""Every notebook runs from top to bottom, and its kept results are small and tell nothing about a machine."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import nbformat
import pytest

from notebooks.execute import FOLDER, ROOT, executed

if TYPE_CHECKING:
    from pathlib import Path

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_without_an_error(path: Path) -> None:
    notebook = executed(path)
    kinds = [output.output_type for cell in notebook.cells for output in cell.get("outputs", [])]
    assert kinds
    assert "error" not in kinds


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_kept_results_are_complete_small_and_without_paths(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert path.stat().st_size < 400_000
    text = path.read_text(encoding="utf-8")
    assert str(ROOT) not in text
    assert not re.search(r"/(home|root|Users)/", text)
    assert "iopub.execute_input" not in text


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
