"""Tries many mutated files in processes that may be lost, and prints how they ended.

``python -m benchmarks.fuzz.run --graph 80000 --report 20000 --trace 5000``. A case is a kind and a number, and always
the same file: ``--only graph:123`` runs one, with its traceback.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.fuzz.targets import Case, Kind, Target

SECONDS = 10.0  # a case that takes longer is a finding
GRACE = 5.0  # and is ended after so much more
MEMORY_BYTES = 4 << 30
GROWTH_BYTES = 1 << 30


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    for kind in Kind:
        parser.add_argument(f"--{kind.value}", type=int, default=0, help="how many cases")
    parser.add_argument("--start", type=int, default=0, help="the number of the first case")
    parser.add_argument("--only", help="kind:number of one case")
    parser.add_argument("--worker", help="kind:start:end:file, used by this script itself")
    options = parser.parse_args()
    if options.worker:
        kind, start, end, file = options.worker.split(":", 3)
        _work(Kind(kind), range(int(start), int(end)), Path(file))
    elif options.only:
        kind, number = options.only.split(":")
        with tempfile.TemporaryDirectory() as folder:
            print(Target(Path(folder)).run(Case(Kind(kind), int(number))))
    else:
        found = [n for k in Kind for n in campaign(k, options.start, getattr(options, k.value))]
        sys.exit(1 if found else 0)


def campaign(kind: Kind, start: int, count: int) -> list[dict[str, Any]]:
    """Run some cases of a kind, print how they ended, and return the findings."""
    if not count:
        return []
    begin, ends, findings = time.monotonic(), Counter[str](), []
    at, last = start, start + count
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        while at < last:
            log = Path(folder) / "log.jsonl"
            log.write_text("")
            died = _supervised(kind, at, last, log)
            lines = [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]
            done = [line for line in lines if "end" in line]
            ends.update(line["end"] for line in done)
            slowest = max([slowest, *(line["seconds"] for line in done)])
            findings += [line for line in done if line.get("finding")]
            at += len(done)
            if died and at < last:
                findings.append({"case": at, "end": died, "finding": died})
                ends[died] += 1
                at += 1
    print(f"{kind.value}: {count} cases from {start}, {time.monotonic() - begin:.0f} s, slowest {slowest:.2f} s")
    for end, number in ends.most_common():
        print(f"  {number:>7}  {end}")
    for finding in findings[:40]:
        print(f"  FINDING {kind.value}:{finding['case']}: {finding['finding']}")
    print(f"  {len(findings)} findings", flush=True)
    return findings


def _supervised(kind: Kind, start: int, end: int, log: Path) -> str:
    """Run cases in a process; how it died, "" when it did not."""
    arguments = [sys.executable, "-m", "benchmarks.fuzz.run", "--worker", f"{kind.value}:{start}:{end}:{log}"]
    process = subprocess.Popen(arguments, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    size, since = 0, time.monotonic() + 30  # it loads torch first
    while process.poll() is None:
        time.sleep(0.2)
        now = log.stat().st_size
        if now != size:
            size, since = now, time.monotonic()
        elif time.monotonic() - since > SECONDS + GRACE:
            process.kill()
            process.wait()
            return f"hang of more than {SECONDS + GRACE:g} s"
    return "" if process.returncode == 0 else f"process ended with {process.returncode}"


def _work(kind: Kind, numbers: range, log: Path) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with tempfile.TemporaryDirectory() as folder, log.open("a", buffering=1) as file:
        target = Target(Path(folder))
        for number in numbers:
            before, begin = _peak_bytes(), time.monotonic()
            line: dict[str, Any] = {"case": number}
            try:
                line["end"] = target.run(Case(kind, number))
            except BaseException as error:  # noqa: BLE001  that is what is looked for
                where = traceback.extract_tb(error.__traceback__)[-1]
                line["end"] = f"{type(error).__name__}"
                line["finding"] = (
                    f"{type(error).__name__} {str(error)[:120]!r} at {where.filename[-50:]}:{where.lineno}"
                )
            line["seconds"] = round(time.monotonic() - begin, 3)
            if line["seconds"] > SECONDS:
                line["finding"] = f"took {line['seconds']} s"
            if _peak_bytes() - before > GROWTH_BYTES:
                line["finding"] = f"took {(_peak_bytes() - before) >> 20} MiB"
            file.write(json.dumps(line) + "\n")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
