"""What the documentation says is true: its code runs, its lists are complete, its numbers are those of the code."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import layerdiff
from benchmarks.faults.causes import SLUGS
from layerdiff import limits
from layerdiff.diagnose import Hypothesis, Stretch

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ERRORS = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
HOW = (ROOT / "docs" / "how-it-works.md").read_text(encoding="utf-8")
READING = (ROOT / "docs" / "reading-a-report.md").read_text(encoding="utf-8")

PIPELINES = (ROOT / "docs" / "pipelines.md").read_text(encoding="utf-8")
INPUTS = (ROOT / "docs" / "inputs.md").read_text(encoding="utf-8")
DETECTIONS = (ROOT / "docs" / "detections.md").read_text(encoding="utf-8")
DIAGNOSERS = (ROOT / "docs" / "writing-diagnosers.md").read_text(encoding="utf-8")


def _shown(page: str) -> list[tuple[str, str]]:
    """Every Python block, and the output that is shown after it."""
    return re.findall(r"```python\n(.*?)```\n+```text\n(.*?)```", page, flags=re.DOTALL)


SNIPPETS = _shown(README)


def test_the_readme_has_a_snippet_with_its_output() -> None:
    assert SNIPPETS
    assert len(SNIPPETS) == README.count("```python")


def test_the_page_on_diagnosers_has_one_example_with_its_output() -> None:
    assert len(_shown(DIAGNOSERS)) == DIAGNOSERS.count("```python") == 1


@pytest.mark.parametrize(
    ("code", "shown"), [*SNIPPETS, *_shown(DIAGNOSERS), *_shown(DETECTIONS), *_shown(PIPELINES), *_shown(INPUTS)]
)
def test_a_snippet_prints_what_it_says(code: str, shown: str, tmp_path: Path) -> None:
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
    assert re.search(rf"^::: layerdiff\.(tracing\.|backends\.)?{name}$", API, flags=re.MULTILINE)


@pytest.mark.parametrize("name", [n for n in layerdiff.__all__ if n.endswith("Error") and n != "LayerdiffError"])
def test_every_error_is_on_the_errors_page(name: str) -> None:
    assert re.search(rf"^##+ {name}$", ERRORS, flags=re.MULTILINE)


@pytest.mark.parametrize("status", list(layerdiff.Status))
def test_every_status_is_explained(status: layerdiff.Status) -> None:
    assert f"\n| `{status}` |" in READING


def test_the_table_of_causes_has_every_cause_and_no_other() -> None:
    section = READING.partition("\n## Causes\n")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `([a-z-]+)` \| \S", section, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    assert set(listed) == SLUGS


@pytest.mark.parametrize("reason", list(layerdiff.Reason))
def test_every_reason_for_a_box_is_explained(reason: layerdiff.Reason) -> None:
    assert f"\n| `{reason}` |" in DETECTIONS


@pytest.mark.parametrize("status", list(layerdiff.StageStatus))
def test_every_status_of_a_stage_is_explained(status: layerdiff.StageStatus) -> None:
    assert f"\n| `{status}` |" in PIPELINES


def test_what_the_page_on_diagnosers_offers_is_there() -> None:
    section = DIAGNOSERS.partition("## What a diagnoser is given")[2].partition("\n## ")[0]
    offered = re.findall(r"`(\w+)[`(]", "".join(re.findall(r"^\| (`.*?) \|", section, flags=re.MULTILINE)))
    known = {*dir(Stretch), *(field.name for field in dataclasses.fields(Stretch))}
    assert len(offered) > 12
    assert set(offered) <= known


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Hypothesis)])
def test_every_field_of_a_hypothesis_is_explained(name: str) -> None:
    assert f"\n| `{name}` |" in DIAGNOSERS


@pytest.mark.parametrize("name", layerdiff.Metrics.__slots__)
def test_every_metric_is_explained(name: str) -> None:
    assert f"`{name}`" in READING


@pytest.mark.parametrize("name", ["NOISE_FACTOR", "EPSILON_FACTOR", "MASK_RATIO", "MASK_SMALLEST", "MASK_TOLERANCE"])
def test_the_constants_are_those_of_the_code(name: str) -> None:
    found = re.search(rf"^\| `{name}` \| ([\d.e-]+) \|", HOW, flags=re.MULTILINE)
    assert found
    assert float(found[1]) == getattr(limits, name)


def test_the_readme_names_the_commands_that_ci_runs() -> None:
    assert "make demo" in README
    assert "make test" in README


def test_every_link_of_the_readme_leads_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", README)
    assert targets
    assert not [target for target in targets if not (ROOT / target).exists()]
