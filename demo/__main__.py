"""`make demo`: a bad export of a trained detector, its detections, and the layer that did it; then a good export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import track

import layerdiff
from demo.detections import Detection, detect, draw_side_by_side
from demo.detector import example_images, load
from demo.exports import FAULTY_LAYER, bad_export, good_export
from layerdiff.backends import OnnxRuntime, Optimisation
from layerdiff.report.text import print_report

if TYPE_CHECKING:
    from collections.abc import Sequence

OUT = Path(__file__).parent / "out"


def main() -> int:
    """Print and write everything; 0 when the faulty layer was named and the good export is quiet."""
    OUT.mkdir(exist_ok=True)
    console = Console()
    builders = {"bad": bad_export, "good": good_export}
    paths = {
        name: build(OUT)
        for name, build in track(builders.items(), description="exporting", console=Console(stderr=True))
    }
    detector, images = load(), example_images()
    _show_detections(console, detector, images, paths["bad"])

    console.rule("layerdiff.trace(detector, 'detector_bad.onnx', images)")
    bad = layerdiff.trace(detector, paths["bad"], images)
    print_report(bad, console)
    bad.plot(OUT / "divergence.png")
    bad.to_frame().to_csv(OUT / "layers.csv", index=False)
    bad.to_html(OUT / "report.html")

    console.rule("layerdiff.trace(detector, 'detector_good.onnx', images)")
    good = layerdiff.trace(detector, paths["good"], images)
    print_report(good, console)

    console.rule("written")
    for name in ("detections.png", "divergence.png", "layers.csv", "report.html"):
        console.print(str(_near(OUT / name)), highlight=False)
    named = bad.first_divergence is not None and bad.first_divergence.layer == FAULTY_LAYER
    return 0 if named and good.agrees else 1


def _near(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _show_detections(console: Console, detector: torch.nn.Module, images: torch.Tensor, bad: Path) -> None:
    with torch.no_grad():
        expected = detect(detector(images).numpy())
    outputs = OnnxRuntime().open(bad, Optimisation.AS_SHIPPED).run({"images": images.numpy()})
    actual = detect(next(iter(outputs.values())))
    for title, found in (("PyTorch", expected), ("bad ONNX export", actual)):
        console.print(f"[bold]{title}[/bold]: {len(found)} detections")
        _print(console, found)
    panels = [("PyTorch", expected), ("bad ONNX export", actual)]
    draw_side_by_side(images[0].numpy(), panels, OUT / "detections.png")


def _print(console: Console, found: Sequence[Detection]) -> None:
    for detection in found:
        box = ", ".join(f"{edge:.0f}" for edge in detection.box)
        console.print(f"  {detection.label:9} {detection.confidence:.3f}  [{box}]", highlight=False, markup=False)


if __name__ == "__main__":
    sys.exit(main())
