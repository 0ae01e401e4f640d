"""Files are put in place in one step: whoever looks, and whatever dies, sees a whole one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import layerdiff
from layerdiff import InputError
from layerdiff.files import replacing, write_text
from tests.test_report import AGREES, DIVERGES, EVIL, IMAGE, Page, rendered


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")

    def interrupted() -> None:
        with replacing(target) as draft:
            draft.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_link_stays_a_link_and_a_mode_stays(tmp_path: Path) -> None:
    target, link = tmp_path / "a.txt", tmp_path / "b.txt"
    target.write_text("old")
    target.chmod(0o600)
    link.symlink_to(target)
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o600


def test_a_device_is_written_to_and_stays_a_device() -> None:
    AGREES.save(os.devnull)
    assert Path(os.devnull).is_char_device()


def test_a_folder_is_no_target(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="this is a folder"):
        AGREES.save(tmp_path)
    with pytest.raises(InputError, match="does not exist; make it first"):
        AGREES.to_html(tmp_path / "none" / "report.html")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = AGREES.save(tmp_path / "report.json")
    before = target.read_bytes()

    def full(*_: Any, **__: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match=r"report.json: cannot be written \(No space left on device\); give another"):
        DIVERGES.save(target)
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]


def test_what_people_give_is_not_overwritten_by_a_report(tmp_path: Path) -> None:
    for name in ("model.onnx", "images.npy", "model.pt2"):
        given = tmp_path / name
        given.write_bytes(b"theirs")
        for write in (AGREES.save, AGREES.to_html, AGREES.write_pairs, AGREES.plot):
            with pytest.raises(InputError, match=r"is a model or an array|no picture is written"):
                write(given)
        assert given.read_bytes() == b"theirs"


def test_a_picture_of_no_known_format_is_refused_with_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no picture is written as \.xyz; give one of .*\.png"):
        AGREES.plot(tmp_path / "a.xyz")
    assert not list(tmp_path.iterdir())


def test_a_long_name_is_written_and_one_that_is_too_long_refused(tmp_path: Path) -> None:
    assert AGREES.save(tmp_path / f"{'n' * 245}.json").exists()
    with pytest.raises(InputError, match="cannot be written"):
        AGREES.save(tmp_path / f"{'n' * 300}.json")


KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from layerdiff.files import replacing
from tests.test_report import AGREES, SEVERAL

def csv(report, path):
    with replacing(path) as draft:
        report.to_frame().to_csv(draft)

WRITERS = {"save": lambda r, p: r.save(p), "to_html": lambda r, p: r.to_html(p), "plot": lambda r, p: r.plot(p),
           "write_pairs": lambda r, p: r.write_pairs(p), "csv": csv}
folder, rng = Path(sys.argv[1]), random.Random(0)
for name, write in WRITERS.items():
    target = folder / ("report.png" if name == "plot" else "report.txt")
    whole = set()
    for report in (AGREES, SEVERAL):
        write(report, target)
        whole.add(target.read_bytes())
    for round in range(5):
        child = os.fork()
        if child == 0:
            if round == 0:  # in the very middle: half a file is written
                with replacing(target) as draft:
                    draft.write_bytes(b"half")
                    os.kill(os.getpid(), signal.SIGKILL)
            while True:
                for report in (AGREES, SEVERAL):
                    write(report, target)
        time.sleep(0.02 + 0.1 * rng.random())
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if target.read_bytes() not in whole:
            sys.exit(f"{name} left half a file")
    print(name)
"""


def test_a_process_that_is_killed_in_the_middle_of_a_save_leaves_a_whole_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED), tmp_path], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["save", "to_html", "plot", "write_pairs", "csv"]


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all texts in plain data."""
    if isinstance(value, str):
        return [path]
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for key, item in items for found in leaves(item, (*path, key))]


def replaced(content: Any, path: tuple[Any, ...], text: str) -> str:
    """Plain data with another text at a path; what was there."""
    for key in path[:-1]:
        content = content[key]
    before, content[path[-1]] = content[path[-1]], text
    return before


def test_no_text_of_a_loaded_report_runs_in_a_browser(
    tmp_path: Path, trace: Any, classifier: Any, broken: Any, image: Any
) -> None:
    """Every free text of a real report with a cause, weights and samples, replaced by markup."""
    path = trace(classifier, broken, [image, image * 2]).save(tmp_path / "report.json")
    content = json.loads(path.read_text("utf-8"))
    changed = 0
    for number, place in enumerate(leaves(content)):
        if place[0] in ("format", "verdict"):
            continue
        before = replaced(content, place, (EVIL, IMAGE, "</style></td></table>" + EVIL)[number % 3])
        path.write_text(json.dumps(content), encoding="utf-8")
        try:
            layerdiff.load(path)
            changed += 1
        except InputError:  # one of a fixed set of words
            replaced(content, place, before)
    assert changed > 100
    path.write_text(json.dumps(content), encoding="utf-8")
    page = Page(rendered(layerdiff.load(path).to_html(tmp_path / "report.html"), tmp_path / "profile"))
    assert page.title == "layerdiff report"
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
