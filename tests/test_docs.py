"""What the documentation says is true: its code runs, its lists are complete, its numbers are those of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerdiff
from layerdiff import measure

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
HOW = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
READING = (ROOT / "docs" / "reading-a-report.md").read_text(encoding="utf-8")

# A Python block, and the output that is shown after it.
SNIPPETS = re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", README, flags=re.DOTALL)


def test_the_readme_has_a_snippet_with_its_output() -> None:
    assert SNIPPETS
    assert len(SNIPPETS) == README.count("```python")


@pytest.mark.parametrize(("code", "shown"), SNIPPETS)
def test_a_snippet_of_the_readme_prints_what_it_says(code: str, shown: str, tmp_path: Path) -> None:
    (tmp_path / "snippet.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "snippet.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _without_numbers(done.stdout) == _without_numbers(shown)


def _without_numbers(text: str) -> str:
    """Rounding differs from machine to machine, words do not."""
    return " ".join(re.sub(r"(?<![\w./])\d+(,\d{3})*(\.\d+)?(e[+-]\d+)?(?!\w)", "#", text).split())


@pytest.mark.parametrize("name", layerdiff.__all__)
def test_every_public_name_is_on_the_api_page(name: str) -> None:
    assert re.search(rf"^::: layerdiff\.(trace\.)?{name}$", API, flags=re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in layerdiff.__all__ if n.endswith("Error") and n != "LayerdiffError"])
def test_every_error_is_on_the_errors_page(name: str) -> None:
    assert re.search(rf"^##+ {name}$", ERRORS, flags=re.MULTILINE)


@pytest.mark.parametrize("status", list(layerdiff.Status))
def test_every_status_is_explained(status: layerdiff.Status) -> None:
    assert f"\n| `{status}` |" in READING


@pytest.mark.parametrize("name", layerdiff.Metrics.__slots__)
def test_every_metric_is_explained(name: str) -> None:
    assert f"`{name}`" in READING


@pytest.mark.parametrize("name", ["NOISE_FACTOR", "EPSILON_FACTOR", "MASK_RATIO", "MASK_SMALLEST", "MASK_TOLERANCE"])
def test_the_constants_are_those_of_the_code(name: str) -> None:
    found = re.search(rf"^\| `{name}` \| ([\d.e-]+) \|", HOW, flags=re.MULTILINE)
    assert found
    assert float(found[1]) == getattr(measure, name)


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_every_link_of_the_readme_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
