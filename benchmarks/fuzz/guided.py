"""Mutates what reached new code of layerdiff (atheris), in a process for each target, and prints how far it came.

``python -m benchmarks.fuzz.guided --seconds 600`` runs both targets one after the other. What reached something new is
kept under ``benchmarks/out/guided`` and taken up by the next run, beside the seeds. ``--only graph:FILE`` runs one
file without atheris, with its traceback.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

FOLDER = Path(__file__).parents[1] / "out" / "guided"
SEEDS = {"graph": "*.onnx", "report": "*.json"}
SECONDS = 10  # a file that takes longer is a finding
MEMORY_BYTES = 4 << 30
GROWTH_BYTES = 1 << 30
LONGEST_BYTES = 1 << 15  # twice the largest seed
STRUCTURED = 0.5  # of the mutations change fields and values, the others bytes: most of those end in the parser
_PLACE = "finding"
_STATE = re.compile(r"#(\d+)\t(?:INITED|NEW|REDUCE|pulse|RELOAD|DONE) +cov: (\d+) ft: (\d+) corp: (\d+)")


def main() -> int:
    """Run what the command line asks for; 1 where something is found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600, help="for each target")
    parser.add_argument("--target", action="append", choices=list(SEEDS))
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--only", help="target:file, one file")
    parser.add_argument("--worker", choices=list(SEEDS), help="used by this script itself")
    options = parser.parse_args()
    if options.worker:
        _work(options.worker, options.folder, options.seconds)
    elif options.only:
        name, file = options.only.split(":", 1)
        with tempfile.TemporaryDirectory() as folder:
            print(_target(name, Path(folder))(Path(file).read_bytes()))
    else:
        return min(1, sum(campaign(name, options.folder, options.seconds) for name in options.target or SEEDS))
    return 0


def campaign(name: str, folder: Path, seconds: int) -> int:
    """Fuzz a target for some time, print how far that came, and return how many findings there were."""
    places = folder / name / _PLACE
    for place in (places, folder / name / "corpus"):
        place.mkdir(parents=True, exist_ok=True)
    begin = time.time_ns()
    arguments = ["--worker", name, "--folder", str(folder), "--seconds", str(seconds)]
    log = folder / name / "log.txt"
    with log.open("wb") as file:
        command = [sys.executable, "-m", "benchmarks.fuzz.guided", *arguments]
        ended = subprocess.run(command, stdout=file, stderr=file, check=False).returncode
    text = log.read_text(errors="replace")
    states = _STATE.findall(text)
    print(f"{name}: {seconds} s, ended with {ended}" + ("" if states else f"\n{text[-2000:]}"))
    for when, (runs, edges, features, kept) in zip(("seeds", "end"), (states[:1] + states[-1:]), strict=False):
        print(f"  {when}: {runs} runs, {edges} places, {features} features, {kept} files kept")
    for line in [line for line in text.splitlines() if line.startswith("ended")][-1:]:
        print(f"  {line}")
    found = [p for p in sorted(places.iterdir()) if p.suffix != ".txt" and p.stat().st_mtime_ns >= begin]
    for place in found:
        print(f"  FINDING {place}")
    print(f"  {len(found)} findings", flush=True)
    return len(found) or int(ended != 0)


def _work(name: str, folder: Path, seconds: int) -> None:
    import atheris

    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    places = folder / name / _PLACE
    with tempfile.TemporaryDirectory() as own:
        with atheris.instrument_imports(include=["layerdiff"]):
            run = _target(name, Path(own))
            start = _seeds(name, Path(own) / "seeds")
            for seed in start:  # what is imported late is watched too
                run(seed.read_bytes())
        options = [
            f"-max_total_time={seconds}", f"-timeout={SECONDS}", f"-rss_limit_mb={MEMORY_BYTES >> 20}",
            f"-max_len={LONGEST_BYTES}", "-mutate_depth=2", f"-artifact_prefix={places}/", "-print_final_stats=1",
        ]  # fmt: skip
        arguments = [sys.argv[0], *options, str(folder / name / "corpus"), str(Path(own) / "seeds")]
        others = [path.read_bytes() for path in start]
        by_bytes = lambda data, most: atheris.Mutate(data, most)  # noqa: E731, PLW0108  Fuzz() puts another one there
        atheris.Setup(arguments, Watched(run, places), custom_mutator=mutator(name, others, by_bytes))
        atheris.Fuzz()


def _seeds(name: str, folder: Path) -> list[Path]:
    """The seeds of a target, in a folder of their own."""
    from benchmarks.fuzz import seeds

    folder.mkdir()
    found = []
    for path in sorted(seeds.FOLDER.glob(SEEDS[name])):
        found.append(folder / path.name)
        found[-1].write_bytes(path.read_bytes())
    return found


def _target(name: str, folder: Path) -> Callable[[bytes], str]:
    from benchmarks.fuzz import targets

    path = folder / ("model.onnx" if name == "graph" else "report.json")

    def run(data: bytes) -> str:
        path.write_bytes(data)
        if name == "graph":
            return targets.ended(lambda: targets.read_graph(path))
        return targets.ended(lambda: targets.read_report(path, drawn=False))

    return run


class Watched:
    """Keeps each file that ends otherwise than it may, once for each place, and goes on."""

    def __init__(self, run: Callable[[bytes], str], places: Path) -> None:
        self._run, self._places = run, places
        self._ends, self._told = Counter[str](), time.monotonic()
        self._kept: set[str] = set()

    def __call__(self, data: bytes) -> None:
        """Run a file."""
        before, begin = _peak_bytes(), time.monotonic()
        end = ""
        try:
            end = self._run(data)
        except BaseException as error:  # noqa: BLE001  that is what is looked for
            where = traceback.extract_tb(error.__traceback__)[-1]
            end = f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"
            self._keep(end, data, "".join(traceback.format_exception(error)))
        if time.monotonic() - begin > SECONDS:
            self._keep("slow", data, f"{time.monotonic() - begin} s")
        if _peak_bytes() - before > GROWTH_BYTES:
            self._keep("large", data, f"{(_peak_bytes() - before) >> 20} MiB")
        self._ends[end] += 1
        if time.monotonic() - self._told > 10:
            self._told = time.monotonic()
            print("ended", dict(self._ends.most_common()), flush=True)

    def _keep(self, how: str, data: bytes, text: str) -> None:
        if how in self._kept:
            return
        self._kept.add(how)
        place = self._places / hashlib.sha256(how.encode()).hexdigest()[:12]
        place.write_bytes(data)
        place.with_suffix(".txt").write_text(text)


def mutator(name: str, others: list[bytes], by_bytes: Callable[[bytes, int], bytes]) -> Callable[..., bytes]:
    """What libFuzzer calls for the next file: half of them are changed where they mean something."""
    from google.protobuf.message import DecodeError

    from benchmarks.fuzz import mutate

    def changed(data: bytes, rng: random.Random) -> bytes:
        if name == "graph":
            return mutate.model_fields(data, others, rng)
        return mutate.report_values(data.decode(), rng).encode()

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < STRUCTURED:
            try:
                found = changed(data, rng)
            except (ValueError, TypeError, DecodeError, RecursionError):  # too damaged to mean anything
                found = b""
            if 0 < len(found) <= most:
                return found
        return by_bytes(data, most)

    return mutated


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    sys.exit(main())
