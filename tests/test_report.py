"""The report and its views: words, table, picture, page and file."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from dataclasses import fields, replace
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import layerdiff
from layerdiff import InputError
from layerdiff.model import (
    Coverage,
    Diagnosis,
    Evidence,
    Healed,
    Kind,
    LayerResult,
    Metrics,
    Noise,
    OutputResult,
    SampleResult,
    Status,
)
from layerdiff.report.archive import to_dict
from tests.conftest import EXACT, divergence, far, layer, report_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from layerdiff.report import Report

HEALED = Healed(before=0.5, after=1e-7, agrees=True)
SHRUNK = Healed(before=0.5, after=0.1, agrees=False)
USELESS = Healed(before=0.5, after=0.5, agrees=False)

AGREES = report_of()
DIVERGES = report_of(divergence("block.conv", HEALED))
SEVERAL = report_of(divergence("stem", SHRUNK), divergence("block.conv", replace(HEALED, before=0.1)))


# Words.


def test_a_report_without_divergences_agrees() -> None:
    assert AGREES.agrees
    assert AGREES.first_divergence is None
    assert AGREES.verdict == (
        "PyTorch and ONNX agree: output logits within max-abs 0; 4 module calls compared, 0 folded."
    )


def test_a_healthy_verdict_counts_what_was_not_compared() -> None:
    report = replace(AGREES, coverage=Coverage(2, 1, {"x": "never called"}))
    assert report.verdict.endswith("2 module calls compared, 1 folded, 1 not compared.")


def test_a_proven_verdict_names_layer_operator_error_and_proof() -> None:
    assert DIVERGES.verdict == (
        "block.conv [Conv2d, operator aten.convolution] is the first layer that diverges (max-abs 0.5, "
        "500,000 × what rounding explains): good values go into Conv, a wrong one comes out. "
        "Proven: with PyTorch's value put in there the final outputs agree (max-abs 0.5 → 1e-07). "
        "1 later layer only passes the error on, 2 layers agree."
    )


def test_a_verdict_on_several_origins_names_the_others_and_proves_them_together() -> None:
    assert SEVERAL.verdict.startswith("stem [Conv2d, operator aten.convolution] is the first layer that diverges")
    assert (
        "Proven: with PyTorch's value put in at the 2 origins the final outputs agree (max-abs 0.5 → 1e-07)."
        in SEVERAL.verdict
    )
    assert "Further origins: block.conv." in SEVERAL.verdict


def test_a_verdict_that_is_not_proven_says_so() -> None:
    verdict = report_of(divergence("stem", USELESS)).verdict
    assert (
        "Not proven: with PyTorch's value put in there the final outputs still differ (max-abs 0.5 → 0.5)." in verdict
    )
    assert "Proven:" not in verdict


def test_a_verdict_whose_error_only_shrank_does_not_claim_a_proof() -> None:
    verdict = report_of(divergence("stem", SHRUNK)).verdict
    assert "With PyTorch's value put in there the final error shrinks but stays (max-abs 0.5 → 0.1)." in verdict
    assert "roven" not in verdict


def test_a_verdict_without_any_trial_claims_nothing() -> None:
    verdict = report_of(divergence("stem", None)).verdict
    assert "roven" not in verdict
    assert "→" not in verdict


def test_many_origins_are_counted_not_listed() -> None:
    origins = [divergence(f"layer{i}", None) for i in range(9)]
    assert "Further origins: layer1, layer2, layer3, layer4, layer5 and 3 more." in report_of(*origins).verdict


def test_an_inserted_node_is_said_to_lie_behind_its_layer() -> None:
    verdict = report_of(divergence("stem", HEALED, Kind.INSERTED)).verdict
    assert "is the layer behind which the graph first diverges" in verdict


def test_a_later_call_is_named_with_its_number_and_the_root_by_a_name() -> None:
    later = replace(divergence("stem", HEALED), call=3)
    assert report_of(later).verdict.startswith("stem (call 3) [")
    assert report_of(divergence("", HEALED)).verdict.startswith("(root) [")


def test_a_difference_that_only_optimisations_make_is_laid_at_the_runtime() -> None:
    outputs = (OutputResult("logits", "logits", (2, 5), (2, 5), far(0.5), EXACT),)
    verdict = replace(AGREES, outputs=outputs).verdict
    assert "agree when the runtime's graph optimisations are off" in verdict
    assert not replace(AGREES, outputs=outputs).agrees


def test_a_difference_that_no_layer_explains_is_admitted() -> None:
    outputs = (OutputResult("logits", "logits", (2, 5), (2, 5), far(0.5), far(0.5)),)
    assert "no layer could be accused" in replace(AGREES, outputs=outputs).verdict


def test_outputs_of_other_shapes_are_told_with_both_shapes() -> None:
    outputs = (OutputResult("logits", "logits", (2, 5), (5, 2), None, None),)
    assert "(2, 5) vs (5, 2)" in replace(AGREES, outputs=outputs).verdict


GOOD = SampleResult({"image": (1, 3, 64, 64)}, agrees=True, max_abs=1e-7, times_limit=0.1)
BAD = SampleResult({"image": (1, 3, 96, 64)}, agrees=False, max_abs=0.5, times_limit=5e5)
REFUSED = SampleResult(
    {"image": (1, 3, 32, 32)}, agrees=False, refused="onnxruntime failed while running: dim mismatch"
)


def test_the_sample_is_named_when_there_are_several() -> None:
    assert "(sample 2 of 3)" in replace(DIVERGES, sample=1, samples=(GOOD, BAD, GOOD)).verdict
    assert "sample" not in replace(DIVERGES, samples=(BAD,)).verdict
    assert "agree on all 2 samples (worst: sample 2 of 2)" in replace(AGREES, sample=1, samples=(GOOD, GOOD)).verdict


def test_agreement_at_one_size_and_divergence_at_another_leads_the_verdict() -> None:
    verdict = replace(DIVERGES, sample=1, samples=(GOOD, BAD, GOOD)).verdict
    assert verdict.startswith("Agrees at 1x3x64x64 and diverges at 1x3x96x64: something was frozen")
    assert "block.conv [Conv2d" in verdict


def test_samples_of_one_size_that_differ_in_verdict_are_only_counted() -> None:
    verdict = replace(DIVERGES, sample=1, samples=(GOOD, replace(BAD, shapes=GOOD.shapes))).verdict
    assert verdict.startswith("1 of 2 samples agrees. block.conv")
    assert "frozen" not in verdict


def test_a_size_at_which_some_samples_agree_and_some_do_not_is_no_matter_of_size() -> None:
    mixed = (GOOD, BAD, replace(BAD, agrees=True))
    assert "frozen" not in replace(DIVERGES, sample=1, samples=mixed).verdict


def test_a_refused_size_fails_the_verdict_and_gives_the_runtimes_words() -> None:
    report = replace(AGREES, samples=(GOOD, REFUSED))
    assert not report.agrees
    assert report.verdict.startswith("Agrees at 1x3x64x64 and is refused at 1x3x32x32: something was frozen")
    assert "dim mismatch" in report.verdict
    assert "no layer could be accused" not in report.verdict


def test_every_sample_has_a_line_of_its_own() -> None:
    text = str(replace(DIVERGES, sample=1, samples=(GOOD, BAD, REFUSED)))
    assert "sample 1 (1x3x64x64): agrees, max-abs 1e-07\n" in text
    assert "sample 2 (1x3x96x64): diverges, max-abs 0.5\n" in text
    assert "sample 3 (1x3x32x32): refused, onnxruntime failed while running: dim mismatch\n" in text
    assert "sample 1" not in str(replace(DIVERGES, samples=(BAD,)))


def test_every_sample_is_in_the_page_and_survives_the_file(tmp_path: Path) -> None:
    report = replace(DIVERGES, sample=1, samples=(GOOD, BAD, REFUSED))
    page = report.to_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<td>sample 3 (1x3x32x32)</td>" in page
    assert layerdiff.load(report.save(tmp_path / "report.json")) == report


def test_excluded_positions_that_differ_are_told_without_failing() -> None:
    outputs = (replace(AGREES.outputs[0], everywhere=far(0.5)),)
    report = replace(AGREES, outputs=outputs, confined=(divergence("block.conv", HEALED),))
    assert report.agrees
    assert report.first_divergence is None
    assert "differ only at positions that `valid` excludes (max-abs 0.5), first at block.conv [" in report.verdict


def test_the_text_of_a_report(golden: Callable[[str, str], None]) -> None:
    warned = replace(SEVERAL, warnings=("the reference is in train mode",))
    golden("report.txt", str(warned))


def test_the_text_of_a_healthy_report_is_the_verdict() -> None:
    assert str(AGREES) == AGREES.verdict + "\n"


@pytest.mark.parametrize("name", ["[bold]x[/bold]", "a[/b]", "[red]", "layers[0]", "$x$", ":smile:"])
def test_a_name_with_marks_is_shown_as_it_is(name: str) -> None:
    report = report_of(divergence(name, HEALED), layers=(layer(name, Status.DIVERGES, far(0.5)),))
    sentence, *table = str(report).splitlines()
    assert sentence.startswith(f"{name} [Conv2d")
    assert any(line.startswith(f"{name} ") and f"/{name}/out" in line for line in table)


def test_a_long_report_shows_the_rows_around_the_first_divergence() -> None:
    rows = tuple(layer(f"layer{i}", Status.AGREES) for i in range(100))
    rows = (*rows[:60], layer("here", Status.DIVERGES, far(0.5)), *rows[60:])
    text = str(replace(DIVERGES, layers=rows))
    assert "here" in text
    assert "layer59" in text
    assert "layer5 " not in text


# The table.


COLUMNS = ["layer", "call", "type", "op", "onnx_tensor", "evidence", "status", "reason", "noise", "noise_assumed"]
METRICS = [field.name for field in fields(Metrics)]


def test_the_table_has_a_row_per_layer_and_a_column_per_metric() -> None:
    frame = DIVERGES.to_frame()
    assert list(frame.columns) == [*COLUMNS, *METRICS, *(f"introduced_{name}" for name in METRICS)]
    assert list(frame["layer"]) == ["stem", "block.conv", "block.act", "head"]
    assert list(frame["status"]) == ["agrees", "diverges", "agrees", "propagates"]
    assert frame.loc[1, "max_abs"] == 0.5
    assert frame.loc[1, "evidence"] == "values"
    assert frame.loc[1, "noise"] == 1e-7


def test_a_layer_without_metrics_has_empty_cells() -> None:
    frame = replace(AGREES, layers=(layer("stem", Status.FOLDED, None, "into norm"),)).to_frame()
    assert frame.loc[0, "reason"] == "into norm"
    assert frame[["max_abs", "introduced_cosine", "onnx_tensor"]].isna().all(axis=None)


def test_the_table_of_no_layers_has_its_columns() -> None:
    frame = replace(AGREES, layers=()).to_frame()
    assert len(frame) == 0
    assert "max_abs" in frame.columns


# The picture.


def texts(report: Report) -> str:
    figure = report.plot()
    (axes,) = figure.axes
    found = [figure.get_suptitle(), axes.get_ylabel(), *(text.get_text() for text in axes.texts)]
    return "\n".join(found + [label.get_text() for label in axes.get_xticklabels()])


def test_the_plot_names_the_first_divergence_and_every_layer() -> None:
    shown = texts(DIVERGES)
    assert "First divergence: block.conv" in shown
    assert "block.conv\nConv2d, first divergence" in shown
    assert {"stem", "block.conv", "block.act", "head"} <= set(shown.splitlines())


def test_the_plot_of_a_healthy_report_says_so() -> None:
    assert "PyTorch and ONNX agree" in texts(AGREES)


def test_the_plot_has_a_logarithmic_axis_with_every_error_inside() -> None:
    (axes,) = DIVERGES.plot().axes
    low, high = axes.get_ylim()
    assert axes.get_yscale() == "log"
    assert 0 < low < 1e-7
    assert high > 0.5


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_the_plot_is_written_in_the_format_of_its_suffix(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plot.{suffix}"
    DIVERGES.plot(path)
    marks = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}
    assert path.read_bytes().startswith(marks[suffix])


def test_the_saved_picture_opens_and_is_not_blank(tmp_path: Path) -> None:
    DIVERGES.plot(tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as image:
        assert min(image.size) > 500
        assert len(image.convert("RGB").getcolors(maxcolors=1 << 24)) > 20


NAN_METRICS = replace(far(math.nan), nonfinite_mismatches=3, cosine=math.nan, sqnr_db=math.nan)
ODD = {
    "no layers": (),
    "one layer": (layer("stem", Status.AGREES),),
    "only folded layers": (layer("stem", Status.FOLDED, None, "into norm"),),
    "only unmatched layers": (layer("stem", Status.UNMATCHED, None, "never called"),),
    "NaN": (layer("stem", Status.DIVERGES, NAN_METRICS), layer("head", Status.PROPAGATES, NAN_METRICS)),
    "enormous": (layer("stem", Status.DIVERGES, far(1e300)), layer("head", Status.PROPAGATES, far(1.7e308))),
    "infinite": (layer("stem", Status.DIVERGES, far(math.inf)),),
    "no noise": (replace(layer("stem", Status.AGREES), noise=None),),
    "mathematical name": (layer(r"$\frac{$", Status.DIVERGES, far(0.5)),),
    "very many": tuple(layer(f"layer{i}", Status.AGREES) for i in range(700)),
    "every status": tuple(layer(str(status), status) for status in Status),
}


@pytest.mark.parametrize("rows", ODD.values(), ids=ODD.keys())
def test_views_of_odd_reports_are_made_without_a_warning(tmp_path: Path, rows: tuple[LayerResult, ...]) -> None:
    accused = tuple(divergence(row.layer, None) for row in rows if row.status is Status.DIVERGES)
    report = replace(AGREES, layers=rows, divergences=accused)
    report.plot(tmp_path / "plot.png")
    report.to_html(tmp_path / "report.html")
    assert str(report)
    assert len(report.to_frame()) == len(rows)


# The page.


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
EVIL = "<script>document.title='owned'</script>"
IMAGE = '"><img src=x onerror="document.title=\'owned\'">'


def browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed (Debian: apt-get install chromium)")
    return found


def rendered(path: Path, profile: Path) -> str:
    """The document as a real browser sees it after its scripts ran."""
    command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout


class Page(HTMLParser):
    """Elements, cells and attributes of a document."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.cells: list[str] = []
        self.title = ""
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        self._open.append(tag)
        if tag == "td":
            self.cells.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "td" in self._open:
            self.cells[-1] += data
        if "title" in self._open:
            self.title += data


def hostile() -> Report:
    rows = (
        replace(layer(EVIL, Status.DIVERGES, far(0.5)), onnx_tensor=IMAGE, type=EVIL, reason=IMAGE),
        replace(layer("head", Status.PROPAGATES, far(0.5)), op=EVIL),
    )
    origin = replace(divergence(EVIL, HEALED), type=IMAGE, op=EVIL, summary=EVIL)
    return report_of(origin, layers=rows, warnings=(EVIL,), environment={EVIL: IMAGE})


def test_a_browser_shows_the_page_and_runs_nothing_of_what_is_in_it(tmp_path: Path) -> None:
    path = hostile().to_html(tmp_path / "report.html")
    page = Page(rendered(path, tmp_path / "profile"))
    assert page.title == "layerdiff report"
    assert "script" not in page.tags
    assert page.tags.count("img") == 1
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert EVIL in page.cells
    assert IMAGE in page.cells


def test_a_browser_shows_every_layer_with_its_numbers(tmp_path: Path) -> None:
    path = DIVERGES.to_html(tmp_path / "report.html")
    page = Page(rendered(path, tmp_path / "profile"))
    for row in DIVERGES.layers:
        assert row.layer in page.cells
    assert {"diverges", "propagates", "agrees", "0.5", "/block.conv/out", "values"} <= set(page.cells)
    assert {"torch", "2.13.0"} <= set(page.cells)


def test_the_page_needs_nothing_from_outside(tmp_path: Path) -> None:
    page = Page(DIVERGES.to_html(tmp_path / "report.html").read_text(encoding="utf-8"))
    links = [value for name, value in page.attributes if name in ("src", "href") and value is not None]
    assert links
    assert all(value.startswith("data:") for value in links)
    assert not {"link", "iframe", "script"} & set(page.tags)


def test_a_notebook_shows_the_same_table_escaped() -> None:
    fragment = hostile()._repr_html_()
    assert EVIL not in fragment
    assert IMAGE not in fragment
    assert EVIL in Page(fragment).cells


# The file.


def restored(report: Report, folder: Path) -> Report:
    return layerdiff.load(report.save(folder / "report.json"))


@pytest.mark.parametrize(
    "report", [AGREES, DIVERGES, SEVERAL, hostile()], ids=["agrees", "diverges", "several", "hostile"]
)
def test_a_saved_report_comes_back_equal(tmp_path: Path, report: Report) -> None:
    assert restored(report, tmp_path) == report
    assert restored(report, tmp_path).verdict == report.verdict


def test_diagnoses_come_back_with_their_evidence(tmp_path: Path) -> None:
    evidence = {"epsilon": 1e-3, "channels": [1, 2], "ratio": math.inf, "text": "x"}
    report = replace(
        DIVERGES, diagnoses=(Diagnosis("bn-folding", "block.conv", "wrong", evidence, "fold again", verified=True),)
    )
    assert restored(report, tmp_path).diagnoses == report.diagnoses


numbers = st.floats(allow_nan=True, allow_infinity=True)
words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
metrics = st.builds(
    Metrics,
    **{
        field.name: numbers
        for field in fields(Metrics)
        if field.name not in ("worst_index", "agrees") and not field.name.startswith("nonfinite")
    },
    worst_index=st.lists(st.integers(0, 9), max_size=4).map(tuple),
    nonfinite_expected=st.integers(0, 9),
    nonfinite_actual=st.integers(0, 9),
    nonfinite_mismatches=st.integers(0, 9),
    agrees=st.booleans(),
)
rows_of_any_kind = st.builds(
    LayerResult,
    layer=words,
    call=st.integers(0, 99),
    type=words,
    op=st.none() | words,
    onnx_tensor=st.none() | words,
    evidence=st.none() | st.sampled_from(Evidence),
    status=st.sampled_from(Status),
    reason=words,
    accumulated=st.none() | metrics,
    introduced=st.none() | metrics,
    noise=st.none() | st.builds(Noise, numbers, numbers),
)


@settings(max_examples=60)
@given(st.lists(rows_of_any_kind, max_size=3), st.dictionaries(words, words, max_size=3), st.lists(words, max_size=2))
def test_any_report_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, rows: list[LayerResult], facts: dict[str, str], warnings: list[str]
) -> None:
    report = replace(AGREES, layers=tuple(rows), environment=facts, warnings=tuple(warnings))
    found = restored(report, tmp_path_factory.mktemp("saved"))
    assert to_dict(found) == to_dict(report)  # NaN is not equal to itself, its name is
    assert repr(found) == repr(report)


def test_the_file_is_strict_json_with_the_verdict_for_scripts(tmp_path: Path) -> None:
    path = replace(DIVERGES, layers=(layer("stem", Status.DIVERGES, NAN_METRICS),)).save(tmp_path / "r.json")

    def refuse(token: str) -> Any:
        raise AssertionError(token)

    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert content["agrees"] is False
    assert content["verdict"].startswith("block.conv [Conv2d")
    assert content["layers"][0]["accumulated"]["max_abs"] == "NaN"


def test_saving_again_replaces_the_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    AGREES.save(tmp_path / "report.json")
    assert restored(DIVERGES, tmp_path) == DIVERGES
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


@pytest.mark.parametrize("write", ["save", "to_html"])
def test_a_failure_in_the_middle_of_writing_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    path = tmp_path / "report.out"
    getattr(AGREES, write)(path)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("pathlib.Path.replace", full)
    with pytest.raises(InputError, match=r"cannot be written \(no space left"):
        getattr(DIVERGES, write)(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_picture_that_cannot_be_drawn_keeps_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = AGREES.to_html(tmp_path / "report.html")
    before = path.read_bytes()

    def broken(*_: object, **__: object) -> None:
        raise ValueError("no ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", broken)
    with pytest.raises(ValueError, match="no ink"):
        DIVERGES.to_html(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("write", ["save", "to_html", "plot"])
def test_a_folder_that_is_not_there_is_named(tmp_path: Path, write: str) -> None:
    with pytest.raises(InputError, match=r"the folder .*nowhere does not exist; make it first"):
        getattr(DIVERGES, write)(tmp_path / "nowhere" / "report.png")


def changed(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content = change(content) or content
    path.write_text(json.dumps(content), encoding="utf-8")


FOREIGN = {
    "a list": (lambda _: [1, 2], "JSON, but not a layerdiff report"),
    "another format": (lambda c: c.update(format="junit"), "JSON, but not a layerdiff report"),
    "a newer version": (lambda c: c.update(version=99), "report version 99, this layerdiff reads 5"),
    "a missing field": (lambda c: c.pop("layers") and None, "a layerdiff report with damaged content"),
    "a number for a list": (lambda c: c.update(layers=5), "a layerdiff report with damaged content"),
    "a text for a number": (lambda c: c.update(samples="many"), "a layerdiff report with damaged content"),
    "an unknown status": (lambda c: c["layers"][0].update(status="meh"), "a layerdiff report with damaged content"),
    "a word for a metric": (
        lambda c: c["layers"][0]["accumulated"].update(max_abs="huge"),
        "a layerdiff report with damaged content",
    ),
    "a row that is no record": (lambda c: c["layers"].__setitem__(0, "row"), "a layerdiff report with damaged content"),
    "a number for a word": (lambda c: c["layers"][0].update(layer=3), "a layerdiff report with damaged content"),
}


@pytest.mark.parametrize(("change", "text"), FOREIGN.values(), ids=FOREIGN.keys())
def test_a_file_that_is_not_such_a_report_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], text: str
) -> None:
    path = DIVERGES.save(tmp_path / "report.json")
    changed(path, change)
    with pytest.raises(InputError, match=text) as caught:
        layerdiff.load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000], ids=["empty", "half", "binary", "deep"]
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"not a layerdiff report"):
        layerdiff.load(path)


def test_a_report_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.json: no such file; give a report that Report.save wrote"):
        layerdiff.load(tmp_path / "missing.json")


def test_a_report_of_a_real_trace_survives_its_file(
    tmp_path: Path, trace: Callable[..., Report], classifier: Any, broken: Any, image: Any
) -> None:
    report = trace(classifier, broken, image)
    found = restored(report, tmp_path)
    assert found.to_dict() == report.to_dict()
    assert str(found) == str(report)
