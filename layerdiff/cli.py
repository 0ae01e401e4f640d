"""The command line: ``layerdiff trace | diff | inputs | detections | report | doctor``.

Exit 0: agrees, 1: diverges, 2: could not tell.
"""

from __future__ import annotations

import json
import sys
import traceback
from dataclasses import replace
from enum import Enum
from io import TextIOWrapper
from pathlib import Path  # noqa: TC003  typer reads the annotations
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from layerdiff import arguments
from layerdiff.errors import InputError, LayerdiffError, RepairError, ReproduceError
from layerdiff.memory import parsed

if TYPE_CHECKING:
    from layerdiff.report import Report

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

AGREES, DIVERGES, COULD_NOT_TELL = 0, 1, 2


class Isolate(str, Enum):
    """Where a runtime runs."""

    PROCESS = "process"
    NONE = "none"


TIME_LIMIT = 300.0
APART = Isolate.NONE if sys.platform == "win32" else Isolate.PROCESS  # descriptors cannot be handed over there


class Granularity(str, Enum):
    """What a row of the table is."""

    MODULE = "module"
    OP = "op"


@app.command()
def trace(
    model: Annotated[str, typer.Argument(help="package.module:name of the model, or of a function that builds it")],
    candidate: Annotated[Path, typer.Argument(help="the exported .onnx file")],
    inputs: Annotated[list[Path] | None, typer.Option("--input", "-i", help=".npy or .npz; repeat for samples")] = None,
    candidate_input: Annotated[
        list[Path] | None, typer.Option(help="what the candidate is fed for each --input: compared with it first")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="the image that both inputs were made from")] = None,
    rtol: Annotated[float | None, typer.Option(help="a fixed relative tolerance instead of the noise floor")] = None,
    atol: Annotated[float | None, typer.Option(help="a fixed absolute tolerance instead of the noise floor")] = None,
    granularity: Annotated[Granularity, typer.Option(help="one row per module, or per operator")] = Granularity.MODULE,
    valid: Annotated[Path | None, typer.Option(help="masks of what counts: .npz, by output or input name")] = None,
    pairs: Annotated[Path | None, typer.Option(help="which tensor is which layer: a file of --write-pairs")] = None,
    write_pairs: Annotated[Path | None, typer.Option(help="write layers and tensors as YAML, for editing")] = None,
    html: Annotated[Path | None, typer.Option(help="write the report as a web page")] = None,
    plot: Annotated[Path | None, typer.Option(help="write the divergence plot (.png, .svg, .pdf)")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the table of layers")] = None,
    save: Annotated[Path | None, typer.Option(help="write the report as JSON, to be read back later")] = None,
    repair: Annotated[Path | None, typer.Option(help="write a corrected .onnx file, and trace that too")] = None,
    reproduce: Annotated[
        Path | None, typer.Option(help="write the first divergence as a folder that runs alone")
    ] = None,
    isolate: Annotated[Isolate, typer.Option(help="run ONNX models in a process of their own, or here")] = APART,
    time_limit: Annotated[float, typer.Option(help="seconds that one run in that process may take")] = TIME_LIMIT,
    memory_limit: Annotated[
        str | None, typer.Option(help="2GB, say: what goes beyond is kept on disk; default: half of what is free")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")] = False,
) -> None:
    """Find the first layer of an ONNX file that diverges from its PyTorch model."""
    import layerdiff
    from layerdiff.files import need_folder

    for target in filter(None, (html, plot, csv, save, write_pairs, repair, reproduce)):
        need_folder(target)
    reference, example = arguments.built(model)
    given: Any = list(inputs) if inputs and len(inputs) > 1 else (inputs[0] if inputs else example)
    if given is None:
        raise InputError(f"{model} gives no example inputs; pass --input x.npz")
    given = arguments.paired(given, candidate_input or [], image or [])
    fixed = layerdiff.Tolerance(rtol or 0.0, atol or 0.0) if rtol is not None or atol is not None else None
    report = layerdiff.trace(
        reference,
        candidate,
        given,
        tolerance=fixed or "auto",
        granularity="op" if granularity is Granularity.OP else "module",
        valid=None if valid is None else arguments.masks(valid),
        pairs=pairs,
        isolate=_apart(isolate, time_limit),
        memory_limit=None if memory_limit is None else parsed(memory_limit),
        progress=not quiet,
    )
    _show(report)
    _write(report, html=html, plot=plot, csv=csv, save=save, pairs=write_pairs)
    if not report.network_agrees:
        _act(report, repair=repair, reproduce=reproduce)
    raise typer.Exit(AGREES if report.agrees else DIVERGES)


@app.command()
def diff(
    before: Annotated[str, typer.Argument(help="what is right: an .onnx or .pt2 file, or package.module:name")],
    after: Annotated[str, typer.Argument(help="what is judged: an .onnx or .pt2 file, or package.module:name")],
    inputs: Annotated[
        list[Path] | None, typer.Option("--inputs", "-i", help=".npy or .npz; repeat for samples")
    ] = None,
    random: Annotated[
        bool, typer.Option("--random", help="draw inputs at random, as happens without --inputs")
    ] = False,
    seed: Annotated[int, typer.Option(help="the seed of random inputs")] = 0,
    size: Annotated[list[str] | None, typer.Option(help="NAME=N: the size of an open dimension; repeat")] = None,
    rtol: Annotated[float | None, typer.Option(help="a fixed relative tolerance instead of the noise floor")] = None,
    atol: Annotated[float | None, typer.Option(help="a fixed absolute tolerance instead of the noise floor")] = None,
    granularity: Annotated[Granularity, typer.Option(help="one row per layer, or per operator")] = Granularity.MODULE,
    tool: Annotated[
        str | None, typer.Option(help="onnxsim or onnxslim made AFTER: find the pass that changed the numbers")
    ] = None,
    html: Annotated[Path | None, typer.Option(help="write the report as a web page")] = None,
    plot: Annotated[Path | None, typer.Option(help="write the divergence plot (.png, .svg, .pdf)")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the table of layers")] = None,
    save: Annotated[Path | None, typer.Option(help="write the report as JSON, to be read back later")] = None,
    isolate: Annotated[Isolate, typer.Option(help="run ONNX models in a process of their own, or here")] = APART,
    time_limit: Annotated[float, typer.Option(help="seconds that one run in that process may take")] = TIME_LIMIT,
    memory_limit: Annotated[
        str | None, typer.Option(help="2GB, say: what goes beyond is kept on disk; default: half of what is free")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no progress bar")] = False,
) -> None:
    """Find the first layer that a simplifier, an optimizer or an edit changed between two models."""
    import layerdiff
    from layerdiff.files import need_folder

    for target in filter(None, (html, plot, csv, save)):
        need_folder(target)
    if inputs and (random or size):
        raise InputError("--inputs gives the inputs: leave out --random and --size")
    apart = _apart(isolate, time_limit)
    (expected, example), (actual, _) = arguments.side(before), arguments.side(after)
    drawing = arguments.Drawing(arguments.sizes(size or ()), seed, asked=random)
    given, note = arguments.given(list(inputs or ()), example, (expected, actual), drawing)
    fixed = layerdiff.Tolerance(rtol or 0.0, atol or 0.0) if rtol is not None or atol is not None else None
    try:
        report = layerdiff.trace(
            expected,
            actual,
            given,
            tolerance=fixed or "auto",
            granularity="op" if granularity is Granularity.OP else "module",
            isolate=apart,
            memory_limit=None if memory_limit is None else parsed(memory_limit),
            progress=not quiet,
        )
    except LayerdiffError as error:
        if note is None:
            raise
        raise InputError(f"{error} ({note}; give real inputs with --inputs, or other sizes with --size)") from error
    if tool is not None:
        layer = report.first_divergence.layer if report.first_divergence is not None else ""
        options: dict[str, Any] = {"tolerance": fixed or "auto", "isolate": apart}
        named = layerdiff.guilty_passes(expected, actual, given, tool=tool, layer=layer, **options)
        if named is not None:
            report = replace(report, diagnoses=(*report.diagnoses, named))
    if note is not None:
        report = replace(report, warnings=(note, *report.warnings))
    _show(report)
    _write(report, html=html, plot=plot, csv=csv, save=save, pairs=None)
    raise typer.Exit(AGREES if report.agrees else DIVERGES)


@app.command()
def inputs(
    expected: Annotated[Path, typer.Argument(help="what the reference is fed: .npy or .npz")],
    actual: Annotated[Path, typer.Argument(help="what the candidate is fed: .npy or .npz")],
    image: Annotated[Path | None, typer.Option(help="the image that both were made from")] = None,
    save: Annotated[Path | None, typer.Option(help="write the comparison as JSON")] = None,
) -> None:
    """Find what another preprocessing did to an input: colour order, scale, resize, letterbox, crop and more."""
    import layerdiff
    from layerdiff.files import need_folder, write_text

    if save is not None:
        need_folder(save)
    found = layerdiff.compare_inputs(expected, actual, image=image)
    console = Console()
    console.print(str(found), markup=False, emoji=False, highlight=False, soft_wrap=True)
    if save is not None:
        write_text(save, json.dumps(found.to_dict(), indent=1, allow_nan=False))
        console.print(f"wrote {save}", markup=False, soft_wrap=True)
    raise typer.Exit(AGREES if found.agrees else DIVERGES)


@app.command()
def detections(
    expected: Annotated[
        Path, typer.Argument(help="what is right: COCO .json, YOLO .txt or a folder of them, .npy, .npz")
    ],
    actual: Annotated[Path, typer.Argument(help="what is judged, in any of these forms")],
    raw: Annotated[
        list[Path] | None, typer.Option(help="raw head output (.npy): one for both sides, or twice, expected first")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="WIDTHxHEIGHT in pixels, where files hold shares")] = None,
    labels: Annotated[Path | None, typer.Option(help="true boxes, for average precision of both sides")] = None,
    image: Annotated[Path | None, typer.Option(help="the image that --plot draws the boxes on")] = None,
    plot: Annotated[Path | None, typer.Option(help="write the boxes of both sides as a picture")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the table of boxes")] = None,
    save: Annotated[Path | None, typer.Option(help="write the comparison as JSON")] = None,
) -> None:
    """Compare two sets of detections, and find the settings that explain what differs."""
    import layerdiff
    from layerdiff.files import need_folder, replacing, write_text

    for target in filter(None, (plot, csv, save)):
        need_folder(target)
    if raw and len(raw) > 2:
        raise InputError(f"--raw was given {len(raw)} times: wanted one file for both sides, or two")
    given = None if not raw else tuple(raw) if len(raw) == 2 else raw[0]
    found = layerdiff.compare_detections(expected, actual, raw=given, image_size=arguments.width_height(image_size))
    console = Console()
    console.print(str(found), markup=False, highlight=False, soft_wrap=True)
    if labels is not None:
        console.print(found.accuracy(labels).to_string(index=False, float_format="{:.3f}".format), markup=False)
    if plot is not None:
        found.plot(image, path=plot)
    if csv is not None:
        with replacing(csv) as draft:
            found.to_frame().to_csv(draft, index=False)
    if save is not None:
        write_text(save, json.dumps(found.to_dict(), indent=1, allow_nan=False))
    for path in filter(None, (plot, csv, save)):
        console.print(f"wrote {path}", markup=False, soft_wrap=True)
    raise typer.Exit(AGREES if found.agrees else DIVERGES)


@app.command()
def report(
    saved: Annotated[Path, typer.Argument(help="a report that --save or Report.save wrote")],
    html: Annotated[Path | None, typer.Option(help="write the report as a web page")] = None,
    plot: Annotated[Path | None, typer.Option(help="write the divergence plot")] = None,
    csv: Annotated[Path | None, typer.Option(help="write the table of layers")] = None,
    write_pairs: Annotated[Path | None, typer.Option(help="write layers and tensors as YAML, for editing")] = None,
) -> None:
    """Show a saved report again, without running anything."""
    from layerdiff.report import load

    found = load(saved)
    _show(found)
    _write(found, html=html, plot=plot, csv=csv, save=None, pairs=write_pairs)
    raise typer.Exit(AGREES if found.agrees else DIVERGES)


@app.command()
def doctor() -> None:
    """Versions and execution providers of this machine, and what is missing."""
    import onnxruntime

    from layerdiff.environment import OPTIONAL, installed, package_versions

    table = Table("package", "version", "what for", box=None)
    for name, version in package_versions().items():
        table.add_row(name, version, "needed")
    for name, purpose in OPTIONAL.items():
        table.add_row(name, installed(name), purpose)
    console = Console()
    console.print(table)
    console.print(f"execution providers: {', '.join(onnxruntime.get_available_providers())}")
    missing = [name for name, version in package_versions().items() if version == "missing"]
    console.print(f"missing: {', '.join(missing)}" if missing else "everything that is needed is there")
    raise typer.Exit(COULD_NOT_TELL if missing else AGREES)


def _apart(isolate: Isolate, seconds: float) -> Any:
    from layerdiff.backends import Isolation

    return Isolation(time_limit_seconds=seconds) if isolate is Isolate.PROCESS else "none"


def _show(report: Report) -> None:
    from layerdiff.report.text import print_report

    print_report(report, Console())


def _write(
    report: Report, *, html: Path | None, plot: Path | None, csv: Path | None, save: Path | None, pairs: Path | None
) -> None:
    if html is not None:
        report.to_html(html)
    if plot is not None:
        report.plot(plot)
    if csv is not None:
        from layerdiff.files import replacing

        with replacing(csv) as draft:
            report.to_frame().to_csv(draft, index=False)
    if save is not None:
        report.save(save)
    if pairs is not None:
        report.write_pairs(pairs)
    for path in filter(None, (html, plot, csv, save, pairs)):
        Console().print(f"wrote {path}", markup=False, soft_wrap=True)


def _act(report: Report, *, repair: Path | None, reproduce: Path | None) -> None:
    """Write what was asked for about a divergence; that it cannot be done changes nothing about the finding."""
    try:
        if reproduce is not None:
            Console().print(f"wrote {report.reproduce(reproduce)}", markup=False, soft_wrap=True)
        if repair is not None:
            corrected = report.repair(repair)
            Console().print(f"wrote {repair}", markup=False, soft_wrap=True)
            _show(corrected)
    except (RepairError, ReproduceError) as error:
        Console(stderr=True).print(f"layerdiff: {error}", markup=False, soft_wrap=True)


def main() -> None:
    """Run the command line; a failure of ours is one line on stderr, and every failure is exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal that knows ASCII alone is no reason to say nothing
            stream.reconfigure(errors="replace")
    try:
        app()
    except LayerdiffError as error:
        Console(stderr=True).print(f"layerdiff: {error}", markup=False, soft_wrap=True)
        sys.exit(COULD_NOT_TELL)
    except Exception:  # noqa: BLE001  1 means "diverges" to a CI job: nothing else may exit with it
        traceback.print_exc()
        sys.exit(COULD_NOT_TELL)
